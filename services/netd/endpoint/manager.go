// Package endpoint gives containers their places in networks and takes them
// back. It knows no sockets and no RPC; it decides the order in which the
// ledgers of addresses and ports, the slots, the records and the firewall
// change, so that a crash between any two steps loses nothing:
//
//	attach   ports reserved · slot taken · record written · ports published
//	use      ports reserved · record written · ports published
//	detach   unpublished · ports free · record deleted · slot reaped
//
// Slots are reaped in the background, the firewall's leave to send first.
// A record whose container nobody knows is detached by the engine when it
// reconciles; a slot without a record is swept at the next start.
package endpoint

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"berth/internal/fault"
	"berth/internal/faultpoint"
	"berth/internal/journal"
	"berth/libcontainer/netlink"
	"berth/services/netd/conntrack"
	"berth/services/netd/firewall"
	"berth/services/netd/network"
	"berth/services/netd/portmap"
	"berth/services/netd/slot"
)

var (
	portBound    = faultpoint.Declare("netd.port-bound", "host ports are reserved, nothing leads there yet")
	rulesSwapped = faultpoint.Declare("netd.rules-swapped", "ports are published, the caller does not know yet")
	rulesRemoved = faultpoint.Declare("netd.rules-removed", "ports are unpublished, still recorded")
)

// Walls is the part of the firewall that endpoints need.
type Walls interface {
	Update(add, remove firewall.Elements) error
}

// Parts are what a Manager works with. All are required.
type Parts struct {
	Journal  *journal.Journal // below the run directory
	Networks *network.Registry
	Host     *netlink.Conn
	Maker    *slot.Maker
	Reaper   *slot.Reaper
	Walls    Walls
	Ports    *portmap.Table
	Flows    *conntrack.Sweeper
	Log      hclog.Logger
	// PoolSize is the number of slots kept ready in the default network.
	PoolSize int
	// Group is the device group that marks interfaces about to be deleted.
	Group uint32
}

// Manager knows all endpoints. Its methods may be called from any goroutine.
type Manager struct {
	Parts
	records records
	pool    *slot.Pool

	mu        sync.Mutex
	endpoints map[string][]*Endpoint // by container
	ports     map[string]bool        // their interfaces on the host
	busy      map[string]chan struct{}
}

// New returns a manager that knows nothing yet; see [Manager.Restore].
func New(p Parts) (*Manager, error) {
	r, err := openRecords(p.Journal)
	if err != nil {
		return nil, err
	}
	m := &Manager{Parts: p, records: r, endpoints: map[string][]*Endpoint{}, ports: map[string]bool{}, busy: map[string]chan struct{}{}}
	m.pool = slot.NewPool(p.PoolSize, m.makeReady, m.reapUnused, p.Log.Named("pool"))
	return m, nil
}

// Restore takes up what the last process left: it returns what the firewall is
// to know. Interfaces that are nobody's are deleted, those that are missing
// made again; an endpoint whose namespace is gone is forgotten.
func (m *Manager) Restore(ctx context.Context) ([]*Endpoint, error) {
	list, err := m.records.all()
	if err != nil {
		return nil, err
	}
	links, err := m.links()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b *Endpoint) int { return a.Created.Compare(b.Created) })
	known := map[string]bool{}
	restored := list[:0:0]
	for _, e := range list {
		if !m.restore(ctx, e, links) {
			if err := m.records.delete(e); err != nil {
				return nil, err
			}
			continue
		}
		if n, err := m.Networks.Find(e.Network); err == nil {
			n.Enter()
		}
		known[e.Slot.Port] = true
		restored = append(restored, e)
		m.enter(e)
	}
	if err := m.Maker.SweepPorts(links, known, m.Group); err != nil {
		m.Log.Warn("cannot delete interfaces left behind", "error", err)
	}
	return restored, nil
}

