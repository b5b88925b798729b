package slot

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"berth/internal/faultpoint"
	"berth/libcontainer/netlink"
	"berth/libcontainer/netns"
)

var addressFreed = faultpoint.Declare("netd.address-freed", "a slot's interface is gone and its address free again")

// Reaper takes slots apart in the background. It lets go of the namespace
// first; if no process is left in there the kernel removes it, and with it the
// interface, in batches of its own. What is still there after a while is
// deleted, in one request for all of them. Only then is an address free.
type Reaper struct {
	host   *netlink.Conn
	client *netns.Client
	group  uint32
	log    hclog.Logger

	mu    sync.Mutex
	dying []dying
	wake  chan struct{}
	empty *sync.Cond
}

type dying struct {
	slot    *Slot
	free    func()
	since   time.Time
	dropped bool
}

// Pace of the reaper. Namespaces usually vanish within 50 ms.
const (
	look     = 50 * time.Millisecond
	patience = time.Second
	batch    = 64
)

// NewReaper returns a reaper that marks what it must delete itself with the
// device group, which nobody else uses.
func NewReaper(host *netlink.Conn, client *netns.Client, group uint32, log hclog.Logger) *Reaper {
	r := &Reaper{host: host, client: client, group: group, log: log, wake: make(chan struct{}, 1)}
	r.empty = sync.NewCond(&r.mu)
	return r
}

// Take takes the slot over and calls free once its address is nobody's. The
// caller has seen to it that the firewall lets nothing more pass from it.
func (r *Reaper) Take(s *Slot, free func()) {
	r.mu.Lock()
	r.dying = append(r.dying, dying{slot: s, free: free, since: time.Now()})
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Drain waits until nothing that was taken before is left, or ctx is done.
func (r *Reaper) Drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.empty.Broadcast()
	})
	defer stop()
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
			r.round(ctx, patience)
			wait(ctx, look)
		}
	}
}

func (r *Reaper) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for range 1 + r.Pending()/batch {
		r.round(ctx, 0)
	}
}

// round drops namespaces, looks which interfaces are gone, and deletes those
// that should have been for longer than patience.
func (r *Reaper) round(ctx context.Context, patience time.Duration) {
	r.mu.Lock()
	work := append([]dying(nil), r.dying[:min(batch, len(r.dying))]...)
	r.mu.Unlock()
	if len(work) == 0 {
		return
	}
	r.drop(ctx, work)
	links, err := r.host.Links()
	if err != nil {
		r.log.Warn("cannot list interfaces", "error", err)
		return
	}
	index := make(map[string]int, len(links))
	for _, l := range links {
		index[l.Name] = l.Index
	}
	var doomed netlink.Batch
	gone := map[*Slot]bool{}
	for _, d := range work {
		i, there := index[d.slot.Port]
		switch {
		case !there:
			gone[d.slot] = true
		case time.Since(d.since) > patience:
			doomed.SetGroup(i, r.group)
		}
	}
	if doomed.Len() > 0 {
		doomed.DeleteGroup(r.group)
		if err := r.host.Do(&doomed); err != nil {
			r.log.Warn("cannot delete interfaces", "error", err)
		}
	}
	r.forget(work, gone)
}

// drop has execd let go of the namespaces; while it is away they wait.
func (r *Reaper) drop(ctx context.Context, work []dying) {
	var ids []string
	for _, d := range work {
		if !d.dropped {
			ids = append(ids, d.slot.Namespace)
		}
	}
	if len(ids) == 0 || r.client.Drop(ctx, ids...) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range work {
		r.dying[i].dropped = true // work is the head of dying, and only round shortens it
	}
}

// forget frees the addresses of what is gone, and puts what is not behind those
// nobody has looked at yet. A slot whose namespace could not be dropped stays,
// so that it will be.
func (r *Reaper) forget(work []dying, gone map[*Slot]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	looked, rest := r.dying[:len(work)], r.dying[len(work):]
	next := append([]dying(nil), rest...)
	for _, d := range looked {
		if !gone[d.slot] || !d.dropped {
			next = append(next, d)
			continue
		}
		d.free()
		if err := addressFreed.Hit(); err != nil {
			r.log.Warn("after freeing an address", "error", err)
		}
	}
	r.dying = next
	if len(next) == 0 {
		r.empty.Broadcast()
	}
}
