package netlink

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Batch is a list of requests that [Conn.Do] sends together. The kernel
// carries them out in order; one that fails does not stop those after it, so a
// batch should hold steps that either all apply or are undone together (by
// deleting the link, or the namespace). The zero Batch is empty and ready.
type Batch struct {
	enc      encoder
	requests []request
}

// request says where a message lies in the buffer and what it does, in words
// for the error.
type request struct {
	start, end int
	op         string
}

// Len is the number of requests.
func (b *Batch) Len() int { return len(b.requests) }

// message appends one request of the given kind; body writes what follows the
// header. flags are added to NLM_F_REQUEST|NLM_F_ACK.
func (b *Batch) message(kind, flags uint16, op string, body func(e *encoder)) {
	at := b.enc.begin(kind, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags, 0)
	body(&b.enc)
	b.enc.end(at)
	b.requests = append(b.requests, request{at, len(b.enc.buf), op})
}

const (
	create = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	modify = 0

	brportMode      = 4 // IFLA_BRPORT_MODE, linux/if_link.h: hairpin
	addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE, linux/if_link.h

	vethInfoPeer = 1 // VETH_INFO_PEER, linux/veth.h: the far end as a whole link message
)

// Veth describes a pair of virtual Ethernet devices, veth(4).
type Veth struct {
	Name   string           // near end, at most 15 bytes
	Master int              // index of the bridge the near end becomes a port of; 0: none
	MTU    int              // of both ends; 0: the kernel's default
	MAC    net.HardwareAddr // of the near end; nil: random

	PeerName  string           // far end
	PeerMAC   net.HardwareAddr // of the far end; nil: random
	PeerNetNS int              // descriptor of the namespace the far end is born in
}

// AddVeth creates a pair with its far end already in the target namespace, and
// its near end a port of Master. Both are down. Needs CAP_NET_ADMIN over both
// namespaces. Linux 2.6.24; the far end's namespace by descriptor since 3.0.
//
// Each end has one queue. That is also what the kernel makes of a pair for which
// nobody asks (veth_init_queues), but first it registers a queue for every
// processor and takes the others away again, which waits for RCU.
func (b *Batch) AddVeth(v Veth) {
	b.message(unix.RTM_NEWLINK, create, "create veth "+v.Name, func(e *encoder) {
		e.ifinfomsg(0, 0, 0)
		e.attrString(unix.IFLA_IFNAME, v.Name)
		linkCommon(e, v.MTU, v.MAC)
		oneQueue(e)
		if v.Master != 0 {
			e.attrUint32(unix.IFLA_MASTER, uint32(v.Master))
		}
		info := e.open(unix.IFLA_LINKINFO)
		e.attrString(unix.IFLA_INFO_KIND, "veth")
		data := e.open(unix.IFLA_INFO_DATA)
		peer := e.open(vethInfoPeer)
		e.ifinfomsg(0, 0, 0)
		e.attrString(unix.IFLA_IFNAME, v.PeerName)
		linkCommon(e, v.MTU, v.PeerMAC)
		oneQueue(e)
		e.attrUint32(unix.IFLA_NET_NS_FD, uint32(v.PeerNetNS))
		e.shut(peer)
		e.shut(data)
		e.shut(info)
	})
}

func linkCommon(e *encoder, mtu int, mac net.HardwareAddr) {
	if mtu != 0 {
		e.attrUint32(unix.IFLA_MTU, uint32(mtu))
	}
	if mac != nil {
		e.attr(unix.IFLA_ADDRESS, mac)
	}
}

func oneQueue(e *encoder) {
	e.attrUint32(unix.IFLA_NUM_TX_QUEUES, 1)
	e.attrUint32(unix.IFLA_NUM_RX_QUEUES, 1)
}

// AddBridge creates an Ethernet bridge without spanning tree. A fixed mac keeps
// the bridge's address (and so everyone's ARP caches) from changing with its
// first port.
func (b *Batch) AddBridge(name string, mtu int, mac net.HardwareAddr) {
	b.message(unix.RTM_NEWLINK, create, "create bridge "+name, func(e *encoder) {
		e.ifinfomsg(0, 0, 0)
		e.attrString(unix.IFLA_IFNAME, name)
		linkCommon(e, mtu, mac)
		info := e.open(unix.IFLA_LINKINFO)
		e.attrString(unix.IFLA_INFO_KIND, "bridge")
		e.shut(info)
	})
}

// SetUp brings a link up.
func (b *Batch) SetUp(index int) {
	b.message(unix.RTM_NEWLINK, modify, fmt.Sprintf("set link %d up", index), func(e *encoder) {
		e.ifinfomsg(index, unix.IFF_UP, unix.IFF_UP)
	})
}

// SetUpBare brings the named link up as one that only passes frames on: it gets
// no IPv6 link-local address of its own (Linux 3.17; ignored before), which
// spares it multicast memberships and duplicate address detection.
func (b *Batch) SetUpBare(name string) {
	b.message(unix.RTM_NEWLINK, modify, "set link "+name+" up", func(e *encoder) {
		e.ifinfomsg(0, unix.IFF_UP, unix.IFF_UP)
		e.attrString(unix.IFLA_IFNAME, name)
		noLinkLocal(e)
	})
}

