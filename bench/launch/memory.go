package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/bench/orders"
)

const (
	idleBatch   = 17 // containers started between two looks at the memory
	idleBatches = 6
	calm        = 15 * time.Second // until the engine has put back what it made ahead
	begun       = 3 * time.Second  // after which daemons have let go of the pages that starting touched (internal/rest)
	watch       = 30 * time.Second // a window in which wake-ups are counted: connections are looked after as often
)

// memory looks at an engine that has just been started: what its processes take with and without idle containers, and
// how often they wake up.
func memory(ctx context.Context, s *subjects, g group) ([]finding, error) {
	f := finding{group: g}
	woken := finding{group: group{name: "idle", title: "Wake-ups of the engine's threads per second"}}
	time.Sleep(begun) // what only starting needed is given back before the runs, which need some of it again
	if _, err := s.berth.client.ask(ctx, orders.Order{Op: "run", Spec: specOf(spec()), Count: 20}); err != nil {
		return nil, err
	}
	time.Sleep(2 * time.Second) // until the pools are full
	time.Sleep(calm)
	before := map[string][]float64{}
	wakeups, err := s.berth.wakeups(ctx, s.options, idleBatches, func() {
		for name, mb := range s.berth.memory(s.options) {
			before[name] = append(before[name], mb)
		}
	})
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		f.add(name+", idle", "MB PSS", before[name]...)
	}
	for _, name := range slices.Sorted(maps.Keys(wakeups)) {
		woken.add(name+", idle", "/s", wakeups[name]...)
	}

	var ids []string
	defer func() { s.berth.removeAll(ids) }()
	sleeper := spec()
	sleeper.Args, sleeper.AutoRemove = []string{"sleep", "86400"}, false
	var each []float64
	for last, i := median(before[all]), 0; i < idleBatches; i++ {
		r, err := s.berth.client.ask(ctx, orders.Order{Op: "detach", Spec: specOf(sleeper), Count: idleBatch})
		ids = append(ids, r.Made...)
		if err == nil && r.Failed > 0 {
			err = fmt.Errorf("start a sleeper: %s", r.Complaint)
		}
		if err != nil {
			return nil, err
		}
		time.Sleep(time.Second)
		now := s.berth.memory(s.options)[all]
		each = append(each, (now-last)/idleBatch)
		last = now
	}
	f.add("engine, per idle container", "MB PSS", each...)
	f.add(fmt.Sprintf("engine, with %d containers", idleBatch*idleBatches), "MB PSS", s.berth.memory(s.options)[all])
	if wakeups, err = s.berth.wakeups(ctx, s.options, 2, func() {}); err != nil {
		return nil, err
	}
	woken.add(fmt.Sprintf("engine, with %d containers", idleBatch*idleBatches), "/s", wakeups[all]...)
	return []finding{f, woken}, nil
}

// memory is the proportional set size (proc_pid_smaps_rollup(5)) of all processes of the engine: daemons, supervisor,
// monitor, and inits that wait or stay. Containers' own processes and the bench's are left out.
// In MB of 2^20 bytes, by program, and of all.
func (b *berth) memory(o options) map[string]float64 {
	mbs := map[string]float64{}
	for pid, name := range b.processes(o) {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		mb := field(string(text), "Pss:") / 1024
		mbs[name] += mb
		mbs[all] += mb
	}
	return mbs
}

// processes are the names of the engine's processes, by id.
func (b *berth) processes(o options) map[int]string {
	bin, _ := filepath.EvalSymlinks(o.bin)
	names := map[int]string{}
	for _, pid := range b.charge.Processes() {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		name := filepath.Base(exe)
		switch {
		case err != nil || strings.HasPrefix(name, "bench-"):
		case filepath.Dir(exe) == bin:
			names[pid] = name
		case strings.HasPrefix(exe, "/memfd:"): // the sealed copy that a launcher executes
			names[pid] = "berth-init"
		}
	}
	return names
}

// wakeups counts, over some windows of time, how often per second threads of the engine were woken: each wait that one
// went into of its own will has ended with that. By program, and of all. Before each window it calls between.
func (b *berth) wakeups(ctx context.Context, o options, windows int, between func()) (perSecond map[string][]float64, err error) {
	perSecond = map[string][]float64{}
	for range windows {
		between()
		before, began := b.waits(o), time.Now()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(watch):
		}
		counts := map[string]float64{all: 0}
		for t, count := range b.waits(o) {
			counts[t.program] += count - before[t]
			counts[all] += count - before[t]
		}
		for name, n := range counts {
			perSecond[name] = append(perSecond[name], n/time.Since(began).Seconds())
		}
	}
	return perSecond, nil
}

const all = "engine" // all of its programs together

type thread struct{ program, path string }

// waits counts voluntary context switches, by thread.
func (b *berth) waits(o options) map[thread]float64 {
	counts := map[thread]float64{}
	for pid, program := range b.processes(o) {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		for _, path := range threads {
			text, _ := os.ReadFile(path)
			counts[thread{program, path}] = field(string(text), "voluntary_ctxt_switches:")
		}
	}
	return counts
}

// field is the number after a key at the beginning of a line.
func field(text, key string) float64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			words := strings.Fields(rest)
			if len(words) > 0 {
				n, _ := strconv.ParseFloat(words[0], 64)
				return n
			}
		}
	}
	return 0
}
