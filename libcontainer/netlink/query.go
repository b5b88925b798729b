package netlink

import (
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Link is a network device as listed by the kernel.
type Link struct {
	Index  int
	Name   string
	Kind   string // "veth", "bridge", …; "" for hardware and lo
	Master int    // index of the bridge or bond it is a port of; 0: none
	Group  uint32
	MTU    int
	Up     bool // administratively
	Passes bool // operational: packets pass (IF_OPER_UP, RFC 2863)
	MAC    net.HardwareAddr
}

// Address is an address of a link, with the prefix length of its subnet.
type Address struct {
	Link   int
	Prefix netip.Prefix
}

// Route is a unicast route of the main table. Dst of a default route is the
// zero prefix of its family.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr
	Link    int
}

// errInterrupted is the kernel saying that what is dumped changed meanwhile.
var errInterrupted = errors.New("netlink dump interrupted by changes")

// LinkByName finds one link. The error unwraps to ENODEV if there is none.
func (c *Conn) LinkByName(name string) (Link, error) {
	defer c.borrow()()
	var found Link
	err := c.query(unix.RTM_GETLINK, 0, "look up link "+name, func(e *encoder) {
		e.ifinfomsg(0, 0, 0)
		e.attrString(unix.IFLA_IFNAME, name)
	}, func(body []byte) { found, _ = parseLink(body) })
	return found, err
}

// Links lists all links of the namespace.
func (c *Conn) Links() ([]Link, error) {
	return dump(c, unix.RTM_GETLINK, "list links", func(e *encoder) { e.ifinfomsg(0, 0, 0) }, parseLink)
}

// Addresses lists the IPv4 and IPv6 addresses of all links.
func (c *Conn) Addresses() ([]Address, error) {
	return dump(c, unix.RTM_GETADDR, "list addresses", func(e *encoder) { e.bytes(make([]byte, unix.SizeofIfAddrmsg)...) }, parseAddress)
}

// Routes lists the unicast routes of the main table, both families.
func (c *Conn) Routes() ([]Route, error) {
	return dump(c, unix.RTM_GETROUTE, "list routes", func(e *encoder) { e.bytes(make([]byte, unix.SizeofRtMsg)...) }, parseRoute)
}

// dump runs a listing until one passes that nothing changed under.
func dump[T any](c *Conn, kind uint16, op string, body func(*encoder), parse func([]byte) (T, bool)) ([]T, error) {
	defer c.borrow()()
	const attempts = 20
	var list []T
	var err error
	for range attempts {
		list = list[:0]
		err = c.query(kind, unix.NLM_F_DUMP, op, body, func(b []byte) {
			if v, ok := parse(b); ok {
				list = append(list, v)
			}
		})
		if !errors.Is(err, errInterrupted) {
			break
		}
	}
	return list, err
}

// query sends one request and passes each answer's body to visit. The caller
// holds the lock.
func (c *Conn) query(kind, flags uint16, op string, body func(*encoder), visit func([]byte)) error {
	c.seq++
	seq := c.seq
	var e encoder
	at := e.begin(kind, unix.NLM_F_REQUEST|flags, seq)
	body(&e)
	e.end(at)
	if err := c.send(e.buf); err != nil {
		return err
	}
	done, interrupted := false, false
	var refused error
	for !done {
		err := c.receive(func(m message) error {
			if m.seq != seq {
				return nil
			}
			interrupted = interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.kind {
			case unix.NLMSG_ERROR:
				if errno, text := m.verdict(); errno != 0 {
					refused = &OpError{op, errno, text}
				}
				done = true
			case unix.NLMSG_DONE:
				done = true
			default:
				visit(m.body)
				done = done || flags&unix.NLM_F_DUMP == 0
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if refused == nil && interrupted {
		return errInterrupted
	}
	return refused
}

func parseLink(b []byte) (Link, bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return Link{}, false
	}
	l := Link{
		Index: int(int32(native.Uint32(b[4:]))),
		Up:    native.Uint32(b[8:])&unix.IFF_UP != 0,
	}
	ok := attributes(b[unix.SizeofIfInfomsg:], func(kind uint16, p []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(p)
		case unix.IFLA_OPERSTATE:
			const up = 6 // IF_OPER_UP, linux/if.h
			l.Passes = len(p) > 0 && p[0] == up
		case unix.IFLA_MASTER:
			l.Master = int(word(p))
		case unix.IFLA_GROUP:
			l.Group = word(p)
		case unix.IFLA_MTU:
			l.MTU = int(word(p))
		case unix.IFLA_ADDRESS:
			l.MAC = append(net.HardwareAddr(nil), p...)
		case unix.IFLA_LINKINFO:
			attributes(p, func(kind uint16, p []byte) {
				if kind == unix.IFLA_INFO_KIND {
					l.Kind = unix.ByteSliceToString(p)
				}
			})
		}
	})
	return l, ok
}

func parseAddress(b []byte) (Address, bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return Address{}, false
	}
	bits := int(b[1])
	a := Address{Link: int(native.Uint32(b[4:]))}
	ok := attributes(b[unix.SizeofIfAddrmsg:], func(kind uint16, p []byte) {
		// IFA_LOCAL is the address itself; IFA_ADDRESS is the far end's on
		// point-to-point links, and the only one present for IPv6.
		ip, valid := netip.AddrFromSlice(p)
		if valid && (kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && !a.Prefix.IsValid()) {
			a.Prefix = netip.PrefixFrom(ip, bits)
		}
	})
	return a, ok && a.Prefix.IsValid()
}

func parseRoute(b []byte) (Route, bool) {
	if len(b) < unix.SizeofRtMsg || b[7] != unix.RTN_UNICAST {
		return Route{}, false
	}
	table := uint32(b[4])
	zero := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		zero = netip.IPv6Unspecified()
	}
	bits := int(b[1])
	r := Route{Dst: netip.PrefixFrom(zero, bits)}
	ok := attributes(b[unix.SizeofRtMsg:], func(kind uint16, p []byte) {
		switch kind {
		case unix.RTA_TABLE:
			table = word(p)
		case unix.RTA_DST:
			if ip, valid := netip.AddrFromSlice(p); valid {
				r.Dst = netip.PrefixFrom(ip, bits)
			}
		case unix.RTA_GATEWAY:
			r.Gateway, _ = netip.AddrFromSlice(p)
		case unix.RTA_OIF:
			r.Link = int(word(p))
		}
	})
	return r, ok && table == unix.RT_TABLE_MAIN
}

func word(p []byte) uint32 {
	if len(p) < 4 {
		return 0
	}
	return native.Uint32(p)
}
