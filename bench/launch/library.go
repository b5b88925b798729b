package main

import (
	"path/filepath"

	"berth/bench/orders"
)

// newLibrary is libcontainer in a program of its own, over the root file system that the bare runtimes have.
func newLibrary(o options) (*peer, error) {
	p, err := newPeer("libcontainer")
	if err != nil {
		return p, err
	}
	w, err := p.work(o, "libcontainer", filepath.Join(o.bin, "berth-init"), o.work+"/fs", "/"+p.charge.Containers)
	if err != nil {
		return p, err
	}
	p.addOrder("run", "libcontainer", w, orders.Order{Op: "start"}, nil)
	p.addOrder("run", "libcontainer, no pool", w, orders.Order{Op: "cold"}, nil)
	p.addOrder("run", "libcontainer, no pool, until its cgroup is gone", w, orders.Order{Op: "whole"}, nil)
	return p, nil
}