// restore takes up one endpoint; false if there is nothing to take up.
func (m *Manager) restore(ctx context.Context, e *Endpoint, links map[string]netlink.Link) bool {
	log := m.Log.With("container", e.Container)
	n, err := m.Networks.Find(e.Network)
	if err != nil {
		log.Warn("endpoint of a network that is no more", "network", e.Network)
		return false
	}
	n.Ledger().Restore(e.Slot.IP)
	switch err := m.Maker.Restore(ctx, n.Place(), e.Slot, links); {
	case errors.Is(err, fault.NotFound):
		log.Info("endpoint forgotten, its namespace is gone")
		n.Ledger().Free(e.Slot.IP)
		return false
	case err != nil:
		log.Warn("interface not restored", "interface", e.Slot.Port, "error", err)
	}
	if err := m.Ports.Restore(e.Owner, e.hostPorts()); err != nil {
		log.Warn("published port not reserved", "error", err)
	}
	return true
}

func (m *Manager) links() (map[string]netlink.Link, error) {
	list, err := m.Host.Links()
	if err != nil {
		return nil, err
	}
	links := make(map[string]netlink.Link, len(list))
	for _, l := range list {
		links[l.Name] = l
	}
	return links, nil
}

// Run does the work in the background until ctx is done: the pool, the reaper,
// and sweeping namespaces left behind once execd can be asked.
func (m *Manager) Run(ctx context.Context) {
	known := map[string]bool{}
	for _, e := range m.List() {
		known[e.Slot.Namespace] = true
	}
	var work sync.WaitGroup
	work.Go(func() { m.sweep(ctx, known) })
	work.Go(func() { m.pool.Run(ctx) })
	work.Go(func() { m.Reaper.Run(ctx) })
	work.Go(func() { m.Flows.Run(ctx) })
	work.Wait()
}

func (m *Manager) sweep(ctx context.Context, known map[string]bool) {
	const retry = 500 * time.Millisecond
	for ctx.Err() == nil {
		n, err := m.Maker.Sweep(ctx, known)
		if err == nil {
			m.Repair(ctx) // what could not be done at the start, without execd
			if n > 0 {
				m.Log.Info("dropped namespaces left behind", "count", n)
			}
			return
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
		}
	}
}

// Repair makes interfaces again that are missing, and connects those that are
// not connected to their bridge. What is in order is left alone. An endpoint
// whose namespace is gone stays as it is: its container is over, and the engine
// will say so.
func (m *Manager) Repair(ctx context.Context) {
	links, err := m.links()
	if err != nil {
		m.Log.Warn("interfaces not checked", "error", err)
		return
	}
	for _, e := range m.List() {
		n, err := m.Networks.Find(e.Network)
		if err != nil {
			continue
		}
		if err := m.Maker.Restore(ctx, n.Place(), e.Slot, links); err != nil && !errors.Is(err, fault.NotFound) {
			m.Log.Warn("interface not restored", "interface", e.Slot.Port, "container", e.Container, "error", err)
		}
	}
}

// Deleted is to be called for every interface of the host that was deleted, or
// taken from its bridge. It reports whether that damaged an endpoint.
func (m *Manager) Deleted(d netlink.Deletion) bool {
	m.mu.Lock()
	used := m.ports[d.Name]
	m.mu.Unlock()
	if used {
		return true
	}
	if !d.FromPort && m.Reaper.Gone(d.Name) {
		return false
	}
	m.pool.Lost(d.Name)
	return false
}

// DiscardPool is to be called when execd went away, or the default bridge: slots
// that are not in use went with it.
func (m *Manager) DiscardPool() { m.pool.Discard() }

// Request is what a container wants of a network.
type Request struct {
	Container string // id
	Name      string // for messages
	Network   *network.Network
	IP        netip.Addr       // invalid: any
	MAC       net.HardwareAddr // nil: made from the address
	Ports     []Mapping
	Aliases   []string
	Standby   bool // see Endpoint
}