// SetPortUp is SetUpBare for a port of a bridge, and lets frames leave by the
// port they came in by. That is how a packet returns which a container sends to
// itself by way of an address of the host: where br_netfilter is loaded such
// packets never leave the bridge. Linux 3.15.
func (b *Batch) SetPortUp(name string) {
	b.message(unix.RTM_NEWLINK, modify, "set bridge port "+name+" up", func(e *encoder) {
		e.ifinfomsg(0, unix.IFF_UP, unix.IFF_UP)
		e.attrString(unix.IFLA_IFNAME, name)
		info := e.open(unix.IFLA_LINKINFO)
		e.attrString(unix.IFLA_INFO_SLAVE_KIND, "bridge")
		port := e.open(unix.IFLA_INFO_SLAVE_DATA)
		e.attrUint8(brportMode, 1)
		e.shut(port)
		e.shut(info)
		noLinkLocal(e)
	})
}

func noLinkLocal(e *encoder) {
	families := e.open(unix.IFLA_AF_SPEC)
	inet6 := e.open(unix.AF_INET6)
	e.attrUint8(unix.IFLA_INET6_ADDR_GEN_MODE, addrGenModeNone)
	e.shut(inet6)
	e.shut(families)
}

// SetMaster makes a link a port of the bridge with index master.
func (b *Batch) SetMaster(index, master int) {
	b.message(unix.RTM_NEWLINK, modify, fmt.Sprintf("make link %d a port of %d", index, master), func(e *encoder) {
		e.ifinfomsg(index, 0, 0)
		e.attrUint32(unix.IFLA_MASTER, uint32(master))
	})
}

// SetGroup puts a link into a device group; see [Batch.DeleteGroup].
func (b *Batch) SetGroup(index int, group uint32) {
	b.message(unix.RTM_NEWLINK, modify, fmt.Sprintf("set group of link %d", index), func(e *encoder) {
		e.ifinfomsg(index, 0, 0)
		e.attrUint32(unix.IFLA_GROUP, group)
	})
}

// DeleteLink deletes one link and, of a veth, its other end. It waits for RCU
// grace periods with the kernel's global network lock held.
func (b *Batch) DeleteLink(index int) {
	b.message(unix.RTM_DELLINK, modify, fmt.Sprintf("delete link %d", index), func(e *encoder) {
		e.ifinfomsg(index, 0, 0)
	})
}

// DeleteGroup deletes every link of a group at the price of one, because they
// share the grace periods. Linux 4.1.
func (b *Batch) DeleteGroup(group uint32) {
	b.message(unix.RTM_DELLINK, modify, fmt.Sprintf("delete links of group %d", group), func(e *encoder) {
		e.ifinfomsg(0, 0, 0)
		e.attrUint32(unix.IFLA_GROUP, group)
	})
}

// AddAddress gives a link an address; p carries the prefix length of its subnet.
func (b *Batch) AddAddress(index int, p netip.Prefix) {
	b.message(unix.RTM_NEWADDR, create, fmt.Sprintf("add address %s to link %d", p, index), func(e *encoder) {
		ip := p.Addr().AsSlice()
		e.bytes(family(p.Addr()), byte(p.Bits()), addressFlags(p.Addr()), unix.RT_SCOPE_UNIVERSE)
		e.buf = native.AppendUint32(e.buf, uint32(index))
		e.attr(unix.IFA_LOCAL, ip)
		e.attr(unix.IFA_ADDRESS, ip)
		if p.Addr().Is4() && p.Bits() < 31 {
			e.attr(unix.IFA_BROADCAST, broadcast(p))
		}
	})
}

// DeleteAddress takes an address from a link.
func (b *Batch) DeleteAddress(index int, p netip.Prefix) {
	b.message(unix.RTM_DELADDR, modify, fmt.Sprintf("delete address %s from link %d", p, index), func(e *encoder) {
		e.bytes(family(p.Addr()), byte(p.Bits()), 0, 0)
		e.buf = native.AppendUint32(e.buf, uint32(index))
		e.attr(unix.IFA_LOCAL, p.Addr().AsSlice())
	})
}

// addressFlags skips duplicate address detection for IPv6: the address comes
// from a ledger, and waiting a second for no answer would delay every start.
func addressFlags(a netip.Addr) byte {
	if a.Is6() {
		return unix.IFA_F_NODAD
	}
	return 0
}

func broadcast(p netip.Prefix) []byte {
	ip := p.Addr().As4()
	mask := net.CIDRMask(p.Bits(), 32)
	for i := range ip {
		ip[i] |= ^mask[i]
	}
	return ip[:]
}

// AddRoute routes dst (the zero prefix of a family: the default route) through
// gateway on link index.
func (b *Batch) AddRoute(dst netip.Prefix, gateway netip.Addr, index int) {
	b.message(unix.RTM_NEWROUTE, create, fmt.Sprintf("add route %s via %s", dst, gateway), func(e *encoder) {
		e.bytes(family(gateway), byte(dst.Bits()), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC,
			unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST)
		e.buf = native.AppendUint32(e.buf, 0)
		if dst.Bits() > 0 {
			e.attr(unix.RTA_DST, dst.Addr().AsSlice())
		}
		e.attr(unix.RTA_GATEWAY, gateway.AsSlice())
		e.attrUint32(unix.RTA_OIF, uint32(index))
	})
}

// AddNeighbour fixes the hardware address behind ip on link index, so that no
// ARP or neighbour discovery precedes the first packet.
func (b *Batch) AddNeighbour(index int, ip netip.Addr, mac net.HardwareAddr) {
	b.message(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, fmt.Sprintf("add neighbour %s", ip), func(e *encoder) {
		e.bytes(family(ip), 0, 0, 0)
		e.buf = native.AppendUint32(e.buf, uint32(index))
		e.buf = native.AppendUint16(e.buf, unix.NUD_PERMANENT)
		e.bytes(0, unix.RTN_UNICAST)
		e.attr(unix.NDA_DST, ip.AsSlice())
		e.attr(unix.NDA_LLADDR, mac)
	})
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
