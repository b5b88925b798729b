package slot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/internal/fault"
	"berth/internal/faultpoint"
	"berth/libcontainer/netlink"
	"berth/libcontainer/netns"
	"berth/services/netd/firewall"
	"berth/services/netd/ipam"
)

var (
	netnsMade    = faultpoint.Declare("netd.netns-made", "a namespace was obtained, nothing is in it yet")
	addressTaken = faultpoint.Declare("netd.address-taken", "an address was taken from the ledger, nothing uses it yet")
)

// Slot is one place in a network. It is plain data: records are made of it.
type Slot struct {
	Namespace string           `json:"namespace"` // the id execd holds the namespace under
	Port      string           `json:"port"`      // interface on the host
	Interface string           `json:"interface"` // interface in the namespace
	IP        netip.Addr       `json:"ip"`
	MAC       net.HardwareAddr `json:"mac"`
}

// Source is what the firewall lets the slot send.
func (s *Slot) Source() firewall.Source {
	return firewall.Source{Port: s.Port, MAC: s.MAC, IP: s.IP}
}

// Network is where slots are made.
type Network struct {
	Bridge int // interface index
	MTU    int
	Subnet *ipam.Subnet
}

// Request is what a slot is wanted to be; the zero Request: anything.
type Request struct {
	IP  netip.Addr
	MAC net.HardwareAddr
}

// Maker makes slots.
type Maker struct {
	host   *netlink.Conn
	client *netns.Client
	walls  Walls
	prefix string
	ipv6   *os.Root // the host's interfaces in /proc/sys; nil: no IPv6

	mu   sync.Mutex
	born map[string]bool // namespaces made by this process, until the first Sweep
}

// Walls is the part of the firewall that slots need.
type Walls interface {
	Update(add, remove firewall.Elements) error
}

// idDigits of random follow the prefix in the names of slots.
const idDigits = 8

// NewMaker returns a maker of slots whose host interfaces and namespaces are
// named prefix (at most 7 bytes) and 8 digits.
func NewMaker(host *netlink.Conn, client *netns.Client, walls Walls, prefix string) *Maker {
	ipv6, err := os.OpenRoot("/proc/sys/net/ipv6/conf")
	if err != nil {
		ipv6 = nil
	}
	return &Maker{host: host, client: client, walls: walls, prefix: prefix, ipv6: ipv6, born: map[string]bool{}}
}

// Make makes a slot; it is all there or nothing is left. Unavailable if execd,
// who makes namespaces, is away.
func (m *Maker) Make(ctx context.Context, n *Network, want Request) (*Slot, error) {
	made, err := m.make(ctx, n, []Request{want})
	if err != nil {
		return nil, err
	}
	return made[0], nil
}

// MakeBatch makes several slots, at most [netns.MaxNew], for little more than the
// kernel's own work: fewer only if the subnet has no more addresses, none with an
// error.
func (m *Maker) MakeBatch(ctx context.Context, n *Network, count int) ([]*Slot, error) {
	return m.make(ctx, n, make([]Request, count))
}

func (m *Maker) make(ctx context.Context, n *Network, wants []Request) (slots []*Slot, err error) {
	var undo cleanup
	defer undo.unless(&err)

	for _, want := range wants {
		s, err := m.plan(n, want)
		if err != nil && len(slots) > 0 {
			break // these at least
		}
		if err != nil {
			return nil, err
		}
		undo.add(func() { n.Subnet.Free(s.IP) })
		slots = append(slots, s)
		if err := addressTaken.Hit(); err != nil {
			return nil, err
		}
	}
	ids := make([]string, len(slots))
	for i, s := range slots {
		ids[i] = s.Namespace
		m.note(s.Namespace)
	}
	spaces, err := m.client.NewBatch(ctx, ids)
	if err != nil {
		return nil, unavailable(err)
	}
	defer func() {
		for _, ns := range spaces {
			ns.Close()
		}
	}()
	undo.add(func() { m.client.Drop(context.WithoutCancel(ctx), ids...) })
	if err := netnsMade.Hit(); err != nil {
		return nil, err
	}
	if err := m.connect(n, slots, spaces); err != nil {
		return nil, err
	}
	undo.add(func() { m.deletePorts(slots) })
	var leave firewall.Elements
	for _, s := range slots {
		leave.Sources = append(leave.Sources, s.Source())
	}
	if err := m.walls.Update(leave, firewall.Elements{}); err != nil {
		return nil, err
	}
	return slots, nil
}

