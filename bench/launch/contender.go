package main

import (
	"context"
	"fmt"
	"time"

	"berth/bench/machine"
	"berth/bench/orders"
)

// contender is one way to do what its group does, whose time counts.
type contender struct {
	group, name string
	charge      machine.Account // where its CPU time, and that of the daemons behind it, is counted
	// once does it once. What has to be put right afterwards, if anything, is in undo.
	once func(ctx context.Context) (wall time.Duration, undo func() error, err error)

	walls     []float64     // ms by round, NaN for one that failed
	cpu       time.Duration // per run
	failed    int
	complaint string // of the first run that failed
}

// add gives the peer a contender that is a command line.
func (p *peer) add(group, name string, env []string, args ...string) {
	c := command{args, env, p.charge}
	p.addFunc(group, name, func(ctx context.Context) (time.Duration, func() error, error) {
		wall, _, err := c.once(ctx)
		return wall, nil, err
	})
}

// addOrder gives the peer a contender that is an operation of its worker.
func (p *peer) addOrder(group, name string, w *worker, o orders.Order, undo func(made []string) error) {
	p.addFunc(group, name, func(ctx context.Context) (time.Duration, func() error, error) {
		wall, made, err := w.once(ctx, o)
		if undo == nil {
			return wall, nil, err
		}
		return wall, func() error { return undo(made) }, err
	})
}

func (p *peer) addFunc(group, name string, once func(context.Context) (time.Duration, func() error, error)) {
	p.contenders = append(p.contenders, &contender{group: group, name: name, charge: p.charge, once: once})
}

// addDetached gives the peer a contender that starts a container with a published port, with Docker's words, and removes
// it outside of the time.
func (p *peer) addDetached(group, name string, env, program []string, port string, more []string) {
	words := func(w ...string) []string { return append(program[:len(program):len(program)], w...) }
	p.addFunc(group, name, func(ctx context.Context) (time.Duration, func() error, error) {
		container := fmt.Sprintf("detached-%d", serial.Add(1))
		args := append(append(words("run", "-d", "--name", container, "-p", port), more...), imageName, "sleep", "86400")
		wall, _, err := command{args, env, p.charge}.once(ctx)
		return wall, func() error { return p.all(env, words("rm", "-f", container)) }, err
	})
}
