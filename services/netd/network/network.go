// Package network keeps the records of networks, and brings their bridges up.
package network

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/fault"
	"berth/internal/journal"
	"berth/internal/names"
	"berth/libcontainer/netlink"
	"berth/services/netd/bridge"
	"berth/services/netd/firewall"
	"berth/services/netd/ipam"
	"berth/services/netd/slot"
)

// Names of the networks that always exist.
const (
	Default = "bridge"
	Host    = "host"
	None    = "none"
)

// Drivers.
const DriverBridge = "bridge"

// Record is a network as it is kept.
type Record struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Driver   string            `json:"driver"`
	Bridge   string            `json:"bridge,omitempty"` // interface name
	Subnet   netip.Prefix      `json:"subnet,omitzero"`
	Gateway  netip.Addr        `json:"gateway,omitzero"`
	Internal bool              `json:"internal,omitempty"`
	MTU      int               `json:"mtu,omitempty"` // 0: the engine's
	Labels   map[string]string `json:"labels,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
	Created  time.Time         `json:"created"`
}

// Network is a network in operation. Record does not change.
type Network struct {
	Record
	ledger *ipam.Subnet

	mu     sync.Mutex
	place  slot.Network
	users  int  // endpoints, and those being made
	closed bool // about to be removed
}

// Place is where slots of the network are made.
func (n *Network) Place() *slot.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.place
	return &p
}

// Enter counts one more user. FailedPrecondition if the network is being removed.
func (n *Network) Enter() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return fault.FailedPrecondition.Errorf("NETWORK_CLOSING", "network %s is being removed", n.Name).With("network", n.Name)
	}
	n.users++
	return nil
}

// Leave counts one user less.
func (n *Network) Leave() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.users--
}

// Close lets nobody enter any more. FailedPrecondition if somebody is in.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.users > 0 {
		return fault.FailedPrecondition.Errorf("NETWORK_IN_USE", "network %s is in use, by %d endpoint(s)", n.Name, n.users).
			With("network", n.Name).Hint("remove or disconnect them first")
	}
	n.closed = true
	return nil
}

// Closed reports whether the network is being removed.
func (n *Network) Closed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closed
}

// Ledger holds the network's addresses.
func (n *Network) Ledger() *ipam.Subnet { return n.ledger }

// Wall is what the firewall knows of the network.
func (n *Network) Wall() firewall.Network {
	return firewall.Network{Bridge: n.Bridge, Subnet: n.Subnet, Internal: n.Internal}
}

// Up makes the network's bridge, or puts it right.
func (n *Network) Up(host *netlink.Conn, mtu int) error {
	if n.Driver != DriverBridge {
		return nil
	}
	mtu = cmp.Or(n.MTU, mtu)
	b := bridge.Bridge{Name: n.Bridge, Address: netip.PrefixFrom(n.Gateway, n.Subnet.Bits()), MAC: ipam.MAC(n.Gateway), MTU: mtu}
	index, err := b.Ensure(host)
	if err != nil {
		return fmt.Errorf("bring up network %s: %w", n.Name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.place = slot.Network{Bridge: index, MTU: mtu, Subnet: n.ledger}
	return nil
}

// Registry holds all networks.
type Registry struct {
	journal *journal.Journal

	mu   sync.Mutex
	byID map[string]*Network
}

const keyPrefix = "network/"

// Open reads the records. Host and none need none.
func Open(j *journal.Journal) (*Registry, error) {
	r := &Registry{journal: j, byID: map[string]*Network{}}
	for _, name := range []string{Host, None} {
		sum := sha256.Sum256([]byte("berth network " + name))
		r.keep(Record{ID: hex.EncodeToString(sum[:]), Name: name, Driver: name})
	}
	for key, value := range j.Range(keyPrefix) {
		var rec Record
		if err := json.Unmarshal(value, &rec); err != nil {
			return nil, fault.DataLoss.Errorf("RECORD_DAMAGED", "record %s: %w", key, err)
		}
		r.keep(rec)
	}
	return r, nil
}

func (r *Registry) keep(rec Record) *Network {
	n := &Network{Record: rec}
	if rec.Driver == DriverBridge {
		n.ledger = ipam.NewSubnet(rec.Subnet, rec.Gateway)
	}
	r.byID[rec.ID] = n
	return n
}

// List returns all networks, by name.
func (r *Registry) List() []*Network {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.byID), func(a, b *Network) int { return cmp.Compare(a.Name, b.Name) })
}

// Find returns the network of that name, id, or unambiguous beginning of an id.
// NotFound if there is none.
func (r *Registry) Find(ref string) (*Network, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.find(ref)
}

func (r *Registry) find(ref string) (*Network, error) {
	if n := r.byID[ref]; n != nil {
		return n, nil
	}
	var found []*Network
	for id, n := range r.byID {
		if n.Name == ref {
			return n, nil
		}
		if ref != "" && strings.HasPrefix(id, ref) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fault.NotFound.Errorf("NETWORK_NOT_FOUND", "no such network: %s", ref).With("network", ref)
	}
	return nil, fault.InvalidArgument.Errorf("NETWORK_AMBIGUOUS", "network id %s is ambiguous: %d begin with it", ref, len(found)).With("network", ref)
}

// Create records a network, durably. Missing in rec are ID, Created, and what
// the caller left open: Gateway (the subnet's first address). Kinds:
// AlreadyExists for a name taken or a subnet that overlaps another network's;
// InvalidArgument.
func (r *Registry) Create(rec Record) (*Network, error) {
	if !names.Valid(rec.Name) {
		return nil, fault.InvalidArgument.Errorf("BAD_NAME", "network name %q: want letters, digits and _.-, beginning with a letter or digit", rec.Name)
	}
	if err := checkSubnet(&rec); err != nil {
		return nil, err
	}
	rec.ID, rec.Created = RandomID(), time.Now().UTC()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.byID {
		if n.Name == rec.Name {
			return nil, fault.AlreadyExists.Errorf("NETWORK_EXISTS", "network %s already exists", rec.Name).With("network", rec.Name)
		}
		if n.Driver == DriverBridge && n.Subnet.Overlaps(rec.Subnet) {
			return nil, fault.AlreadyExists.Errorf("SUBNET_IN_USE", "subnet %s overlaps %s of network %s", rec.Subnet, n.Subnet, n.Name).
				With("subnet", rec.Subnet.String()).With("network", n.Name)
		}
	}
	value, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	if err := r.journal.Put(keyPrefix+rec.ID, value, true); err != nil {
		return nil, fmt.Errorf("record network %s: %w", rec.Name, err)
	}
	return r.keep(rec), nil
}

// checkSubnet refuses what cannot be a subnet of containers, and chooses the
// gateway.
func checkSubnet(rec *Record) error {
	bad := func(format string, args ...any) error {
		return fault.InvalidArgument.Errorf("BAD_SUBNET", format, args...).With("subnet", rec.Subnet.String())
	}
	switch p := rec.Subnet; {
	case !p.IsValid() || !p.Addr().Is4():
		return bad("subnet %s is not an IPv4 subnet", p)
	case p != p.Masked():
		return bad("subnet %s has host bits set: did you mean %s?", p, p.Masked())
	case p.Bits() < 8 || p.Bits() > 30:
		return bad("subnet %s: want a prefix length of 8 to 30", p)
	case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast():
		return bad("subnet %s is reserved", p)
	}
	if !rec.Gateway.IsValid() {
		rec.Gateway = rec.Subnet.Addr().Next()
	}
	if err := ipam.NewSubnet(rec.Subnet, netip.Addr{}).TakeThis(rec.Gateway); err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	return nil
}

// Remove deletes a network's record, durably.
func (r *Registry) Remove(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.journal.Delete(keyPrefix+id, true); err != nil {
		return fmt.Errorf("delete the record of network %s: %w", id, err)
	}
	delete(r.byID, id)
	return nil
}

// Predefined reports whether the network always exists.
func (n *Network) Predefined() bool { return n.Name == Default || n.Name == Host || n.Name == None }

// RandomID is 64 random hex digits.
func RandomID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