// plan names a slot and takes its address.
func (m *Maker) plan(n *Network, want Request) (s *Slot, err error) {
	s = &Slot{Namespace: m.prefix + randomID(), Interface: "eth0", IP: want.IP, MAC: want.MAC}
	s.Port = s.Namespace
	if s.IP.IsValid() {
		err = n.Subnet.TakeThis(s.IP)
	} else {
		s.IP, err = n.Subnet.Take()
	}
	if err == nil && s.MAC == nil {
		s.MAC = ipam.MAC(s.IP)
	}
	return s, err
}

// connect makes the pairs and configures their far ends. The near ends come up
// last: with its peer up already each has a carrier at once, and the bridge
// starts to forward without waiting for the kernel's link watcher. The far ends do wait for that.
func (m *Maker) connect(n *Network, slots []*Slot, spaces []*netns.Namespace) (err error) {
	defer func() {
		if err != nil {
			m.deletePorts(slots)
		}
	}()
	var pairs, up netlink.Batch
	for i, s := range slots {
		pairs.AddVeth(netlink.Veth{
			Name: s.Port, Master: n.Bridge, MTU: n.MTU,
			PeerName: s.Interface, PeerMAC: s.MAC, PeerNetNS: int(spaces[i].File.Fd()),
		})
		up.SetPortUp(s.Port)
	}
	if err := m.host.Do(&pairs); err != nil {
		return full(err)
	}
	for i, s := range slots {
		if err := m.configure(n, s, spaces[i].Conn); err != nil {
			return err
		}
		m.withoutIPv6(s.Port)
	}
	if err := m.host.Do(&up); err != nil {
		return err
	}
	for i, s := range slots {
		if err := awaitPassing(spaces[i].Conn, s.Interface); err != nil {
			return err
		}
	}
	return nil
}

// awaitPassing returns when packets leave by an interface. Its far end has just come up, upon which it has a carrier, but its
// queue is opened by the kernel's link watcher, somewhat later: what is sent before that is dropped, and sent again
// after a second. From Linux 6.14 on asking has the watcher's work done; before, it is waited for. After a while
// it is let be: it will come.
func awaitPassing(inside *netlink.Conn, name string) error {
	const patience, pause = 20 * time.Millisecond, 200 * time.Microsecond
	for begin := time.Now(); ; time.Sleep(pause) {
		link, err := inside.LinkByName(name)
		if err != nil || link.Passes || time.Since(begin) > patience {
			return err
		}
	}
}

// full explains that a bridge takes no more ports (BR_MAX_PORTS in Linux).
func full(err error) error {
	if !errors.Is(err, syscall.EXFULL) {
		return err
	}
	return fault.ResourceExhausted.Errorf("NETWORK_FULL", "the network is full: a bridge of Linux has 1,023 ports: %w", err).
		Hint("remove containers, or start some in another network: --network")
}

// withoutIPv6 has the host ignore IPv6 on a port: its frames belong to the
// bridge. With it on the kernel would keep a multicast route for each port and
// walk all of them whenever one comes up. Where it cannot be switched off,
// containers are not less separate for it.
func (m *Maker) withoutIPv6(port string) {
	if m.ipv6 == nil {
		return
	}
	f, err := m.ipv6.OpenFile(port+"/disable_ipv6", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	f.WriteString("1")
}

func (m *Maker) configure(n *Network, s *Slot, inside *netlink.Conn) error {
	link, err := inside.LinkByName(s.Interface)
	if err != nil {
		return err
	}
	var b netlink.Batch
	b.AddAddress(link.Index, netip.PrefixFrom(s.IP, n.Subnet.Prefix().Bits()))
	b.SetUp(link.Index)
	if s.Interface == "eth0" { // the first network is the way out
		b.AddRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), n.Subnet.Gateway(), link.Index)
	}
	return inside.Do(&b)
}

