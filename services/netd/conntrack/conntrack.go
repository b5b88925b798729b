// Package conntrack makes the kernel forget connections that the engine's rules
// have overtaken. Address translation is decided once, at a connection's first
// packet; a UDP "connection" may be older than the published port, or outlive
// the container it led to, and would keep going wrong until it is forgotten.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
)

// Numbers of linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
const (
	familyNetfilter = 12 // NETLINK_NETFILTER
	subsystem       = 1  // NFNL_SUBSYS_CTNETLINK
	messageGet      = subsystem<<8 | 1
	messageDelete   = subsystem<<8 | 2

	attrOriginal = 1  // CTA_TUPLE_ORIG
	attrReply    = 2  // CTA_TUPLE_REPLY
	attrZone     = 18 // CTA_ZONE

	tupleIP, tupleProto             = 1, 2    // CTA_TUPLE_IP, CTA_TUPLE_PROTO
	ipSource, ipDest                = 1, 2    // CTA_IP_V4_SRC, CTA_IP_V4_DST
	protoNumber, protoSrc, protoDst = 1, 2, 3 // CTA_PROTO_NUM, …_SRC_PORT, …_DST_PORT
)

// Tuple is one direction of a connection.
type Tuple struct {
	Protocol uint8
	Src, Dst netip.AddrPort
}

// Flow is a connection: Original as its opener sees it, Reply as the answering
// side's packets look.
type Flow struct {
	Original, Reply Tuple
}

// patience with the kernel, should an answer of its be lost.
const patience = 5 * time.Second

// header is struct nfgenmsg for IPv4.
var header = []byte{2 /* AF_INET */, 0, 0, 0}

// Table is the kernel's table of connections. Its methods may be called from any
// goroutine.
type Table struct {
	mu   sync.Mutex
	conn *netlink.Conn
}

// Open reaches the table of the process's network namespace. The socket is kept:
// closing one of this family makes the kernel wait, with the lock of nftables
// held, until elements deleted before are out of use, some 20 ms
// (nft_rcv_nl_event in Linux).
func Open() (*Table, error) {
	conn, err := netlink.Dial(familyNetfilter, nil)
	if err != nil {
		return nil, fmt.Errorf("open conntrack socket: %w", err)
	}
	return &Table{conn: conn}, nil
}

// Close closes the socket.
func (t *Table) Close() error { return t.conn.Close() }

// Forget deletes the IPv4 connections that match and returns their number. It
// reads the whole table: not for a hot path.
func (t *Table) Forget(match func(Flow) bool) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conn.SetReadDeadline(time.Now().Add(patience))
	flows, err := t.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: messageGet, Flags: netlink.Request | netlink.Dump},
		Data:   header,
	})
	if err != nil {
		return 0, fmt.Errorf("list connections: %w", err)
	}
	forgotten := 0
	var errs []error
	for _, m := range flows {
		flow, id, err := parse(m.Data)
		if err != nil || !match(flow) {
			continue // a malformed one is an address family or protocol we do not translate
		}
		_, err = t.conn.Execute(netlink.Message{
			Header: netlink.Header{Type: messageDelete, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(header[:4:4], id...),
		})
		switch {
		case err == nil:
			forgotten++
		case !errors.Is(err, os.ErrNotExist): // it may expire meanwhile
			errs = append(errs, err)
		}
	}
	return forgotten, errors.Join(errs...)
}

// parse returns a flow, and the attributes by which the kernel knows it.
func parse(data []byte) (f Flow, id []byte, err error) {
	if len(data) < len(header) {
		return f, nil, errors.New("short message")
	}
	ad, err := netlink.NewAttributeDecoder(data[len(header):])
	if err != nil {
		return f, nil, err
	}
	var keep []netlink.Attribute
	for ad.Next() {
		switch ad.Type() {
		case attrOriginal:
			keep = append(keep, netlink.Attribute{Type: attrOriginal | netlink.Nested, Data: ad.Bytes()})
			ad.Nested(f.Original.parse)
		case attrReply:
			ad.Nested(f.Reply.parse)
		case attrZone:
			keep = append(keep, netlink.Attribute{Type: attrZone, Data: ad.Bytes()})
		}
	}
	if err := ad.Err(); err != nil {
		return f, nil, err
	}
	id, err = netlink.MarshalAttributes(keep)
	return f, id, err
}

func (t *Tuple) parse(ad *netlink.AttributeDecoder) error {
	var src, dst netip.Addr
	var srcPort, dstPort uint16
	for ad.Next() {
		switch ad.Type() {
		case tupleIP:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch ad.Type() {
					case ipSource:
						src, _ = netip.AddrFromSlice(ad.Bytes())
					case ipDest:
						dst, _ = netip.AddrFromSlice(ad.Bytes())
					}
				}
				return nil
			})
		case tupleProto:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				ad.ByteOrder = binary.BigEndian
				for ad.Next() {
					switch ad.Type() {
					case protoNumber:
						t.Protocol = ad.Uint8()
					case protoSrc:
						srcPort = ad.Uint16()
					case protoDst:
						dstPort = ad.Uint16()
					}
				}
				return nil
			})
		}
	}
	t.Src, t.Dst = netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)
	return nil
}
