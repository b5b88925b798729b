// Package ipam hands out the addresses of a subnet, and chooses subnets that
// are not in use on the host. It is a ledger in memory: what must survive is
// recorded by those who hold the addresses.
package ipam

import (
	"net"
	"net/netip"
	"sync"

	"berth/internal/fault"
)

// Subnet is the ledger of one IPv4 subnet. Its methods may be called from any
// goroutine.
type Subnet struct {
	prefix  netip.Prefix
	gateway netip.Addr
	last    netip.Addr // the broadcast address

	mu     sync.Mutex
	taken  map[netip.Addr]struct{}
	cursor netip.Addr // the address handed out last
}

// NewSubnet returns a ledger with the gateway taken. The prefix is masked.
func NewSubnet(prefix netip.Prefix, gateway netip.Addr) *Subnet {
	return &Subnet{
		prefix:  prefix.Masked(),
		gateway: gateway,
		last:    lastOf(prefix),
		taken:   map[netip.Addr]struct{}{gateway: {}},
		cursor:  prefix.Masked().Addr(),
	}
}

// Prefix is the subnet.
func (s *Subnet) Prefix() netip.Prefix { return s.prefix }

// Gateway is the address of the bridge in it.
func (s *Subnet) Gateway() netip.Addr { return s.gateway }

// Take hands out the next free address behind the one handed out last, so that
// an address rests as long as possible before it is somebody else's: caches of
// it elsewhere have expired by then. ResourceExhausted if there is none.
func (s *Subnet) Take() (netip.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := s.after(s.cursor); ; a = s.after(a) {
		if _, used := s.taken[a]; !used && s.usable(a) {
			s.taken[a] = struct{}{}
			s.cursor = a
			return a, nil
		}
		if a == s.cursor {
			return netip.Addr{}, fault.ResourceExhausted.Errorf("NO_ADDRESS_LEFT", "no address is left in subnet %s", s.prefix).
				With("subnet", s.prefix.String()).
				Hint("remove containers, or create a network with a larger subnet")
		}
	}
}

// TakeThis hands out a particular address. InvalidArgument if it is not a
// host's address in the subnet, AlreadyExists if it is taken.
func (s *Subnet) TakeThis(a netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.prefix.Contains(a) || !s.usable(a) {
		return fault.InvalidArgument.Errorf("ADDRESS_NOT_USABLE", "%s is not a usable address of subnet %s", a, s.prefix).
			With("address", a.String()).With("subnet", s.prefix.String())
	}
	if _, used := s.taken[a]; used {
		return fault.AlreadyExists.Errorf("ADDRESS_IN_USE", "address %s is already in use", a).With("address", a.String())
	}
	s.taken[a] = struct{}{}
	return nil
}

// Restore notes an address as taken since before a restart; those restored last
// are taken for the ones handed out last.
func (s *Subnet) Restore(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.prefix.Contains(a) {
		s.taken[a] = struct{}{}
		s.cursor = a
	}
}

// Free takes an address back. Freeing what is not taken does nothing.
func (s *Subnet) Free(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a != s.gateway {
		delete(s.taken, a)
	}
}

// InUse is the number of addresses taken, the gateway not counted.
func (s *Subnet) InUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.taken) - 1
}

func (s *Subnet) usable(a netip.Addr) bool { return a != s.prefix.Addr() && a != s.last }

// after is the address that follows, around the end of the subnet.
func (s *Subnet) after(a netip.Addr) netip.Addr {
	if next := a.Next(); s.prefix.Contains(next) {
		return next
	}
	return s.prefix.Addr()
}

// lastOf is the highest address of an IPv4 prefix.
func lastOf(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	mask := net.CIDRMask(p.Bits(), 32)
	for i := range a {
		a[i] |= ^mask[i]
	}
	return netip.AddrFrom4(a)
}

// MAC derives the hardware address that goes with an IPv4 address: locally
// administered, and the same whenever the address is, so that nobody's ARP
// cache is ever wrong about it.
func MAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}
