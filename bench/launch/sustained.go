package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"berth/bench/machine"
	"berth/bench/orders"
)

const (
	clients = 8
	bursts  = 6
)

// load is a way to run containers with all clients at once.
type load struct {
	name   string
	charge machine.Account
	size   int // of a burst
	burst  func(ctx context.Context, size int) (elapsed time.Duration, failed int, err error)

	rates, cpu []float64 // per second, and ms per container
	failed     int
}

// addLoad gives the peer a load that is one command line for each container.
func (p *peer) addLoad(name string, size int, env []string, args ...string) {
	c := command{args, env, p.charge}
	p.loads = append(p.loads, &load{name: name, charge: p.charge, size: size, burst: c.burst})
}

// addLoad gives the engine a load of clients that are connected.
func (b *berth) addLoad(name string, size int) {
	order := orders.Order{Op: "run", Spec: specOf(spec()), Workers: clients}
	b.loads = append(b.loads, &load{name: name, charge: b.charge, size: size,
		burst: func(ctx context.Context, size int) (time.Duration, int, error) {
			order.Count = size
			r, err := b.client.ask(ctx, order)
			if r.Failed > 0 {
				fmt.Fprintf(os.Stderr, "bench: %s: %s\n", name, r.Complaint)
			}
			return r.Elapsed, r.Failed, err
		}})
}

func (c command) burst(ctx context.Context, size int) (time.Duration, int, error) {
	var left, failed atomic.Int64
	var wg sync.WaitGroup
	left.Store(int64(size))
	began := time.Now()
	for number := range clients {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if _, _, err := c.by(ctx, number); err != nil && failed.Add(1) == 1 {
					fmt.Fprintln(os.Stderr, "bench:", err)
				}
			}
		})
	}
	wg.Wait()
	return time.Since(began), int(failed.Load()), ctx.Err()
}

// sustained has the loads take turns, a burst each.
func sustained(ctx context.Context, s *subjects, g group) ([]finding, error) {
	var loads []*load
	for _, p := range s.peers {
		loads = append(loads, p.loads...)
	}
	chance := rand.New(rand.NewPCG(2, 2))
	for turn := range bursts + 1 { // the first one dials, and does not count
		for _, i := range chance.Perm(len(loads)) {
			if err := loads[i].turn(ctx, turn > 0); err != nil {
				return nil, fmt.Errorf("%s: %w", loads[i].name, err)
			}
		}
	}
	cost := g
	cost.name, cost.title = g.name+"-cpu", "The same: CPU time per container"
	rates, cpu := finding{group: g}, finding{group: cost}
	for _, l := range loads {
		rates.add(l.name, "/s", l.rates...)
		cpu.add(l.name, "ms", l.cpu...)
		rates.rows[len(rates.rows)-1].failed = l.failed
	}
	return []finding{rates.sorted(), cpu.sorted()}, nil
}

func (l *load) turn(ctx context.Context, counts bool) error {
	size := l.size
	if !counts {
		size = clients
	}
	time.Sleep(settle)
	before := l.charge.Used()
	elapsed, failed, err := l.burst(ctx, size)
	if err != nil {
		return err
	}
	time.Sleep(settle)
	l.failed += failed
	if done := size - failed; counts && done > 0 {
		l.rates = append(l.rates, float64(done)/elapsed.Seconds())
		l.cpu = append(l.cpu, inMs(l.charge.Used()-before)/float64(size))
	}
	return nil
}
