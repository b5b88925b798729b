package slot

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Pool keeps slots of one network ready, so that a start waits for nothing but
// a lock.
type Pool struct {
	size int
	make func(context.Context) (*Slot, error)
	drop func(*Slot)
	log  hclog.Logger

	mu    sync.Mutex
	ready []*Slot
	epoch int // a slot begun in an earlier epoch is not worth keeping
	wake  chan struct{}
}

// NewPool returns a pool of size slots made by make; those it parts with unused
// go to drop. [Pool.Run] fills it.
func NewPool(size int, make_ func(context.Context) (*Slot, error), drop func(*Slot), log hclog.Logger) *Pool {
	return &Pool{size: size, make: make_, drop: drop, log: log, wake: make(chan struct{}, 1)}
}

// Take returns a slot, or nil if none is ready; the caller then makes its own.
func (p *Pool) Take() *Slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.size == 0 {
		return nil
	}
	p.poke()
	if len(p.ready) == 0 {
		return nil
	}
	s := p.ready[0]
	p.ready = p.ready[1:]
	return s
}

// Discard parts with all slots: their namespaces are gone, or their bridge.
func (p *Pool) Discard() {
	p.mu.Lock()
	old := p.ready
	p.ready = nil
	p.epoch++
	p.poke()
	p.mu.Unlock()
	for _, s := range old {
		p.drop(s)
	}
}

// Len is the number of slots ready.
func (p *Pool) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready)
}

func (p *Pool) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// settle is how long a slot taken is not replaced, unless it was the last: the
// start that took it needs the processors more.
const settle = 20 * time.Millisecond

// Run keeps the pool full until ctx is done. It tries again after a while when
// a slot cannot be made; who is waiting meanwhile makes their own and is told.
func (p *Pool) Run(ctx context.Context) {
	const first, longest = 100 * time.Millisecond, 5 * time.Second
	pause := first
	for ctx.Err() == nil {
		switch full, err := p.fill(ctx); {
		case err != nil:
			p.log.Debug("pool slot not made", "error", err, "retry_in", pause)
			wait(ctx, pause)
			pause = min(2*pause, longest)
		case full:
			pause = first
			select {
			case <-p.wake:
			case <-ctx.Done():
			}
			if p.Len() > 0 {
				wait(ctx, settle)
			}
		}
	}
}

// fill adds one slot, unless the pool is full.
func (p *Pool) fill(ctx context.Context) (full bool, err error) {
	p.mu.Lock()
	full, epoch := len(p.ready) >= p.size, p.epoch
	p.mu.Unlock()
	if full {
		return true, nil
	}
	s, err := p.make(ctx)
	if err != nil {
		return false, err
	}
	p.mu.Lock()
	stale := epoch != p.epoch
	if !stale {
		p.ready = append(p.ready, s)
	}
	p.mu.Unlock()
	if stale {
		p.drop(s)
	}
	return false, nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