// Restore puts a slot right after a restart: its port must be a port of the
// bridge; if it is gone, by whatever hand, it is made again inside the namespace.
// NotFound if the namespace is gone too.
func (m *Maker) Restore(ctx context.Context, n *Network, s *Slot, links map[string]netlink.Link) error {
	if link, ok := links[s.Port]; ok {
		if link.Master == n.Bridge {
			return nil
		}
		var b netlink.Batch
		b.SetMaster(link.Index, n.Bridge)
		b.SetPortUp(s.Port)
		return m.host.Do(&b)
	}
	ns, err := m.client.Get(ctx, s.Namespace)
	if errors.Is(err, os.ErrNotExist) {
		return fault.NotFound.Errorf("NAMESPACE_GONE", "network namespace %s is gone", s.Namespace)
	}
	if err != nil {
		return unavailable(err)
	}
	defer ns.Close()
	return m.connect(n, []*Slot{s}, []*netns.Namespace{ns})
}

// Alive reports whether the slot's namespace is still held.
func (m *Maker) Alive(ctx context.Context, s *Slot) (bool, error) {
	ns, err := m.client.Get(ctx, s.Namespace)
	switch {
	case err == nil:
		ns.Close()
		return true, nil
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	}
	return false, unavailable(err)
}

func (m *Maker) note(namespace string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.born != nil {
		m.born[namespace] = true
	}
}

// Sweep drops namespaces that an earlier process made and that are not among
// those known. Call it until it succeeds, and then no more.
func (m *Maker) Sweep(ctx context.Context, known map[string]bool) (int, error) {
	ids, err := m.client.List(ctx)
	if err != nil {
		return 0, unavailable(err)
	}
	m.mu.Lock()
	var orphans []string
	for _, id := range ids {
		if strings.HasPrefix(id, m.prefix) && len(id) == len(m.prefix)+idDigits && !known[id] && !m.born[id] {
			orphans = append(orphans, id)
		}
	}
	m.mu.Unlock()
	if err := m.client.Drop(ctx, orphans...); err != nil {
		return 0, unavailable(err)
	}
	m.mu.Lock()
	m.born = nil
	m.mu.Unlock()
	return len(orphans), nil
}

// SweepPorts deletes interfaces of slots that are not among those known.
func (m *Maker) SweepPorts(links map[string]netlink.Link, known map[string]bool, group uint32) error {
	var doomed netlink.Batch
	for name, link := range links {
		if strings.HasPrefix(name, m.prefix) && len(name) == len(m.prefix)+idDigits && !known[name] {
			doomed.SetGroup(link.Index, group)
		}
	}
	if doomed.Len() == 0 {
		return nil
	}
	doomed.DeleteGroup(group)
	return m.host.Do(&doomed)
}

// deletePorts deletes what there is of slots' interfaces; what is left is swept
// at the next start.
func (m *Maker) deletePorts(slots []*Slot) {
	var b netlink.Batch
	for _, s := range slots {
		if link, err := m.host.LinkByName(s.Port); err == nil {
			b.DeleteLink(link.Index)
		}
	}
	m.host.Do(&b)
}

func unavailable(err error) error {
	if errors.Is(err, netns.ErrUnavailable) {
		return fault.Unavailable.Errorf("EXECD_UNAVAILABLE", "execd, which makes network namespaces, does not answer: %w", err).
			Hint("see that execd runs; the request can be retried")
	}
	return fmt.Errorf("obtain a network namespace: %w", err)
}

func randomID() string {
	var b [idDigits / 2]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// cleanup is a stack of what to undo should the function fail.
type cleanup []func()

func (c *cleanup) add(undo func()) { *c = append(*c, undo) }

func (c *cleanup) unless(err *error) {
	if *err == nil {
		return
	}
	for i := len(*c) - 1; i >= 0; i-- {
		(*c)[i]()
	}
}
