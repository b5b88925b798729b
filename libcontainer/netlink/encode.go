package netlink

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// native is the machine's byte order: netlink is never sent over a wire.
var native = binary.NativeEndian

// An encoder appends netlink messages to one buffer. Lengths are filled in when
// a message or a nested attribute is closed, so nesting costs no copies.
type encoder struct {
	buf []byte
}

// begin opens a message and returns its offset, for end.
func (e *encoder) begin(kind, flags uint16, seq uint32) int {
	at := len(e.buf)
	e.buf = native.AppendUint32(e.buf, 0) // length, set by end
	e.buf = native.AppendUint16(e.buf, kind)
	e.buf = native.AppendUint16(e.buf, flags)
	e.buf = native.AppendUint32(e.buf, seq)
	e.buf = native.AppendUint32(e.buf, 0) // port id: the kernel knows it
	return at
}

// end closes the message opened at offset at.
func (e *encoder) end(at int) {
	native.PutUint32(e.buf[at:], uint32(len(e.buf)-at))
	e.pad()
}

// bytes appends a fixed header that follows the message header or an attribute.
func (e *encoder) bytes(b ...byte) { e.buf = append(e.buf, b...) }

// ifinfomsg appends struct ifinfomsg (rtnetlink(7)).
func (e *encoder) ifinfomsg(index int, flags, change uint32) {
	e.bytes(unix.AF_UNSPEC, 0)
	e.buf = native.AppendUint16(e.buf, 0) // device type: any
	e.buf = native.AppendUint32(e.buf, uint32(int32(index)))
	e.buf = native.AppendUint32(e.buf, flags)
	e.buf = native.AppendUint32(e.buf, change)
}

// attr appends one attribute. netlink(7): the payload is padded to 4 bytes, the
// length field does not count the padding.
func (e *encoder) attr(kind uint16, payload []byte) {
	e.buf = native.AppendUint16(e.buf, uint16(unix.SizeofRtAttr+len(payload)))
	e.buf = native.AppendUint16(e.buf, kind)
	e.buf = append(e.buf, payload...)
	e.pad()
}

func (e *encoder) attrString(kind uint16, s string) {
	e.attr(kind, append([]byte(s), 0))
}

func (e *encoder) attrUint32(kind uint16, v uint32) {
	e.attr(kind, native.AppendUint32(nil, v))
}

func (e *encoder) attrUint8(kind uint16, v uint8) { e.attr(kind, []byte{v}) }

// open starts a nested attribute and returns its offset, for shut.
func (e *encoder) open(kind uint16) int {
	at := len(e.buf)
	e.buf = native.AppendUint16(e.buf, 0)
	e.buf = native.AppendUint16(e.buf, kind)
	return at
}

func (e *encoder) shut(at int) {
	native.PutUint16(e.buf[at:], uint16(len(e.buf)-at))
	e.pad()
}

func (e *encoder) pad() {
	for len(e.buf)%unix.NLMSG_ALIGNTO != 0 {
		e.buf = append(e.buf, 0)
	}
}

// attributes walks the attributes in b, calling visit with each type (without
// the nested and byte-order bits) and payload, and reports whether b was
// well formed to its end. What comes from the kernel is still checked: the
// lengths are used as slice bounds.
func attributes(b []byte, visit func(kind uint16, payload []byte)) bool {
	for len(b) >= unix.SizeofRtAttr {
		n := int(native.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return false
		}
		visit(native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
	return len(b) == 0
}
