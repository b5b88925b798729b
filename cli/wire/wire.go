// Package wire encodes and decodes protocol buffers for the messages of package apiv1, without reflection.
//
// A command lives for a few milliseconds. google.golang.org/protobuf registers every descriptor of the API before main
// and builds a coder for each message at its first use, which takes longer than the engine takes to answer; the code
// generated for package apiv1 does neither. What is here is the part all messages share: keys and values as
// https://protobuf.dev/programming-guides/encoding/ defines them, and the two well-known types that the API uses.
//
// Groups are not supported; no message of the API has one.
package wire

import (
	"encoding/binary"
	"errors"
	"math"
	"unicode/utf8"
)

// Wire types, the low three bits of a field's key.
const (
	Varint  = 0
	Fixed64 = 1
	Bytes   = 2
	Fixed32 = 5
)

// Message is what a generated message does.
type Message interface {
	// AppendTo appends the encoded message to b. A nil message is an empty one.
	AppendTo(b []byte) []byte
	// Merge decodes b into the message: single fields are replaced, lists grow. It keeps no reference to b.
	Merge(b []byte) error
}

// AppendKey begins a field.
func AppendKey(b []byte, number, wireType int) []byte {
	return binary.AppendUvarint(b, uint64(number)<<3|uint64(wireType))
}

// AppendUint appends a field of any kind that is a varint. Negative numbers are passed with their sign extended.
func AppendUint(b []byte, number int, v uint64) []byte {
	return binary.AppendUvarint(AppendKey(b, number, Varint), v)
}

// AppendBool appends a field of kind bool.
func AppendBool(b []byte, number int, v bool) []byte {
	var n uint64
	if v {
		n = 1
	}
	return AppendUint(b, number, n)
}

// AppendDouble appends a field of kind double.
func AppendDouble(b []byte, number int, v float64) []byte {
	return binary.LittleEndian.AppendUint64(AppendKey(b, number, Fixed64), math.Float64bits(v))
}

// AppendBytes appends a field of kind string or bytes.
func AppendBytes[T string | []byte](b []byte, number int, v T) []byte {
	return append(binary.AppendUvarint(AppendKey(b, number, Bytes), uint64(len(v))), v...)
}

// AppendMessage appends a field that is a message.
func AppendMessage(b []byte, number int, m Message) []byte {
	b, body := Begin(b, number)
	return End(m.AppendTo(b), body)
}

// AppendPacked appends a list of varints.
func AppendPacked[T ~int32 | ~int64 | ~uint32 | ~uint64](b []byte, number int, list []T) []byte {
	b, body := Begin(b, number)
	for _, v := range list {
		b = binary.AppendUvarint(b, uint64(v))
	}
	return End(b, body)
}

// Begin begins a field whose length is not known yet: what follows, up to End, is its body.
func Begin(b []byte, number int) (_ []byte, body int) {
	b = append(AppendKey(b, number, Bytes), 0) // most bodies are shorter than 128 bytes: one byte for the length
	return b, len(b)
}

// End completes the field whose body begins at that index of b.
func End(b []byte, body int) []byte {
	n := uint64(len(b) - body)
	if n < 0x80 {
		b[body-1] = byte(n)
		return b
	}
	var length [binary.MaxVarintLen64]byte
	size := binary.PutUvarint(length[:], n)
	b = append(b, length[1:size]...) // makes room
	copy(b[body-1+size:], b[body:body+int(n)])
	copy(b[body-1:], length[:size])
	return b
}

var (
	errTruncated = errors.New("protobuf: message is cut off")
	errVarint    = errors.New("protobuf: number has more than 64 bits")
	errKey       = errors.New("protobuf: not a field number or wire type")
	errUTF8      = errors.New("protobuf: string is not UTF-8")
)

// Decoder goes through the fields of a message: Next, then the method for the kind of the field that Key names.
type Decoder struct {
	// Key is the current field's number<<3 and its wire type.
	Key  uint64
	rest []byte
	num  uint64
	data []byte
	err  error
}

// NewDecoder decodes b.
func NewDecoder(b []byte) Decoder { return Decoder{rest: b} }

// Err is why Next returned false before the message's end, otherwise nil.
func (d *Decoder) Err() error { return d.err }

// Next goes to the next field.
func (d *Decoder) Next() bool {
	if len(d.rest) == 0 || d.err != nil {
		return false
	}
	d.Key = d.varint()
	if number := d.Key >> 3; d.err == nil && (number == 0 || number > 1<<29-1) {
		d.err = errKey
	}
	switch d.Key & 7 {
	case Varint:
		d.num = d.varint()
	case Fixed64:
		if b := d.take(8); d.err == nil {
			d.num = binary.LittleEndian.Uint64(b)
		}
	case Bytes:
		d.data = d.take(d.varint())
	case Fixed32:
		if b := d.take(4); d.err == nil {
			d.num = uint64(binary.LittleEndian.Uint32(b))
		}
	default:
		d.fail(errKey)
	}
	return d.err == nil
}

func (d *Decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *Decoder) varint() uint64 {
	v, n := binary.Uvarint(d.rest)
	switch {
	case n > 0:
		d.rest = d.rest[n:]
	case n == 0:
		d.fail(errTruncated)
	default:
		d.fail(errVarint)
	}
	return v
}

func (d *Decoder) take(n uint64) []byte {
	if d.err == nil && n > uint64(len(d.rest)) {
		d.fail(errTruncated)
	}
	if d.err != nil {
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

// Uint is a varint; a smaller or signed kind is its conversion.
func (d *Decoder) Uint() uint64 { return d.num }

// Bool is a bool.
func (d *Decoder) Bool() bool { return d.num != 0 }

// Double is a double.
func (d *Decoder) Double() float64 { return math.Float64frombits(d.num) }

// String is a string.
func (d *Decoder) String() string {
	if !utf8.Valid(d.data) {
		d.fail(errUTF8)
		return ""
	}
	return string(d.data)
}

// Bytes is a copy of the field's bytes, never nil.
func (d *Decoder) Bytes() []byte { return append([]byte{}, d.data...) }

// Message decodes the field into m.
func (d *Decoder) Message(m Message) {
	if err := m.Merge(d.data); err != nil {
		d.fail(err)
	}
}

// Entry is a decoder for a field that is an entry of a map: its key is field 1, its value field 2.
func (d *Decoder) Entry() Decoder { return NewDecoder(d.data) }

// Fail ends decoding with an error found in a part of the message; nil changes nothing.
func (d *Decoder) Fail(err error) {
	if err != nil {
		d.fail(err)
	}
}

// Packed appends a list of varints to list.
func Packed[T ~int32 | ~int64 | ~uint32 | ~uint64](d *Decoder, list []T) []T {
	for p := NewDecoder(d.data); len(p.rest) > 0; {
		v := p.varint()
		if p.err != nil {
			d.fail(p.err)
			return list
		}
		list = append(list, T(v))
	}
	return list
}
