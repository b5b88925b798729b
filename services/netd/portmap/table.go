package portmap

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"berth/internal/fault"
)

// Protocol is "tcp" or "udp".
type Protocol string

// The protocols that have ports to publish.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// Port is a port of the host.
type Port struct {
	IP       netip.Addr // unspecified: all addresses
	Number   uint16     // as a request, 0: any free one
	Protocol Protocol
}

// String is "8080/tcp", or "127.0.0.1:8080/tcp" when it is of one address.
func (p Port) String() string {
	if p.IP.IsValid() && !p.IP.IsUnspecified() {
		return fmt.Sprintf("%s:%d/%s", p.IP, p.Number, p.Protocol)
	}
	return fmt.Sprintf("%d/%s", p.Number, p.Protocol)
}

// Table holds ports for their owners. Its methods may be called from any
// goroutine.
type Table struct {
	low, high uint16 // of ports given to those who ask for any

	mu   sync.Mutex
	held map[slot][]*holding
}

type slot struct {
	number   uint16
	protocol Protocol
}

type holding struct {
	Port
	owner    string
	socket   int           // -1: the port is held without one, see Restore
	leaving  bool          // Leave was called
	released chan struct{} // closed when the port is free again
}

// NewTable returns an empty table. Owners who do not care get ports from the
// range the kernel uses for the same purpose.
func NewTable() *Table {
	t := &Table{low: 32768, high: 60999, held: map[slot][]*holding{}}
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var low, high uint16
		if n, _ := fmt.Sscan(string(text), &low, &high); n == 2 && 0 < low && low < high {
			t.low, t.high = low, high
		}
	}
	return t
}

// Reserve holds the ports for owner, all or none, and returns them with the
// numbers filled in. A port whose owner is leaving is waited for. Kinds:
// AlreadyExists when a port is somebody else's, naming them where that can be
// found out; InvalidArgument for an address that is not the host's;
// ResourceExhausted when no port is free.
func (t *Table) Reserve(ctx context.Context, owner string, ports []Port) (_ []Port, err error) {
	got := make([]Port, 0, len(ports))
	defer func() {
		if err != nil {
			t.release(owner, got)
		}
	}()
	for _, p := range ports {
		if p.Number == 0 {
			p, err = t.reserveAny(owner, p)
		} else {
			err = t.reserve(ctx, owner, p)
		}
		if err != nil {
			return nil, err
		}
		got = append(got, p)
	}
	return got, nil
}

// reserve holds one port of a given number.
func (t *Table) reserve(ctx context.Context, owner string, p Port) error {
	for {
		other, err := t.try(owner, p)
		switch {
		case err != nil:
			return err
		case other == nil:
			return nil
		case !other.leaving:
			return inUse(p, other.owner)
		}
		select {
		case <-other.released:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reserveAny holds the first free port from a random one on.
func (t *Table) reserveAny(owner string, p Port) (Port, error) {
	span := int(t.high-t.low) + 1
	start := rand.IntN(span)
	for i := range span {
		p.Number = t.low + uint16((start+i)%span)
		other, err := t.try(owner, p)
		if other == nil && err == nil {
			return p, nil
		}
		if err != nil && !errors.Is(err, fault.AlreadyExists) {
			return p, err
		}
	}
	return p, fault.ResourceExhausted.Errorf("NO_PORT_LEFT", "no %s port is left between %d and %d", p.Protocol, t.low, t.high)
}

// try holds p if it can. It returns who has it in the table, or the error of
// the bind.
func (t *Table) try(owner string, p Port) (*holding, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := slot{p.Number, p.Protocol}
	for _, h := range t.held[s] {
		if h.IP == p.IP || h.IP.IsUnspecified() || p.IP.IsUnspecified() {
			return &holding{owner: h.owner, leaving: h.leaving, released: h.released}, nil
		}
	}
	socket, err := bind(p)
	if err != nil {
		return nil, explain(p, err)
	}
	t.held[s] = append(t.held[s], &holding{Port: p, owner: owner, socket: socket, released: make(chan struct{})})
	return nil, nil
}

// Restore holds ports that were owner's before a restart. They are held even
// where the bind fails now: their traffic has been translated all the while.
// The error tells of those.
func (t *Table) Restore(owner string, ports []Port) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, p := range ports {
		socket, err := bind(p)
		if err != nil {
			socket = -1
			errs = append(errs, explain(p, err))
		}
		s := slot{p.Number, p.Protocol}
		t.held[s] = append(t.held[s], &holding{Port: p, owner: owner, socket: socket, released: make(chan struct{})})
	}
	return errors.Join(errs...)
}

// Leave says that owner is about to release its ports: whoever asks for one of
// them from now on waits for it.
func (t *Table) Leave(owner string, ports []Port) {
	t.each(owner, ports, func(h *holding) { h.leaving = true })
}

// Release makes owner's ports free for others.
func (t *Table) Release(owner string, ports []Port) { t.release(owner, ports) }

func (t *Table) release(owner string, ports []Port) {
	t.each(owner, ports, func(h *holding) {
		if h.socket >= 0 {
			syscall.Close(h.socket)
		}
		close(h.released)
		s := slot{h.Number, h.Protocol}
		for i, other := range t.held[s] {
			if other == h {
				t.held[s] = append(t.held[s][:i:i], t.held[s][i+1:]...)
				break
			}
		}
		if len(t.held[s]) == 0 {
			delete(t.held, s)
		}
	})
}

// each visits those of ports that owner holds.
func (t *Table) each(owner string, ports []Port, visit func(*holding)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range ports {
		for _, h := range t.held[slot{p.Number, p.Protocol}] {
			if h.owner == owner && h.IP == p.IP {
				visit(h)
				break
			}
		}
	}
}

// Len is the number of ports held.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, hs := range t.held {
		n += len(hs)
	}
	return n
}

func inUse(p Port, by string) error {
	return fault.AlreadyExists.Errorf("PORT_IN_USE", "port %s is already in use by %s", p, by).
		With("port", strconv.Itoa(int(p.Number))).With("protocol", string(p.Protocol)).With("holder", by)
}

// explain turns the errno of a bind into a sentence.
func explain(p Port, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return inUse(p, listener(p))
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fault.InvalidArgument.Errorf("NOT_A_HOST_ADDRESS", "port %s cannot be published: %s is not an address of this host", p, p.IP).
			With("address", p.IP.String())
	case errors.Is(err, syscall.EACCES):
		return fault.PermissionDenied.Errorf("PORT_PRIVILEGED", "port %s cannot be published: netd lacks CAP_NET_BIND_SERVICE", p)
	}
	return fmt.Errorf("bind port %s: %w", p, err)
}

// ParseProtocol accepts "tcp", "udp" and, for tcp, nothing.
func ParseProtocol(s string) (Protocol, error) {
	switch p := Protocol(strings.ToLower(s)); p {
	case "":
		return TCP, nil
	case TCP, UDP:
		return p, nil
	}
	return "", fault.InvalidArgument.Errorf("UNKNOWN_PROTOCOL", "protocol %q cannot be published: want tcp or udp", s).With("protocol", s)
}
