package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"time"
)

const (
	pause   = 40 * time.Millisecond  // before each run of a group that rests, for what the run before it still does
	cpuRuns = 10                     // runs one after another whose CPU time is taken
	settle  = 300 * time.Millisecond // how long work may go on after the answers
)

// takeTurns times the contenders, each after a pause: in every round each runs once, in an order that chance makes, so that none always
// follows the same other one. CPU time is taken afterwards, one contender at a time, because what an engine does after
// its answer must not be charged to its next contender.
func takeTurns(ctx context.Context, cs []*contender, pause time.Duration, warm, rounds int) error {
	if len(cs) == 0 {
		return errors.New("no contenders")
	}
	chance := rand.New(rand.NewPCG(1, uint64(len(cs)))) // the same in every run of the bench
	for round := range warm + rounds {
		for _, i := range chance.Perm(len(cs)) {
			time.Sleep(pause)
			wall, err := cs[i].run(ctx)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if round < warm && err == nil {
				continue
			}
			cs[i].note(wall, err)
		}
	}
	for _, c := range cs {
		if c.failed > 0 {
			fmt.Fprintf(os.Stderr, "bench: %s: %d of %d runs failed: %s\n", c.name, c.failed, warm+rounds, c.complaint)
			continue
		}
		if err := c.measureCPU(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// run does it once and puts right what has to be.
func (c *contender) run(ctx context.Context) (time.Duration, error) {
	wall, undo, err := c.once(ctx)
	if undo != nil {
		err = errors.Join(err, undo())
	}
	return wall, err
}

func (c *contender) note(wall time.Duration, err error) {
	if err == nil {
		c.walls = append(c.walls, inMs(wall))
		return
	}
	c.walls = append(c.walls, math.NaN())
	if c.failed++; c.failed == 1 {
		c.complaint = err.Error()
	}
}

func (c *contender) measureCPU(ctx context.Context) error {
	time.Sleep(settle)
	before := c.charge.Used()
	for range cpuRuns {
		if _, err := c.run(ctx); err != nil {
			return err
		}
	}
	time.Sleep(settle)
	c.cpu = (c.charge.Used() - before) / cpuRuns
	return nil
}

func inMs(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
