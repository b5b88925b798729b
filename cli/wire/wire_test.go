package wire

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

// nested is a message that holds a string and itself.
type nested struct {
	text string
	in   *nested
}

func (m *nested) AppendTo(b []byte) []byte {
	b = AppendBytes(b, 1, m.text)
	if m.in != nil {
		b = AppendMessage(b, 2, m.in)
	}
	return b
}

func (m *nested) Merge(b []byte) error {
	d := NewDecoder(b)
	for d.Next() {
		switch d.Key {
		case 1<<3 | Bytes:
			m.text = d.String()
		case 2<<3 | Bytes:
			m.in = new(nested)
			d.Message(m.in)
		}
	}
	return d.Err()
}

// TestLengths: a body's length is put before it once it is known, whatever number of bytes it needs.
func TestLengths(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 127, 128, 16381, 16382, 16384, 3 << 20} {
		want := &nested{"a", &nested{strings.Repeat("x", n), &nested{"c", nil}}}
		var got nested
		if err := got.Merge(want.AppendTo(nil)); err != nil || got.in.text != want.in.text || got.in.in.text != "c" {
			t.Errorf("%d bytes: %d came back, %v", n, len(got.in.text), err)
		}
	}
}

func TestBadBytes(t *testing.T) {
	for in, want := range map[string]error{
		"\x0a":             errTruncated, // a key alone
		"\x0a\x05abcd":     errTruncated,
		"\x08\x80":         errTruncated, // half a number
		"\x09\x01\x02":     errTruncated,
		"\x0d\x01\x02":     errTruncated,
		"\x02\x00":         errKey, // field 0
		"\x0b\x0c":         errKey, // a group
		"\x0f":             errKey, // wire type 7
		"\x0a\x01\xff":     errUTF8,
		"\x12\x03\x0a\x05": errTruncated, // the message inside; also cut off itself
		"\x12\x02\x0a\x05": errTruncated, // the message inside alone
		"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01": errTruncated, // a length above any
		"\x08" + strings.Repeat("\xff", 10) + "\x01":   errVarint,
		"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01\x00": errKey, // a field number above 2^29-1
	} {
		var m nested
		if err := m.Merge([]byte(in)); !errors.Is(err, want) {
			t.Errorf("%x: %v, want %v", in, err, want)
		}
	}
	var m nested // unknown fields, and known ones of another wire type, are passed over
	if err := m.Merge([]byte("\x08\x01\x1d....\x21........\x2a\x01x\x0a\x01y")); err != nil || m.text != "y" {
		t.Errorf("unknown fields: %q, %v", m.text, err)
	}
}

func TestPacked(t *testing.T) {
	want := []int32{0, 1, -1, math.MaxInt32, math.MinInt32}
	d := NewDecoder(AppendPacked(nil, 1, want))
	if !d.Next() {
		t.Fatal(d.Err())
	}
	got := Packed(&d, []int32{7})
	if len(got) != 6 || got[0] != 7 || got[3] != -1 || got[5] != math.MinInt32 || d.Err() != nil {
		t.Errorf("%v, %v", got, d.Err())
	}
	d = NewDecoder([]byte("\x0a\x01\x80"))
	d.Next()
	if Packed[int32](&d, nil); !errors.Is(d.Err(), errTruncated) {
		t.Errorf("half a number: %v", d.Err())
	}
}

func TestBytesAreCopied(t *testing.T) {
	in := []byte("\x0a\x01x")
	d := NewDecoder(in)
	d.Next()
	got := d.Bytes()
	in[2] = 'y'
	if !bytes.Equal(got, []byte("x")) {
		t.Errorf("%q", got)
	}
}

func TestTimes(t *testing.T) {
	for _, d := range []time.Duration{0, 1, -1, time.Second, -1500 * time.Millisecond, math.MaxInt64, math.MinInt64} {
		if got := NewDuration(d).AsDuration(); got != d {
			t.Errorf("%d came back as %d", d, got)
		}
	}
	for seconds, want := range map[int64]time.Duration{9223372036: 9223372036e9, 9223372037: math.MaxInt64, 1 << 60: math.MaxInt64, -9223372037: math.MinInt64, math.MinInt64: math.MinInt64} {
		if got := (&Duration{Seconds: seconds}).AsDuration(); got != want {
			t.Errorf("%d s are %d", seconds, got)
		}
	}
	for _, at := range []time.Time{time.Unix(0, 0), time.Unix(-1, 5), time.Now(), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if got := NewTimestamp(at).AsTime(); !got.Equal(at) || got.Location() != time.UTC {
			t.Errorf("%v came back as %v", at, got)
		}
	}
}