// Attach gives a container a place in a network, with its ports published when
// it returns. A container that is attached already keeps what it has, so that
// the call can be repeated. Kinds: AlreadyExists for a port in use,
// ResourceExhausted, Unavailable when execd is needed and away.
func (m *Manager) Attach(ctx context.Context, r Request) (_ *Endpoint, err error) {
	unlock, err := m.lock(ctx, r.Container)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if e, err := m.attached(ctx, r); e != nil || err != nil {
		return e, err
	}

	if err := r.Network.Enter(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.Network.Leave()
		}
	}()
	e := &Endpoint{ID: randomID(), Container: r.Container, Network: r.Network.ID, Owner: ownerOf(r.Container, r.Name), Ports: slices.Clone(r.Ports),
		Aliases: r.Aliases, Created: time.Now().UTC(), Standby: r.Standby}
	if err := m.reserve(ctx, e); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Ports.Release(e.Owner, e.hostPorts())
		}
	}()
	if err := portBound.Hit(); err != nil {
		return nil, err
	}
	if e.Slot, err = m.takeSlot(ctx, r); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.reap(r.Network, e.Slot)
		}
	}()
	if err := m.records.put(e); err != nil {
		return nil, fmt.Errorf("record endpoint: %w", err)
	}
	if err := m.publish(e); err != nil {
		m.records.delete(e)
		return nil, err
	}
	m.enter(e)
	return e, nil
}

// DropStandby removes the endpoints that no container has: whoever had them made
// is gone, or will find that they are.
func (m *Manager) DropStandby() {
	for _, e := range m.List() {
		if !e.Standby {
			continue
		}
		if err := m.remove(e); err != nil {
			m.Log.Warn("endpoint of no container not removed", "interface", e.Slot.Port, "error", err)
		}
	}
}

// Use gives the endpoint that stood by for a container to it, with its ports published, and returns it; nil if there is
// none. The container has no other: what stands by is in the default network. Kinds: as Attach. After an error it stands
// by as before.
func (m *Manager) Use(ctx context.Context, container, name string, ports []Mapping) (*Endpoint, error) {
	unlock, err := m.lock(ctx, container)
	if err != nil {
		return nil, err
	}
	defer unlock()
	all := m.Of(container)
	i := slices.IndexFunc(all, func(e *Endpoint) bool { return e.Standby })
	if i < 0 {
		return nil, nil
	}
	now := *all[i]
	now.Standby, now.Owner, now.Ports = false, ownerOf(container, name), slices.Clone(ports)
	if err := m.use(ctx, all[i], &now); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endpoints[container][i] = &now
	return &now, nil
}

// use makes before what is now; all of it or nothing.
func (m *Manager) use(ctx context.Context, before, now *Endpoint) (err error) {
	if err := m.reserve(ctx, now); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			m.Ports.Release(now.Owner, now.hostPorts())
		}
	}()
	if err := portBound.Hit(); err != nil {
		return err
	}
	if err := m.records.put(now); err != nil {
		return fmt.Errorf("record endpoint: %w", err)
	}
	if err := m.publish(now); err != nil {
		return errors.Join(err, m.records.put(before))
	}
	return nil
}

func (m *Manager) enter(e *Endpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endpoints[e.Container] = append(m.endpoints[e.Container], e)
	m.ports[e.Slot.Port] = true
}

func (m *Manager) leave(e *Endpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(m.endpoints[e.Container]), func(o *Endpoint) bool { return o == e })
	if len(rest) == 0 {
		delete(m.endpoints, e.Container)
	} else {
		m.endpoints[e.Container] = rest
	}
	delete(m.ports, e.Slot.Port)
}

// attached returns the endpoint the container already has in the network. One
// whose namespace was lost, with execd, before anybody used it, is removed.
func (m *Manager) attached(ctx context.Context, r Request) (*Endpoint, error) {
	for _, e := range m.Of(r.Container) {
		if e.Network != r.Network.ID {
			continue
		}
		alive, err := m.Maker.Alive(ctx, e.Slot)
		if err != nil || alive {
			return e, err
		}
		return nil, m.remove(e)
	}
	return nil, nil
}

func (m *Manager) reserve(ctx context.Context, e *Endpoint) error {
	if len(e.Ports) == 0 {
		return nil
	}
	got, err := m.Ports.Reserve(ctx, e.Owner, e.hostPorts())
	if err != nil {
		return err
	}
	for i := range got {
		e.Ports[i].HostPort = got[i].Number
	}
	return nil
}

