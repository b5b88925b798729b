package libcontainer

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"berth/libcontainer/cgroup"
)

// Pool keeps inits ready for containers of one kind, so that a start costs what differs between them: see
// [Launcher.Prepare]. Each waits in a control group of its own, and nothing of a container that was started in one
// comes back to the pool.
//
// Its methods may be called by many goroutines at once.
type Pool struct {
	launcher *Launcher
	config   PoolConfig

	made   atomic.Int64 // control groups
	mu     sync.Mutex
	stock  []*Ready
	spare  *cgroup.Group // with nothing in it, for a start from scratch
	closed bool
	wake   chan struct{}
	done   chan struct{}
}

// PoolConfig says what a [Pool] keeps ready.
type PoolConfig struct {
	// Usual is the kind: its namespaces, and what is mounted at /proc, /dev and /sys/fs/cgroup (see Prepare).
	Usual Config
	// Resources are the limits that most containers have; others are set when an init is used.
	Resources cgroup.Resources
	// Parent is where the control groups are made; it stays the caller's.
	Parent *cgroup.Parent
	// Prefix begins the names of the groups, which a number follows.
	Prefix string
	// Size is how many wait.
	Size int
	// Filled, if set, is called each time the pool has been filled, or could not be.
	Filled func()
}

// Ready is an init that waits in a control group of its own.
type Ready struct {
	*Waiting
	Group *cgroup.Group
	pool  *Pool
}

// settle is how long an init taken is not replaced, and the time between two that are made: the start that took it
// needs the processors more, and most commands that end soon have ended by then. For the last one nobody waits so long.
const settle = 20 * time.Millisecond

// NewPool begins to fill a pool. Close it before the launcher.
func (l *Launcher) NewPool(c PoolConfig) *Pool {
	p := &Pool{launcher: l, config: c, wake: make(chan struct{}, 1), done: make(chan struct{})}
	p.wake <- struct{}{}
	go p.fill()
	return p
}

// Fits reports whether an init of the pool can become c, as far as its namespaces say.
func (p *Pool) Fits(c *Config) bool {
	return c.Namespaces == p.config.Usual.Namespaces && len(c.UIDMappings) == 0
}

// Take gives an init that waits, or nil. Another is made in its place.
func (p *Pool) Take() *Ready {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.stock) == 0 || p.closed {
		return nil
	}
	r := p.stock[0]
	p.stock = p.stock[1:]
	p.order()
	return r
}

// order has what was taken replaced. The lock is held.
func (p *Pool) order() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Start is [Launcher.Start] in an init of the pool, with these limits. If none waits, or c is of another kind, the
// container is started from scratch. It gives the control group that it is in, which the caller deletes.
func (p *Pool) Start(ctx context.Context, c *Config, limits cgroup.Resources, io IO) (*Process, *cgroup.Group, error) {
	var r *Ready
	if p.Fits(c) {
		r = p.Take()
	}
	if r != nil {
		err := r.Limit(limits)
		var proc *Process
		if err == nil {
			proc, err = r.Start(ctx, c, io)
		}
		if err == nil {
			return proc, r.Group, nil
		}
		r.Discard()
		if !errors.Is(err, ErrShape) {
			return nil, nil, err
		}
	}
	group, err := p.Group(limits)
	if err != nil {
		return nil, nil, err
	}
	io.Cgroup = group
	proc, err := p.launcher.Start(ctx, c, io)
	if err != nil {
		return nil, nil, errors.Join(err, group.Delete(), group.Close())
	}
	return proc, group, nil
}

// Group gives a control group of the pool with these limits, for a process that is started from scratch. One is kept
// ready. It is the caller's.
func (p *Pool) Group(limits cgroup.Resources) (*cgroup.Group, error) {
	p.mu.Lock()
	g := p.spare
	p.spare = nil
	if g != nil && !p.closed {
		p.order()
	}
	p.mu.Unlock()
	if g == nil {
		return p.group(limits)
	}
	if err := p.limit(g, limits); err != nil {
		return nil, errors.Join(err, g.Delete(), g.Close())
	}
	return g, nil
}

// group makes the next control group. A name may be taken: by what a process of the same prefix has left.
func (p *Pool) group(limits cgroup.Resources) (*cgroup.Group, error) {
	for {
		g, err := p.config.Parent.Create(fmt.Sprintf("%s%d", p.config.Prefix, p.made.Add(1)), limits)
		if !errors.Is(err, cgroup.ErrExists) {
			return g, err
		}
	}
}

// Limit gives the control group the limits that a container is to have.
func (r *Ready) Limit(limits cgroup.Resources) error {
	return r.pool.limit(r.Group, limits)
}

func (p *Pool) limit(g *cgroup.Group, limits cgroup.Resources) error {
	if reflect.DeepEqual(limits, p.config.Resources) {
		return nil
	}
	return g.Set(limits)
}

// Discard ends the init, whatever has become of it, and removes the control group.
func (r *Ready) Discard() {
	r.Waiting.Discard()
	r.Group.Delete()
	r.Group.Close()
}

// fill works until the pool is closed.
func (p *Pool) fill() {
	defer close(p.done)
	for range p.wake {
		for p.lacking() {
			if p.len() > 0 {
				time.Sleep(settle)
			}
			r, err := p.make()
			if err != nil {
				break // out of processes or memory: the next start tries again
			}
			if !p.put(r) {
				r.Discard()
			}
		}
		p.fillGroup()
		if p.config.Filled != nil {
			p.config.Filled()
		}
	}
}

// fillGroup makes the spare group, if there is none. Without it one is made when needed.
func (p *Pool) fillGroup() {
	p.mu.Lock()
	missing := p.spare == nil && !p.closed
	p.mu.Unlock()
	if !missing {
		return
	}
	g, err := p.group(p.config.Resources)
	if err != nil {
		return
	}
	p.mu.Lock()
	if !p.closed {
		p.spare, g = g, nil
	}
	p.mu.Unlock()
	if g != nil {
		g.Delete()
		g.Close()
	}
}

func (p *Pool) lacking() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.closed && len(p.stock) < p.config.Size
}

func (p *Pool) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.stock)
}

func (p *Pool) put(r *Ready) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.stock = append(p.stock, r)
	}
	return !p.closed
}

func (p *Pool) make() (*Ready, error) {
	g, err := p.group(p.config.Resources)
	if err != nil {
		return nil, err
	}
	w, err := p.launcher.Prepare(&p.config.Usual, g)
	if err != nil {
		return nil, errors.Join(err, g.Delete(), g.Close())
	}
	return &Ready{w, g, p}, nil
}

// Close ends the inits that wait, and returns when nothing is left of them. Containers that were started go on.
func (p *Pool) Close() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	stock, spare := p.stock, p.spare
	p.stock, p.spare = nil, nil
	p.mu.Unlock()
	close(p.wake)
	<-p.done
	if spare != nil {
		spare.Delete()
		spare.Close()
	}
	for _, r := range stock {
		r.Discard()
	}
}
