package conntrack

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// protocolUDP is its IP protocol number.
const protocolUDP = 17

// Sweeper forgets stale connections in the background, many at a time: reading
// the kernel's table takes some 10 ms even when it is empty.
type Sweeper struct {
	table *Table
	log   hclog.Logger

	mu        sync.Mutex
	gone      map[netip.Addr]bool   // containers that are no more
	published map[uint16]netip.Addr // UDP ports of the host, and who has them now
	wake      chan struct{}
}

// NewSweeper returns a sweeper of table; [Sweeper.Run] does its work.
func NewSweeper(table *Table, log hclog.Logger) *Sweeper {
	s := &Sweeper{table: table, log: log, wake: make(chan struct{}, 1)}
	s.reset()
	return s
}

func (s *Sweeper) reset() {
	s.gone, s.published = map[netip.Addr]bool{}, map[uint16]netip.Addr{}
}

// Gone has connections forgotten that were translated to a container, so that
// none is met by the next owner of its address or ports.
func (s *Sweeper) Gone(container netip.Addr) {
	s.note(func() { s.gone[container] = true })
}

// Published has UDP flows to a port of the host forgotten that are not
// translated to container: they are older than the port's publication.
func (s *Sweeper) Published(port uint16, container netip.Addr) {
	s.note(func() { s.published[port] = container })
}

func (s *Sweeper) note(fact func()) {
	s.mu.Lock()
	fact()
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run sweeps, at most twice a second, until ctx is done.
func (s *Sweeper) Run(ctx context.Context) {
	pause := time.NewTicker(500 * time.Millisecond)
	defer pause.Stop()
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		s.sweep()
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
	}
}

func (s *Sweeper) sweep() {
	s.mu.Lock()
	gone, published := s.gone, s.published
	s.reset()
	s.mu.Unlock()
	_, err := s.table.Forget(func(f Flow) bool {
		to := f.Reply.Src.Addr()
		if gone[to] && f.Original.Dst.Addr() != to {
			return true
		}
		now, ok := published[f.Original.Dst.Port()]
		return ok && f.Original.Protocol == protocolUDP && to != now && f.Original.Dst.Addr() != now
	})
	if err != nil {
		s.log.Warn("stale connections not forgotten", "error", err)
	}
}
