package firewall

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// Network is what the rules know of a network.
type Network struct {
	Bridge   string
	Subnet   netip.Prefix // IPv4
	Internal bool         // nothing is forwarded to or from other interfaces
}

// Source is who may send on a port of a bridge.
type Source struct {
	Port string // interface name; starts with the prefix given to New
	MAC  net.HardwareAddr
	IP   netip.Addr
}

// Protocol is an IP protocol number that has ports.
type Protocol uint8

// The protocols that can be published.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// Publication is one published port.
type Publication struct {
	HostIP   netip.Addr // unspecified or invalid: every address of the host
	HostPort uint16
	Protocol Protocol
	To       netip.AddrPort // the container
}

// Elements is a set of things the rules look up.
type Elements struct {
	Networks     []Network
	Sources      []Source
	Publications []Publication
}

// Firewall keeps the rules of one engine in one network namespace. It
// remembers what they should be, so that they can be repaired. Its methods may
// be called from any goroutine.
type Firewall struct {
	conn, dump *socket // for transactions, and for looking
	portPrefix string

	table, bridgeTable *nftables.Table

	published, publishedAny, subnets, bridges, pairs, internal, sources *nftables.Set

	foreign atomic.Pointer[[]string] // what ForeignDrops knows; nil: nothing

	mu      sync.Mutex
	removed bool                                 // the tables have been taken away
	noSpoof bool                                 // the kernel has no bridge family: no antispoof chain
	want    map[*nftables.Set]map[string]element // by key
}

type element = nftables.SetElement

const chainToContainer = "to_container"

// New prepares the rules of tables called name for bridge ports whose interface
// names start with portPrefix. Nothing is changed before [Firewall.Rebuild].
// netns is a descriptor of the namespace to act on; 0: the caller's.
func New(name, portPrefix string, netns int) (*Firewall, error) {
	conn, err := openSocket(netns)
	if err != nil {
		return nil, err
	}
	dump, err := openSocket(netns)
	if err != nil {
		conn.CloseLasting()
		return nil, err
	}
	f := &Firewall{
		conn:        conn,
		dump:        dump,
		portPrefix:  portPrefix,
		table:       &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4},
		bridgeTable: &nftables.Table{Name: name, Family: nftables.TableFamilyBridge},
		want:        map[*nftables.Set]map[string]element{},
	}
	service := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	f.published = f.newSet("published", nftables.Set{IsMap: true, DataType: service, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)})
	f.publishedAny = f.newSet("published_any", nftables.Set{IsMap: true, DataType: service, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)})
	f.subnets = f.newSet("subnets", nftables.Set{KeyType: nftables.TypeIPAddr, Interval: true})
	f.bridges = f.newSet("bridges", nftables.Set{KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian})
	f.pairs = f.newSet("pairs", nftables.Set{Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName)})
	f.internal = f.newSet("internal", nftables.Set{KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian})
	f.sources = f.newSet("sources", nftables.Set{Table: f.bridgeTable, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr)})
	return f, nil
}

func (f *Firewall) newSet(name string, s nftables.Set) *nftables.Set {
	s.Name = name
	if s.Table == nil {
		s.Table = f.table
	}
	f.want[&s] = map[string]element{}
	return &s
}

// Close closes the netlink socket; the rules stay.
func (f *Firewall) Close() error { return errors.Join(f.conn.CloseLasting(), f.dump.CloseLasting()) }

// flush sends what is queued as one transaction.
func (f *Firewall) flush() error { return f.conn.exchange(f.conn.Flush) }

// Update adds and removes elements in one transaction. What is there already,
// or gone already, is fine. Should the kernel's tables have been tampered with,
// they are rebuilt on the way.
func (f *Firewall) Update(add, remove Elements) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	undo, changed := []func(){}, false
	f.each(remove, func(s *nftables.Set, es ...element) {
		if gone := f.forget(s, es); len(gone) > 0 && f.active(s) {
			changed = true
			undo = append(undo, func() { f.remember(s, gone) })
			f.elements(s, gone, f.conn.SetDeleteElements)
		}
	})
	f.each(add, func(s *nftables.Set, es ...element) {
		if fresh := f.remember(s, es); len(fresh) > 0 && f.active(s) {
			changed = true
			undo = append(undo, func() { f.forget(s, fresh) })
			f.elements(s, fresh, f.conn.SetAddElements)
		}
	})
	if !changed || f.flush() == nil {
		return nil
	}
	if err := f.rebuild(); err != nil {
		for _, u := range slices.Backward(undo) {
			u()
		}
		return err
	}
	return nil
}

