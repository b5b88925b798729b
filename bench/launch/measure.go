package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"berth/bench/machine"
)

// contender is one command line whose time counts.
type contender struct {
	group, name string
	args        []string
	env         []string
	charge      machine.Account // where its CPU time, and that of the daemons behind it, is counted

	walls     []time.Duration
	cpu       time.Duration // per run
	failed    int
	complaint string // what the first failing run printed
}

// unique, in the arguments, becomes a name that no other run uses.
const unique = "{unique}"

var serial atomic.Int64

const (
	cpuRuns = 10                     // runs one after another whose CPU time is taken
	settle  = 500 * time.Millisecond // how long work may go on after the answers
)

// measure lets the contenders take turns for the wall time. CPU time is taken afterwards, one contender at a time,
// because what an engine does after its answer must not be charged to its next contender.
func measure(cs []*contender, warm, rounds int, interrupted <-chan os.Signal) error {
	if len(cs) == 0 {
		return errors.New("no contenders")
	}
	out, err := os.CreateTemp("", "bench-launch")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()

	for round := range warm + rounds {
		for i := range cs {
			select {
			case s := <-interrupted:
				return fmt.Errorf("%v", s)
			default:
			}
			c := cs[(i+round)%len(cs)]
			wall, err := c.once(out)
			switch {
			case err != nil:
				if c.failed++; c.failed == 1 {
					text, _ := os.ReadFile(out.Name())
					c.complaint = fmt.Sprintf("%v: %s", err, strings.TrimSpace(string(text)))
				}
			case round >= warm:
				c.walls = append(c.walls, wall)
			}
		}
	}
	for _, c := range cs {
		if c.failed > 0 {
			fmt.Fprintf(os.Stderr, "bench: %s: %d of %d runs failed: %s\n", c.name, c.failed, warm+rounds, c.complaint)
			continue
		}
		time.Sleep(settle)
		before := c.charge.Used()
		for range cpuRuns {
			if _, err := c.once(out); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
		time.Sleep(settle)
		c.cpu = (c.charge.Used() - before) / cpuRuns
	}
	return nil
}

// once runs the command, and gives the time from just before the process exists until it has been waited for. Its
// output goes to a file: a pipe would stay open in the helpers some commands leave behind.
func (c *contender) once(out *os.File) (time.Duration, error) {
	id := fmt.Sprintf("bench-%d-%d", os.Getpid(), serial.Add(1))
	args := make([]string, len(c.args))
	for i, a := range c.args {
		args[i] = strings.ReplaceAll(a, unique, id)
	}
	if err := out.Truncate(0); err != nil {
		return 0, err
	}
	if _, err := out.Seek(0, 0); err != nil {
		return 0, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), c.env...)
	cmd.Stdout, cmd.Stderr = out, out

	type result struct {
		wall time.Duration
		err  error
	}
	done := make(chan result)
	go func() {
		// The thread may join a control group, so it ends with this goroutine.
		runtime.LockOSThread()
		if err := c.charge.Enter(cmd); err != nil {
			done <- result{err: err}
			return
		}
		began := time.Now()
		err := cmd.Run()
		done <- result{time.Since(began), err}
	}()
	r := <-done
	return r.wall, r.err
}