// takeSlot takes a ready slot, or makes one. If the address wanted, or all, are
// taken, the pool is emptied and those of slots being taken apart are waited for.
func (m *Manager) takeSlot(ctx context.Context, r Request) (*slot.Slot, error) {
	if r.Network.Name == network.Default && !r.IP.IsValid() && r.MAC == nil {
		if s := m.pool.Take(ctx); s != nil {
			return s, nil
		}
	}
	want := slot.Request{IP: r.IP, MAC: r.MAC}
	s, err := m.Maker.Make(ctx, r.Network.Place(), want)
	scarce := errors.Is(err, fault.ResourceExhausted) || errors.Is(err, fault.AlreadyExists)
	if scarce && r.Network.Name == network.Default {
		m.pool.Discard()
	}
	if scarce && m.Reaper.Pending() > 0 {
		m.Reaper.Drain(ctx)
		s, err = m.Maker.Make(ctx, r.Network.Place(), want)
	}
	return s, err
}

func (m *Manager) publish(e *Endpoint) error {
	if len(e.Ports) == 0 {
		return nil
	}
	if err := m.Walls.Update(firewall.Elements{Publications: e.publications()}, firewall.Elements{}); err != nil {
		return err
	}
	err := rulesSwapped.Hit()
	if err != nil {
		m.Walls.Update(firewall.Elements{}, firewall.Elements{Publications: e.publications()})
		return err
	}
	for _, p := range e.Ports {
		if p.Protocol == portmap.UDP {
			m.Flows.Published(p.HostPort, e.Slot.IP)
		}
	}
	return nil
}

// Detach takes everything back from a container: its ports are free when it
// returns, its interface and address soon after. Detaching what is not there
// succeeds.
func (m *Manager) Detach(ctx context.Context, container string) error {
	unlock, err := m.lock(ctx, container)
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	for _, e := range m.Of(container) {
		errs = append(errs, m.remove(e))
	}
	return errors.Join(errs...)
}

// remove takes one endpoint back.
func (m *Manager) remove(e *Endpoint) error {
	m.Ports.Leave(e.Owner, e.hostPorts())
	if len(e.Ports) > 0 { // else the reaper will do
		if err := m.Walls.Update(firewall.Elements{}, e.Wall()); err != nil {
			return err
		}
	}
	if err := rulesRemoved.Hit(); err != nil {
		return err
	}
	m.Ports.Release(e.Owner, e.hostPorts())
	if err := m.records.delete(e); err != nil {
		return fmt.Errorf("delete the record of an endpoint: %w", err)
	}
	m.leave(e)
	if len(e.Ports) > 0 {
		m.Flows.Gone(e.Slot.IP)
	}
	if n, err := m.Networks.Find(e.Network); err == nil {
		n.Leave()
		m.reap(n, e.Slot)
	}
	return nil
}

// reap has a slot taken apart.
func (m *Manager) reap(n *network.Network, s *slot.Slot) {
	m.Reaper.Take(s, func() { n.Ledger().Free(s.IP) })
}

func (m *Manager) makeReady(ctx context.Context, count int) ([]*slot.Slot, error) {
	n, err := m.Networks.Find(network.Default)
	if err != nil {
		return nil, err
	}
	return m.Maker.MakeBatch(ctx, n.Place(), count)
}

func (m *Manager) reapUnused(s *slot.Slot) {
	if n, err := m.Networks.Find(network.Default); err == nil {
		m.reap(n, s)
	}
}

// Of returns a container's endpoints.
func (m *Manager) Of(container string) []*Endpoint {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.endpoints[container])
}

// List returns all endpoints, the oldest first.
func (m *Manager) List() []*Endpoint {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := slices.Concat(slices.Collect(maps.Values(m.endpoints))...)
	slices.SortFunc(all, func(a, b *Endpoint) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return all
}

// Ready is the number of slots in the pool.
func (m *Manager) Ready() int { return m.pool.Len() }

// lock serializes work on one container.
func (m *Manager) lock(ctx context.Context, container string) (unlock func(), err error) {
	for {
		m.mu.Lock()
		other, taken := m.busy[container]
		if !taken {
			mine := make(chan struct{})
			m.busy[container] = mine
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.busy, container)
				m.mu.Unlock()
				close(mine)
			}, nil
		}
		m.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// ownerOf is a container as messages name it.
func ownerOf(container, name string) string {
	short := container[:min(12, len(container))]
	if name == "" {
		return "container " + short
	}
	return fmt.Sprintf("container %s (%s)", name, short)
}

func randomID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