// Replace makes elems all there is, without touching the kernel; for the start,
// before [Firewall.Rebuild].
func (f *Firewall) Replace(elems Elements) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.want {
		f.want[s] = map[string]element{}
	}
	f.each(elems, func(s *nftables.Set, es ...element) { f.remember(s, es) })
}

// Antispoof reports whether the kernel could take the rules that bind
// containers to their addresses; known after the first Rebuild.
func (f *Firewall) Antispoof() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.noSpoof
}

func (f *Firewall) active(s *nftables.Set) bool {
	return !f.removed && (s != f.sources || !f.noSpoof)
}

// remember notes elements as wanted and returns those that were not.
func (f *Firewall) remember(s *nftables.Set, es []element) []element {
	var fresh []element
	for _, e := range es {
		if _, ok := f.want[s][identity(e)]; !ok {
			f.want[s][identity(e)] = e
			fresh = append(fresh, e)
		}
	}
	return fresh
}

// forget notes elements as unwanted and returns those that were wanted.
func (f *Firewall) forget(s *nftables.Set, es []element) []element {
	var gone []element
	for _, e := range es {
		if _, ok := f.want[s][identity(e)]; ok {
			delete(f.want[s], identity(e))
			gone = append(gone, e)
		}
	}
	return gone
}

// identity tells elements of a set apart. The end of one interval may be the
// start of the next; it sorts first, for the kernel takes the opposite order for
// an overlap.
func identity(e element) string {
	if e.IntervalEnd {
		return string(e.Key)
	}
	return string(e.Key) + "start"
}

// each translates elems into elements of sets.
func (f *Firewall) each(elems Elements, visit func(*nftables.Set, ...element)) {
	for _, n := range elems.Networks {
		name := paddedName(n.Bridge)
		visit(f.bridges, element{Key: name})
		visit(f.pairs, element{Key: append(slices.Clone(name), name...)})
		visit(f.subnets, interval(n.Subnet)...)
		if n.Internal {
			visit(f.internal, element{Key: name})
		}
	}
	for _, s := range elems.Sources {
		visit(f.sources, element{Key: concat(paddedName(s.Port), s.MAC, s.IP.AsSlice())})
	}
	for _, p := range elems.Publications {
		service := concat([]byte{byte(p.Protocol)}, port(p.HostPort))
		to := concat(p.To.Addr().AsSlice(), port(p.To.Port()))
		if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
			visit(f.published, element{Key: concat(p.HostIP.AsSlice(), service), Val: to})
		} else {
			visit(f.publishedAny, element{Key: service, Val: to})
		}
	}
}

// interval is a prefix as the kernel wants it: the first address of it, and the
// first one behind it.
func interval(p netip.Prefix) []element {
	first := p.Masked().Addr()
	behind := first.As4()
	for bit := p.Bits() - 1; bit >= 0; bit-- { // add 1 at the prefix's last bit, with carry
		behind[bit/8] ^= 1 << (7 - bit%8)
		if behind[bit/8]&(1<<(7-bit%8)) != 0 {
			break
		}
	}
	return []element{{Key: first.AsSlice()}, {Key: behind[:], IntervalEnd: true}}
}

// concat lays out a concatenated key: each part padded to whole registers.
func concat(parts ...[]byte) []byte {
	var key []byte
	for _, p := range parts {
		key = append(key, p...)
		for len(key)%4 != 0 {
			key = append(key, 0)
		}
	}
	return key
}

func port(p uint16) []byte { return []byte{byte(p >> 8), byte(p)} }

// chain is a base chain and its rules.
type chain struct {
	*nftables.Chain
	rules [][]expr.Any
}

func (f *Firewall) chains() []chain {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority int32, rules [][]expr.Any) chain {
		policy := nftables.ChainPolicyAccept
		return chain{&nftables.Chain{Name: name, Table: f.table, Type: kind, Hooknum: hook,
			Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)), Policy: &policy}, rules}
	}
	all := []chain{
		{&nftables.Chain{Name: chainToContainer, Table: f.table}, f.toContainerRules()}, // jumped to, so first
		base("loopback", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300, f.loopbackRules()),
		base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -100, f.dnatRules()),
		base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, -100, f.dnatRules()),
		base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, 0, f.forwardRules()),
		base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100, f.postroutingRules()),
	}
	if !f.noSpoof {
		antispoof := base("antispoof", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300, f.antispoofRules())
		antispoof.Table = f.bridgeTable
		all = append(all, antispoof)
	}
	return all
}

