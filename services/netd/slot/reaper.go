package slot

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"berth/internal/faultpoint"
	"berth/libcontainer/netlink"
	"berth/libcontainer/netns"
	"berth/services/netd/firewall"
)

var addressFreed = faultpoint.Declare("netd.address-freed", "a slot's interface is gone and its address free again")

// Reaper takes slots apart in the background, many together: the firewall
// forgets them in one transaction, one request lets go of their namespaces, and
// the kernel removes those that no process is left in, with their interfaces, in
// batches of its own. [Reaper.Gone] is told of each. What is still there after a
// while is deleted, in one request for all. Only then is an address free.
type Reaper struct {
	host   *netlink.Conn
	client *netns.Client
	walls  Walls
	group  uint32
	log    hclog.Logger

	mu    sync.Mutex
	dying map[string]*dying // by interface on the host
	held  []*dying          // those whose namespaces execd holds still
	wake  chan struct{}     // something was taken
	hurry chan struct{}     // somebody waits for an address
	empty *sync.Cond
}

type dying struct {
	slot  *Slot
	free  func()
	since time.Time // when its namespace was let go of, or zero
	gone  bool      // its interface is
}

// Pace of the reaper. Namespaces usually vanish within 50 ms.
const (
	look     = 50 * time.Millisecond // what comes meanwhile is taken apart together
	patience = time.Second
	batch    = 64
)

// NewReaper returns a reaper that marks what it must delete itself with the
// device group, which nobody else uses.
func NewReaper(host *netlink.Conn, client *netns.Client, walls Walls, group uint32, log hclog.Logger) *Reaper {
	r := &Reaper{host: host, client: client, walls: walls, group: group, log: log,
		dying: map[string]*dying{}, wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1)}
	r.empty = sync.NewCond(&r.mu)
	return r
}

// Take takes the slot over and calls free once its address is nobody's.
func (r *Reaper) Take(s *Slot, free func()) {
	d := &dying{slot: s, free: free}
	r.mu.Lock()
	r.dying[s.Port] = d
	r.held = append(r.held, d)
	r.mu.Unlock()
	poke(r.wake)
}

// Gone is to be called when an interface of the host has been deleted. It
// reports whether that was to be expected.
func (r *Reaper) Gone(port string) bool {
	r.mu.Lock()
	d := r.dying[port]
	if d != nil {
		d.gone = true
	}
	free := d != nil && r.finished(d)
	r.mu.Unlock()
	if free {
		r.release(d)
	}
	return d != nil
}

// finished reports whether nothing is left of d, and then forgets it. It needs
// the lock; the caller releases the address without it.
func (r *Reaper) finished(d *dying) bool {
	if !d.gone || d.since.IsZero() {
		return false
	}
	delete(r.dying, d.slot.Port)
	return true
}

func (r *Reaper) release(d *dying) {
	d.free()
	if err := addressFreed.Hit(); err != nil {
		r.log.Warn("after freeing an address", "error", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.dying) == 0 {
		r.empty.Broadcast()
	}
}

// Drain waits until nothing is left, or ctx is done.
func (r *Reaper) Drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.empty.Broadcast()
	})
	defer stop()
	poke(r.hurry)
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.dying) > 0 && ctx.Err() == nil {
		r.empty.Wait()
	}
}

// Pending is the number of slots being taken apart.
func (r *Reaper) Pending() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.dying)
}

// Run works until ctx is done, and then finishes what it has, without patience.
func (r *Reaper) Run(ctx context.Context) {
	defer r.finish()
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return
		}
		for r.Pending() > 0 && ctx.Err() == nil {
			r.pause(ctx)
			r.round(ctx, patience)
		}
	}
}

// pause until it is time for a round.
func (r *Reaper) pause(ctx context.Context) {
	r.mu.Lock()
	busy := len(r.held) > 0
	r.mu.Unlock()
	d, wake := look, (<-chan struct{})(nil)
	if !busy { // nothing but to see that all vanish
		d, wake = patience, r.wake
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.hurry:
	case <-ctx.Done():
	case <-wake:
		wait(ctx, look)
	}
}

func (r *Reaper) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for range 1 + r.Pending()/batch {
		r.round(ctx, 0)
	}
}

// round lets go of slots that were taken, and deletes interfaces that should
// have vanished for longer than patience.
func (r *Reaper) round(ctx context.Context, patience time.Duration) {
	r.letGo(ctx)
	r.mu.Lock()
	var late []*dying
	for _, d := range r.dying {
		if !d.since.IsZero() && time.Since(d.since) >= patience {
			late = append(late, d)
		}
	}
	r.mu.Unlock()
	var doomed netlink.Batch
	for _, d := range late {
		link, err := r.host.LinkByName(d.slot.Port)
		switch {
		case errors.Is(err, syscall.ENODEV): // news of it was lost
			r.Gone(d.slot.Port)
		case err != nil:
			r.log.Warn("cannot look for an interface", "interface", d.slot.Port, "error", err)
		default:
			doomed.SetGroup(link.Index, r.group)
		}
	}
	if doomed.Len() > 0 {
		doomed.DeleteGroup(r.group)
		if err := r.host.Do(&doomed); err != nil {
			r.log.Warn("cannot delete interfaces", "error", err)
		}
	}
}

// letGo cuts slots off and has execd let go of their namespaces; while it is
// away they wait.
func (r *Reaper) letGo(ctx context.Context) {
	r.mu.Lock()
	work := r.held[:min(batch, len(r.held))]
	r.mu.Unlock() // only letGo shortens held
	if len(work) == 0 {
		return
	}
	var cut firewall.Elements
	ids := make([]string, len(work))
	for i, d := range work {
		cut.Sources = append(cut.Sources, d.slot.Source())
		ids[i] = d.slot.Namespace
	}
	if err := r.walls.Update(firewall.Elements{}, cut); err != nil {
		r.log.Warn("cannot take leave to send away", "interfaces", len(work), "error", err)
	}
	if r.client.Drop(ctx, ids...) != nil {
		return
	}
	now := time.Now()
	var done []*dying
	r.mu.Lock()
	r.held = append([]*dying(nil), r.held[len(work):]...)
	for _, d := range work {
		if d.since = now; r.finished(d) {
			done = append(done, d)
		}
	}
	r.mu.Unlock()
	for _, d := range done {
		r.release(d)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
