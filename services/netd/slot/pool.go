package slot

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Pool keeps slots of one network ready, so that a start waits for nothing but
// a lock. It makes them several at a time, which costs less than one by one:
//
//   - what a lone start took is replaced when nobody has started anything for a
//     while, for until then the processors are wanted elsewhere;
//   - in a burst, when half of the slots are gone;
//   - who finds none is given one of the next few, which are made at once.
type Pool struct {
	size int
	make func(ctx context.Context, n int) ([]*Slot, error)
	drop func(*Slot)
	log  hclog.Logger

	mu      sync.Mutex
	ready   []*Slot
	waiting []chan *Slot // who found none, the longest waiting first; each is sent one slot, or nil
	closed  bool         // slots cannot be made now: nobody waits for one
	taken   time.Time    // the last time
	epoch   int          // a slot begun in an earlier epoch is not worth keeping
	wake    chan struct{}
}

const (
	// settle is how long after the last start slots are replaced.
	settle = 100 * time.Millisecond
	// atOnce bounds the slots made together, and so what somebody waits who comes
	// a moment too late: some 1 ms each.
	atOnce = 8
)

// NewPool returns a pool of size slots made by make, which may make fewer than
// it is asked for; those the pool parts with unused go to drop. [Pool.Run] fills
// it.
func NewPool(size int, make_ func(context.Context, int) ([]*Slot, error), drop func(*Slot), log hclog.Logger) *Pool {
	return &Pool{size: size, make: make_, drop: drop, log: log, wake: make(chan struct{}, 1)}
}

// Take returns a slot, or nil if there is none and none can be made soon; the
// caller then makes its own, and is told why not.
func (p *Pool) Take(ctx context.Context) *Slot {
	p.mu.Lock()
	if p.size == 0 || p.closed && len(p.ready) == 0 {
		p.mu.Unlock()
		return nil
	}
	p.taken = time.Now()
	poke(p.wake)
	if len(p.ready) > 0 {
		s := p.ready[0]
		p.ready = p.ready[1:]
		p.mu.Unlock()
		return s
	}
	mine := make(chan *Slot, 1)
	p.waiting = append(p.waiting, mine)
	p.mu.Unlock()
	select {
	case s := <-mine:
		return s
	case <-ctx.Done():
	}
	p.mu.Lock()
	p.waiting = slices.DeleteFunc(p.waiting, func(c chan *Slot) bool { return c == mine })
	select {
	case s := <-mine: // it was sent meanwhile
		if s != nil {
			p.ready = append(p.ready, s)
		}
	default:
	}
	p.mu.Unlock()
	return nil
}

// Discard parts with all slots: their namespaces are gone, or their bridge.
func (p *Pool) Discard() {
	p.mu.Lock()
	old := p.ready
	p.ready = nil
	p.epoch++
	poke(p.wake)
	p.mu.Unlock()
	for _, s := range old {
		p.drop(s)
	}
}

// Lost parts with the slot whose interface on the host is port, if it is here.
func (p *Pool) Lost(port string) {
	p.mu.Lock()
	i := slices.IndexFunc(p.ready, func(s *Slot) bool { return s.Port == port })
	if i < 0 {
		p.mu.Unlock()
		return
	}
	s := p.ready[i]
	p.ready = slices.Delete(p.ready, i, i+1)
	poke(p.wake)
	p.mu.Unlock()
	p.drop(s)
}

// Len is the number of slots ready.
func (p *Pool) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready)
}

// Run keeps the pool filled until ctx is done. It tries again after a while when
// slots cannot be made.
func (p *Pool) Run(ctx context.Context) {
	defer p.close()
	const first, longest = 100 * time.Millisecond, 5 * time.Second
	pause := first
	for ctx.Err() == nil {
		n, later, epoch := p.lack()
		if n == 0 {
			p.sleep(ctx, later)
			continue
		}
		made, err := p.make(ctx, n)
		if err != nil {
			p.close()
			p.log.Debug("pool slots not made", "count", n, "error", err, "retry_in", pause)
			wait(ctx, pause)
			pause = min(2*pause, longest)
			continue
		}
		pause = first
		p.hand(made, epoch)
	}
}

// lack is the number of slots to make now. If that is none, it is time to ask
// again later, or (0) when somebody has taken one.
func (p *Pool) lack() (now int, later time.Duration, epoch int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	missing := p.size - len(p.ready)
	quiet := time.Since(p.taken)
	switch {
	case len(p.waiting) > 0:
		now = len(p.waiting)
	case missing <= 0:
	case len(p.ready) <= p.size/2 || quiet >= settle:
		now = missing
	default:
		later = settle - quiet
	}
	return min(now, atOnce), later, p.epoch
}

// hand gives slots to those who wait, and keeps the others.
func (p *Pool) hand(made []*Slot, epoch int) {
	p.mu.Lock()
	stale := epoch != p.epoch
	if !stale {
		p.closed = false
		n := min(len(p.waiting), len(made))
		for i, c := range p.waiting[:n] {
			c <- made[i]
		}
		p.waiting = p.waiting[n:]
		p.ready = append(p.ready, made[n:]...)
	}
	p.mu.Unlock()
	if stale {
		for _, s := range made {
			p.drop(s)
		}
	}
}

// close sends everybody away who waits, until slots are made again.
func (p *Pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.waiting {
		c <- nil
	}
	p.waiting = nil
}

// sleep waits until a slot is taken or, unless d is 0, for that long.
func (p *Pool) sleep(ctx context.Context, d time.Duration) {
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-p.wake:
		case <-t.C:
		case <-ctx.Done():
		}
		return
	}
	select {
	case <-p.wake:
	case <-ctx.Done():
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