// Rebuild brings the kernel's tables to what they should be, in one
// transaction. Where chains exist their rules are exchanged, each packet seeing
// either the old or the new; elements that are right are left alone. So traffic
// runs through it undisturbed.
func (f *Firewall) Rebuild() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed = false
	return f.rebuild()
}

func (f *Firewall) rebuild() error {
	err := f.exchange()
	if err == nil {
		return nil
	}
	// Tables of another version, or bent by somebody: start them over, still
	// in one transaction.
	again := f.startOver()
	if again == nil {
		return nil
	}
	if !f.noSpoof && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EOPNOTSUPP)) {
		f.noSpoof = true
		return f.rebuild()
	}
	if errors.Is(err, syscall.EINVAL) && f.plainConcat() {
		return f.rebuild()
	}
	return fmt.Errorf("write nftables table %s: %w", f.table.Name, errors.Join(err, again))
}

// plainConcat makes the sets' keys plain bytes to the kernel: before Linux 5.6 it
// refuses to be told of their parts, and does not need to know. It reports
// whether they were not so already.
func (f *Firewall) plainConcat() (changed bool) {
	for s := range f.want {
		changed = changed || s.Concatenation
		s.Concatenation = false
	}
	return changed
}

// exchange is a rebuild that keeps tables, chains and sets.
func (f *Firewall) exchange() error {
	f.declare()
	for _, c := range f.chains() {
		f.conn.FlushChain(c.Chain)
	}
	f.addRules()
	for s, want := range f.want {
		if !f.active(s) {
			continue
		}
		missing := maps.Clone(want)
		var stale []element
		var have []element
		err := f.dump.exchange(func() (err error) {
			have, err = f.dump.GetSetElements(s)
			return err
		})
		if err != nil {
			have = nil // no such set yet; had it another reason, the transaction will meet it too
		}
		for _, e := range have {
			wanted, ok := want[identity(e)]
			if ok && slices.Equal(wanted.Val, e.Val) {
				delete(missing, identity(e))
			} else {
				stale = append(stale, e)
			}
		}
		f.elements(s, stale, f.conn.SetDeleteElements)
		f.elements(s, sorted(missing), f.conn.SetAddElements)
	}
	return f.flush()
}

// startOver deletes the tables and writes them anew.
func (f *Firewall) startOver() error {
	for _, t := range f.tables() {
		f.conn.AddTable(t) // so that there is one to delete
		f.conn.DelTable(t)
	}
	f.declare()
	f.addRules()
	for s, want := range f.want {
		if f.active(s) {
			f.elements(s, sorted(want), f.conn.SetAddElements)
		}
	}
	return f.flush()
}

// Remove deletes the tables; when an engine stops that nobody needs, and for
// tests. Updates that come later are remembered, and do not bring them back.
func (f *Firewall) Remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed = true
	for _, t := range f.tables() {
		f.conn.AddTable(t)
		f.conn.DelTable(t)
	}
	return f.flush()
}

func (f *Firewall) tables() []*nftables.Table {
	if f.noSpoof {
		return []*nftables.Table{f.table}
	}
	return []*nftables.Table{f.table, f.bridgeTable}
}

// declare adds tables, sets and chains that are not there.
func (f *Firewall) declare() {
	for _, t := range f.tables() {
		f.conn.AddTable(t)
	}
	for _, s := range []*nftables.Set{f.published, f.publishedAny, f.subnets, f.bridges, f.pairs, f.internal, f.sources} {
		if f.active(s) {
			f.conn.AddSet(s, nil)
		}
	}
	for _, c := range f.chains() {
		f.conn.AddChain(c.Chain)
	}
}

func (f *Firewall) addRules() {
	for _, c := range f.chains() {
		for _, exprs := range c.rules {
			f.conn.AddRule(&nftables.Rule{Table: c.Table, Chain: c.Chain, Exprs: exprs})
		}
	}
}

// elements queues a change of a set in messages that stay below the 64 KiB an
// attribute can hold.
func (f *Firewall) elements(s *nftables.Set, es []element, change func(*nftables.Set, []element) error) {
	for part := range slices.Chunk(es, 400) {
		change(s, part)
	}
}

// sorted gives elements a stable order, so that the same state is the same
// ruleset.
func sorted(es map[string]element) []element {
	list := make([]element, 0, len(es))
	for _, key := range slices.Sorted(maps.Keys(es)) {
		list = append(list, es[key])
	}
	return list
}
