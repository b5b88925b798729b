package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth/bench/orders"
	"berth/libcontainer"
	"berth/libcontainer/caps"
	"berth/libcontainer/cgroup"
	"berth/libcontainer/seccomp"
)

// library launches with libcontainer alone, as a program that has nothing else of Berth would.
type library struct {
	launcher *libcontainer.Launcher
	parent   *cgroup.Parent
	pool     *libcontainer.Pool
	config   *libcontainer.Config
	serial   int
}

func newLibrary(init, rootfs, group string) (*library, error) {
	launcher, err := libcontainer.New(init)
	if err != nil {
		return nil, err
	}
	layout, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	parent, err := cgroup.OpenParent(layout, group)
	if err != nil {
		return nil, err
	}
	target, err := seccomp.Host()
	if err != nil {
		return nil, err
	}
	target.Caps = caps.Default
	filter, err := seccomp.Default().Compile(target)
	if err != nil {
		return nil, err
	}
	config := &libcontainer.Config{
		Root:       libcontainer.Root{Bind: rootfs},
		Namespaces: libcontainer.PrivateNamespaces(),
		Hostname:   "bench",
		Mounts:     libcontainer.DefaultMounts(libcontainer.DefaultShm),
		Devices:    libcontainer.DefaultDevices(),
		Masked:     libcontainer.DefaultMasked(),
		ReadOnly:   libcontainer.DefaultReadOnly(),
		Command: libcontainer.Command{
			Args:    []string{"/bin/true"},
			Env:     []string{"PATH=/bin"},
			Caps:    caps.Default,
			Seccomp: filter,
		},
		// Nothing in it is the user's; the engine does the same with its own.
		KeepMounts: true,
	}
	pool := launcher.NewPool(libcontainer.PoolConfig{Usual: *config, Parent: parent, Prefix: "pool-", Size: 2})
	return &library{launcher: launcher, parent: parent, pool: pool, config: config}, nil
}

func (l *library) close() {
	l.pool.Close()
	_ = l.parent.Delete()
	_ = l.launcher.Close()
}

func (l *library) operations() map[string]orders.Operation {
	return map[string]orders.Operation{"start": l.start, "cold": l.cold, "whole": l.whole}
}

// limits are those of the engine's contender that has limits.
var limits = cgroup.Resources{
	Memory: cgroup.Memory{Limit: 256 << 20},
	CPU:    cgroup.CPU{Quota: 100_000, Period: 100_000}, // microseconds
	Pids:   100,
}

func (l *library) group() (*cgroup.Group, error) {
	l.serial++
	return l.parent.Create(fmt.Sprintf("c%d", l.serial), limits)
}

// start counts from a Go struct to the process reaped, in an init of the pool, whose group is given its limits within
// that time; it and the mounts are removed after it.
func (l *library) start(ctx context.Context, _ *orders.Order, _ int) (done orders.Outcome, err error) {
	began := time.Now()
	p, g, err := l.pool.Start(ctx, l.config, limits, libcontainer.IO{})
	if err != nil {
		return done, err
	}
	p, err = reaped(p, nil)
	done.Wall = time.Since(began)
	return done, errors.Join(err, forget(p), g.Delete())
}

// cold is start without the pool: the control group is made within the time.
func (l *library) cold(ctx context.Context, _ *orders.Order, _ int) (done orders.Outcome, err error) {
	began := time.Now()
	g, err := l.group()
	if err != nil {
		return done, err
	}
	p, err := reaped(l.launcher.Start(ctx, l.config, libcontainer.IO{Cgroup: g}))
	done.Wall = time.Since(began)
	return done, errors.Join(err, forget(p), g.Delete())
}

// whole is cold until the control group and the mounts are gone too.
func (l *library) whole(ctx context.Context, _ *orders.Order, _ int) (done orders.Outcome, err error) {
	began := time.Now()
	g, err := l.group()
	if err != nil {
		return done, err
	}
	p, err := reaped(l.launcher.Start(ctx, l.config, libcontainer.IO{Cgroup: g}))
	err = errors.Join(err, forget(p), g.Delete())
	done.Wall = time.Since(began)
	return done, err
}

// reaped waits for what a launch returned.
func reaped(p *libcontainer.Process, err error) (*libcontainer.Process, error) {
	if err != nil {
		return nil, err
	}
	status, err := p.Wait()
	if err == nil && status.Code != 0 {
		err = fmt.Errorf("exit status %d", status.Code)
	}
	return p, err
}

// forget closes what is left of a process, if there was one.
func forget(p *libcontainer.Process) error {
	if p == nil {
		return nil
	}
	return errors.Join(p.Close(), p.Mounts.Close())
}
