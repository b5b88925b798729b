package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"time"

	"berth/bench/orders"
)

const (
	coldRounds = 3  // times as many as of other groups: there are few contenders, and they vary
	boots      = 16 // restarts whose first launch is timed
	afterBoot  = 5  // launches after each, whose median is what a warm one takes
	noPools    = "[netd]\npool_size = 0\ndefault_subnet = \"10.91.0.0/16\"\n[execd]\npool_size = 0\n"
	bootSubnet = "[netd]\ndefault_subnet = \"10.92.0.0/16\"\n"
)

// cold compares launches that nothing was prepared for with those that find all prepared.
func cold(ctx context.Context, s *subjects, g group) (found []finding, err error) {
	bare, err := newBerth(s.options, "berth-without-pools", noPools)
	defer func() { err = errors.Join(err, bare.close()) }()
	if err != nil {
		return nil, err
	}
	var cs []*contender
	for _, c := range []struct {
		name string
		by   *berth
		o    orders.Order
	}{
		{"warm: bridge", s.berth, orders.Order{Op: "run", Spec: specOf(spec())}},
		{"network none", s.berth, orders.Order{Op: "run", Spec: specOf(networked(spec(), "none"))}},
		{"host network", s.berth, orders.Order{Op: "run", Spec: specOf(networked(spec(), "host"))}},
		{"user namespace", s.berth, orders.Order{Op: "run", Spec: specOf(private(spec()))}},
		{"empty pools", bare, orders.Order{Op: "run", Spec: specOf(spec())}},
	} {
		p := &peer{charge: c.by.charge}
		p.addOrder(g.name, c.name, c.by.client, c.o, nil)
		cs = append(cs, p.contenders...)
	}
	if err := takeTurns(ctx, cs, pause, s.warm, coldRounds*s.rounds); err != nil {
		return nil, err
	}
	first, warm, err := firstAfterBoot(ctx, s)
	boot := finding{group: group{name: "boot", title: "First start after the engine's", reference: startsAfter}}
	boot.add(firstStart, "ms", first...)
	boot.add(startsAfter, "ms", warm...)
	return []finding{fromTurns(g, cs), boot}, err
}

// firstAfterBoot starts an engine again and again as if the host had booted: nothing in $RUN, no bridge. The client is
// the CLI, since a connection of its own is part of what comes first.
func firstAfterBoot(ctx context.Context, s *subjects) (first, warm []float64, err error) {
	links := networkLinks()
	b, err := newBerth(s.options, "berth-boot", bootSubnet)
	defer func() { err = errors.Join(err, b.close()) }()
	if err == nil {
		err = b.words("rm", "-f", "sleeper")
	}
	var own []string
	for name := range networkLinks() {
		if !links[name] {
			own = append(own, name)
		}
	}
	for i := 0; i < boots && err == nil; i++ {
		if err = b.words("down"); err != nil {
			break
		}
		for _, link := range own {
			_ = exec.Command("ip", "link", "delete", link).Run() // those of the pool went with their namespaces
		}
		if err = os.RemoveAll(b.run); err != nil {
			break
		}
		if err = b.words("up", "--detach"); err != nil {
			break
		}
		var one float64
		var rest []float64
		if one, rest, err = b.firstAndRest(ctx); err == nil {
			first, warm = append(first, one), append(warm, median(rest))
		}
	}
	return first, warm, err
}

func (b *berth) firstAndRest(ctx context.Context) (first float64, rest []float64, err error) {
	for i := range 1 + afterBoot {
		wall, err := b.time(ctx, "run", "--rm", imageName, "/bin/true")
		if err != nil {
			return 0, nil, b.withLogs(err)
		}
		if i == 0 {
			first = inMs(wall)
			time.Sleep(time.Second)
			continue
		}
		rest = append(rest, inMs(wall))
		time.Sleep(100 * time.Millisecond)
	}
	return first, rest, nil
}

// networkLinks are the names of the links of this network namespace.
func networkLinks() map[string]bool {
	names := map[string]bool{}
	text, _ := os.ReadFile("/proc/self/net/dev")
	for line := range strings.Lines(string(text)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names[strings.TrimSpace(name)] = true
		}
	}
	return names
}
