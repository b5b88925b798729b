// Package wire is the binary form of the messages between the launching
// process and the one that becomes the container.
//
// Integers are varints, strings and byte slices are preceded by their length,
// lists by their count. There are no tags: both ends are built from the same
// source and the message says its version first. What makes a hand-written
// format worth it is the reader: it must start in microseconds, and
// encoding/json alone costs it half a millisecond of initialisation.
package wire

import (
	"encoding/binary"
	"errors"
)

// ErrMalformed is the error of a [Decoder] that ran out of input or met a
// value that cannot be.
var ErrMalformed = errors.New("malformed message")

// An Encoder appends values to Bytes. Its zero value is ready.
type Encoder struct{ Bytes []byte }

// Uint appends an unsigned integer.
func (e *Encoder) Uint(v uint64) { e.Bytes = binary.AppendUvarint(e.Bytes, v) }

// Int appends a signed integer.
func (e *Encoder) Int(v int) { e.Bytes = binary.AppendVarint(e.Bytes, int64(v)) }

// Bool appends a truth value.
func (e *Encoder) Bool(v bool) {
	if v {
		e.Uint(1)
	} else {
		e.Uint(0)
	}
}

// String appends a string.
func (e *Encoder) String(s string) {
	e.Uint(uint64(len(s)))
	e.Bytes = append(e.Bytes, s...)
}

// Blob appends a byte slice.
func (e *Encoder) Blob(b []byte) {
	e.Uint(uint64(len(b)))
	e.Bytes = append(e.Bytes, b...)
}

// Strings appends a list of strings.
func (e *Encoder) Strings(list []string) {
	e.Uint(uint64(len(list)))
	for _, s := range list {
		e.String(s)
	}
}

// A Decoder reads values in the order in which they were encoded. After its
// first error every read gives the zero value; look at Err once at the end.
type Decoder struct {
	rest []byte
	err  error
}

// NewDecoder reads from b, which it keeps.
func NewDecoder(b []byte) *Decoder { return &Decoder{rest: b} }

// Err is the first error, or ErrMalformed if input is left over.
func (d *Decoder) Err() error {
	if d.err == nil && len(d.rest) > 0 {
		return ErrMalformed
	}
	return d.err
}

// Uint reads an unsigned integer.
func (d *Decoder) Uint() uint64 {
	v, n := binary.Uvarint(d.rest)
	d.skip(n)
	if d.err != nil {
		return 0
	}
	return v
}

// Int reads a signed integer.
func (d *Decoder) Int() int {
	v, n := binary.Varint(d.rest)
	d.skip(n)
	if d.err != nil {
		return 0
	}
	return int(v)
}

// Bool reads a truth value.
func (d *Decoder) Bool() bool {
	switch d.Uint() {
	case 0:
		return false
	case 1:
		return d.err == nil
	}
	d.fail()
	return false
}

// String reads a string.
func (d *Decoder) String() string { return string(d.Blob()) }

// Blob reads a byte slice. It is part of the input: copy it to change it.
func (d *Decoder) Blob() []byte {
	n := d.Count()
	if d.err != nil || n == 0 {
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

// Strings reads a list of strings.
func (d *Decoder) Strings() []string {
	return List(d, (*Decoder).String)
}

// Count reads the length of a list. It is never more than the bytes that are
// left, so that a damaged length cannot ask for gigabytes.
func (d *Decoder) Count() int {
	n := d.Uint()
	if n > uint64(len(d.rest)) {
		d.fail()
		return 0
	}
	return int(n)
}

// List reads a list of values, each by read.
func List[T any](d *Decoder, read func(*Decoder) T) []T {
	n := d.Count()
	if n == 0 {
		return nil
	}
	list := make([]T, 0, n)
	for range n {
		v := read(d)
		if d.err != nil {
			return nil
		}
		list = append(list, v)
	}
	return list
}

func (d *Decoder) skip(n int) {
	if n <= 0 || d.err != nil {
		d.fail()
		return
	}
	d.rest = d.rest[n:]
}

func (d *Decoder) fail() {
	if d.err == nil {
		d.err = ErrMalformed
	}
	d.rest = nil
}
