// Package faultpoint marks the places in a daemon where a test may make it
// fail: die, return an error, stall or panic. A point is a package variable, so
// that the list of all points of a binary is complete without running it:
//
//	var blobStaged = faultpoint.Declare("imaged.blob-staged", "blob bytes written, not yet verified")
//	...
//	if err := blobStaged.Hit(); err != nil { return err }
//
// The environment variable BERTH_FAULTS arms points of a starting process:
//
//	BERTH_FAULTS="imaged.blob-staged=kill;netd.port-bound=2*off->1*error"
//
// A point's value is a chain of terms joined by "->". A term is [COUNT*]ACTION:
// the action applies to that many hits, then the next term takes over; without
// a count it applies to all further hits; after the last term the point is off.
// Actions are off, kill (SIGKILL to the own process), error or error:TEXT,
// delay:MILLISECONDS, and panic. "kill" and "1*kill" therefore both mean the
// first hit, "2*off->kill" the third.
//
// Off, which is always outside tests, a point costs one atomic load.
package faultpoint

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"berth/internal/fault"
)

// Env is the variable that Arm's caller reads.
const Env = "BERTH_FAULTS"

// Point is one place that can be made to fail. Its methods may be called from
// any goroutine.
type Point struct {
	name, doc string
	armed     atomic.Bool

	mu    sync.Mutex
	chain []term
}

type term struct {
	left   int // hits it still applies to; negative: all
	action func(point string) error
}

var (
	registryMu sync.Mutex
	registry   = map[string]*Point{}
)

// Declare registers a point. Call it in a package-level var; the name is
// DAEMON.WHAT-HAPPENED and unique in the binary. It panics on a duplicate.
func Declare(name, doc string) *Point {
	registryMu.Lock()
	defer registryMu.Unlock()
	if registry[name] != nil {
		panic("faultpoint: " + name + " declared twice")
	}
	p := &Point{name: name, doc: doc}
	registry[name] = p
	return p
}

// Hit fails as the point was armed to; off, it returns nil at once.
func (p *Point) Hit() error {
	if !p.armed.Load() {
		return nil
	}
	p.mu.Lock()
	var action func(string) error
	if len(p.chain) > 0 {
		action = p.chain[0].action
		if p.chain[0].left--; p.chain[0].left == 0 {
			p.chain = p.chain[1:]
		}
	}
	if len(p.chain) == 0 {
		p.armed.Store(false)
	}
	p.mu.Unlock()
	if action == nil {
		return nil
	}
	return action(p.name)
}

// Description is a point as --list-fault-points shows it.
type Description struct{ Name, Doc string }

// List is every point of this binary, by name, but those of other programs whose code is in it too.
func List(others ...string) []Description {
	registryMu.Lock()
	defer registryMu.Unlock()
	var all []Description
	for _, name := range slices.Sorted(maps.Keys(registry)) {
		if owner, _, _ := strings.Cut(name, "."); !slices.Contains(others, owner) {
			all = append(all, Description{name, registry[name].doc})
		}
	}
	return all
}

// Arm sets the points named in spec (see the package comment). Points of other
// daemons, whose names begin otherwise, are left to them. Nothing is armed when
// spec has an error.
func Arm(spec string) error {
	chains := map[*Point][]term{}
	for item := range strings.SplitSeq(spec, ";") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		name, value, ok := strings.Cut(item, "=")
		if !ok {
			return fmt.Errorf("fault point %q: want NAME=ACTION", item)
		}
		registryMu.Lock()
		p := registry[name]
		registryMu.Unlock()
		if p == nil && foreign(name) {
			continue
		}
		if p == nil {
			return fmt.Errorf("fault point %q is not one of this program's", name)
		}
		chain, err := parseChain(value)
		if err != nil {
			return fmt.Errorf("fault point %s: %w", name, err)
		}
		chains[p] = chain
	}
	for p, chain := range chains {
		p.mu.Lock()
		p.chain = chain
		p.armed.Store(true)
		p.mu.Unlock()
	}
	return nil
}

// foreign reports whether name is another daemon's: the variable is the same for
// all that one command starts.
func foreign(name string) bool {
	daemon, _, ok := strings.Cut(name, ".")
	if !ok {
		return false
	}
	registryMu.Lock()
	defer registryMu.Unlock()
	for known := range registry {
		if strings.HasPrefix(known, daemon+".") {
			return false
		}
	}
	return true
}

// Reset disarms every point; for tests that arm points in their own process.
func Reset() {
	registryMu.Lock()
	defer registryMu.Unlock()
	for _, p := range registry {
		p.mu.Lock()
		p.chain = nil
		p.armed.Store(false)
		p.mu.Unlock()
	}
}

func parseChain(value string) ([]term, error) {
	var chain []term
	for text := range strings.SplitSeq(value, "->") {
		t := term{left: -1}
		if count, rest, ok := strings.Cut(text, "*"); ok {
			n, err := strconv.Atoi(count)
			if err != nil || n < 1 {
				return nil, fmt.Errorf("count %q is not a positive number", count)
			}
			t.left, text = n, rest
		}
		action, err := parseAction(text)
		if err != nil {
			return nil, err
		}
		t.action = action
		chain = append(chain, t)
	}
	return chain, nil
}

func parseAction(text string) (func(string) error, error) {
	verb, arg, _ := strings.Cut(text, ":")
	switch verb {
	case "off":
		return func(string) error { return nil }, nil
	case "kill":
		return func(string) error {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal ends the process before anything else happens
		}, nil
	case "error":
		if arg == "" {
			arg = "injected failure"
		}
		return func(point string) error {
			return fault.Internal.Errorf("FAULT_POINT", "%s at fault point %s", arg, point)
		}, nil
	case "delay":
		ms, err := strconv.Atoi(arg)
		if err != nil || ms < 0 {
			return nil, fmt.Errorf("delay %q is not a number of milliseconds", arg)
		}
		return func(string) error { time.Sleep(time.Duration(ms) * time.Millisecond); return nil }, nil
	case "panic":
		return func(point string) error { panic("fault point " + point) }, nil
	}
	return nil, fmt.Errorf("action %q is none of off, kill, error, delay, panic", text)
}
