package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth/bench/orders"
)

const (
	many    = 500 // containers
	probes  = 40  // runs that are timed at each end
	batch   = 100 // containers removed by one command
	batches = 3
)

// density fills the machine with containers that sleep, and asks what has become slower.
func density(ctx context.Context, s *subjects, g group) ([]finding, error) {
	f := finding{group: g}
	var ids []string
	defer func() { s.berth.removeAll(ids) }()
	if err := s.probe(ctx, &f, "with none"); err != nil {
		return nil, err
	}
	sleeper := spec()
	sleeper.Args, sleeper.AutoRemove = []string{"sleep", "86400"}, false
	r, err := s.berth.client.ask(ctx, orders.Order{Op: "detach", Spec: specOf(sleeper), Count: many})
	ids = r.Made
	if err == nil && r.Failed > 0 {
		err = fmt.Errorf("%d of %d containers did not start: %s", r.Failed, many, r.Complaint)
	}
	if err != nil {
		return nil, err
	}
	for i := 0; i < many; i += batch {
		f.add(fmt.Sprintf("run -d, %d to %d", i+1, i+batch), "ms", allInMs(r.Walls[i:i+batch])...)
	}
	if err := s.probe(ctx, &f, fmt.Sprintf("with %d", many)); err != nil {
		return nil, err
	}
	var removals []float64
	for range batches {
		wall, err := s.berth.time(ctx, append([]string{"rm", "-f"}, ids[:batch]...)...)
		if err != nil {
			return nil, err
		}
		ids = ids[batch:]
		removals = append(removals, inMs(wall))
	}
	f.add(fmt.Sprintf("rm -f of %d, CLI", batch), "ms", removals...)
	return []finding{f}, nil
}

// probe times what may depend on how many containers there are. The kernel's part, which no engine can change, is the
// row to compare with.
func (s *subjects) probe(ctx context.Context, f *finding, when string) error {
	time.Sleep(time.Second)
	var runs, floors, lists []float64
	for i := range probes + s.warm {
		time.Sleep(pause)
		run, _, err := s.berth.client.once(ctx, orders.Order{Op: "run", Spec: specOf(spec())})
		if err != nil {
			return err
		}
		time.Sleep(pause)
		floor, _, err := command{args: kernelFloor, charge: s.berth.charge}.once(ctx)
		if err != nil {
			return err
		}
		time.Sleep(pause)
		list, err := s.berth.time(ctx, "ps")
		if err != nil {
			return err
		}
		if i >= s.warm {
			runs, floors, lists = append(runs, inMs(run)), append(floors, inMs(floor)), append(lists, inMs(list))
		}
	}
	f.add("run --rm, gRPC, "+when, "ms", runs...)
	f.add("kernel: namespaces, fork, exec, "+when, "ms", floors...)
	f.add("ps, CLI, "+when, "ms", lists...)
	return nil
}

// time takes the wall time of a command of the CLI.
func (b *berth) time(ctx context.Context, words ...string) (time.Duration, error) {
	wall, _, err := command{append([]string{b.cli}, words...), b.env, b.charge}.once(ctx)
	return wall, err
}

// removeAll removes containers, whatever happened before.
func (b *berth) removeAll(ids []string) (err error) {
	for len(ids) > 0 {
		n := min(batch, len(ids))
		err = errors.Join(err, b.words(append([]string{"rm", "-f"}, ids[:n]...)...))
		ids = ids[n:]
	}
	return err
}

func allInMs(ds []time.Duration) (out []float64) {
	for _, d := range ds {
		out = append(out, inMs(d))
	}
	return out
}
