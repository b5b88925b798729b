package starter

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync"
	"time"

	"berth/libcontainer"
	"berth/libcontainer/cgroup"
)

// Ready says what to keep ready.
type Ready struct {
	Parent string // cgroup
	Size   int    // number of inits; 0: none
	Pids   int64  // limit of processes that a container usually has
}

// ready is an init that waits in a cgroup of its own.
type ready struct {
	init  *libcontainer.Waiting
	group *cgroup.Group
}

// discard ends the init and removes the cgroup.
func (r *ready) discard() {
	r.init.Discard()
	r.group.Delete()
	r.group.Close()
}

// pool keeps inits ready for the usual container: every namespace its own but
// the network's, which is joined or the host's, and the usual limits. What is
// unusual starts cold. A nil pool has none.
type pool struct {
	Ready
	starter  *Starter
	parent   *cgroup.Parent
	usual    libcontainer.Config // as far as it can be made ahead
	standard cgroup.Resources

	mu     sync.Mutex
	stock  []*ready
	made   int
	closed bool
	wake   chan struct{}
	done   chan struct{}
}

// settle is how long an init taken is not replaced, and the time between two
// that are made: the start that took it needs the processors more, and most
// commands that end soon have ended by then. For the last one nobody waits so
// long.
const settle = 20 * time.Millisecond

// KeepReady begins to fill a pool.
func (s *Starter) KeepReady(r Ready) error {
	if r.Size <= 0 {
		return nil
	}
	parent, err := s.parent(r.Parent)
	if err != nil {
		return err
	}
	usual := libcontainer.Config{
		Namespaces: libcontainer.PrivateNamespaces(),
		Mounts:     libcontainer.DefaultMounts(libcontainer.DefaultShm),
		Masked:     libcontainer.DefaultMasked(),
		ReadOnly:   libcontainer.DefaultReadOnly(),
		Devices:    libcontainer.DefaultDevices(),
	}
	usual.Namespaces.Net = libcontainer.Namespace{}
	s.pool = &pool{
		Ready: r, starter: s, parent: parent, usual: usual, standard: cgroup.Resources{Pids: r.Pids},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.pool.wake <- struct{}{}
	go s.pool.fill()
	return nil
}

// Close ends the inits that wait, and removes what of cgroups is empty then.
func (s *Starter) Close() {
	s.net.close()
	if s.pool != nil {
		s.pool.close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.parents {
		removeEmpty(p)         // of launches that were cut short
		if p.Delete() != nil { // there are groups left: somebody else's affair
			p.Close()
		}
	}
	s.launcher.Close()
}

// removeEmpty removes the pool's groups that nothing is in.
func removeEmpty(p *cgroup.Parent) {
	names, _ := p.List()
	for _, name := range names {
		if !Pooled(name) {
			continue
		}
		g, err := p.Open(name)
		if err != nil {
			continue
		}
		if procs, err := g.Procs(); err == nil && len(procs) == 0 {
			g.Delete()
		}
		g.Close()
	}
}

// groupPrefix and the monitor's pid begin the names of the pool's cgroups, so
// that those of a dead monitor can be told.
const groupPrefix = "ready-"

// Pooled reports whether a cgroup's name is one that a pool gives.
func Pooled(name string) bool { return strings.HasPrefix(name, groupPrefix) }

// PooledBy reports whether it is one of the pool of the monitor pid.
func PooledBy(name string, pid int) bool {
	return strings.HasPrefix(name, fmt.Sprintf("%s%d-", groupPrefix, pid))
}

// take gives a waiting init of the plan's shape, or nil.
func (p *pool) take(plan *Plan) *ready {
	if p == nil || plan.Parent != p.Parent || plan.Container.Namespaces != p.usual.Namespaces || len(plan.Container.UIDMappings) > 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.stock) == 0 || p.closed {
		return nil
	}
	r := p.stock[0]
	p.stock = p.stock[1:]
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return r
}

// limit gives a waiting init's cgroup the limits of a plan.
func (p *pool) limit(r *ready, want cgroup.Resources) error {
	if reflect.DeepEqual(want, p.standard) {
		return nil
	}
	return r.group.Set(want)
}

// fill works until the pool is closed.
func (p *pool) fill() {
	defer close(p.done)
	for range p.wake {
		for p.lacking() {
			if p.len() > 0 {
				time.Sleep(settle)
			}
			r, err := p.make()
			if err != nil {
				// Out of processes or memory: the next start tries again.
				break
			}
			if !p.put(r) {
				r.discard()
			}
		}
		p.starter.net.fill()
	}
}

func (p *pool) lacking() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.closed && len(p.stock) < p.Size
}

func (p *pool) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.stock)
}

func (p *pool) put(r *ready) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.stock = append(p.stock, r)
	}
	return !p.closed
}

func (p *pool) make() (*ready, error) {
	p.made++ // only fill's goroutine
	g, err := p.parent.Create(fmt.Sprintf("%s%d-%d", groupPrefix, os.Getpid(), p.made), p.standard)
	if err != nil {
		return nil, err
	}
	w, err := p.starter.launcher.Prepare(&p.usual, g)
	if err != nil {
		g.Delete()
		g.Close()
		return nil, err
	}
	return &ready{w, g}, nil
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	stock := p.stock
	p.stock = nil
	p.mu.Unlock()
	close(p.wake)
	<-p.done
	for _, r := range stock {
		r.discard()
	}
}
