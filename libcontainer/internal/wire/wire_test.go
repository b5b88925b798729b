package wire

import (
	"errors"
	"reflect"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	e := &Encoder{}
	e.Uint(1 << 63)
	e.Int(-5)
	e.Bool(true)
	e.String("text")
	e.Blob([]byte{0, 1})
	e.Strings([]string{"a", "", "c"})
	d := NewDecoder(e.Bytes)
	got := []any{d.Uint(), d.Int(), d.Bool(), d.String(), d.Blob(), d.Strings()}
	want := []any{uint64(1 << 63), -5, true, "text", []byte{0, 1}, []string{"a", "", "c"}}
	if !reflect.DeepEqual(got, want) || d.Err() != nil {
		t.Errorf("got %v, %v; want %v", got, d.Err(), want)
	}
	for n := range e.Bytes {
		d := NewDecoder(e.Bytes[:n])
		d.Uint()
		d.Int()
		d.Bool()
		_ = d.String()
		d.Blob()
		d.Strings()
		if !errors.Is(d.Err(), ErrMalformed) {
			t.Errorf("the first %d bytes pass", n)
		}
	}
	if d := NewDecoder([]byte{0, 0}); d.Uint() != 0 || d.Err() == nil {
		t.Error("bytes left over pass")
	}
	if d := NewDecoder([]byte{2}); d.Bool() || d.Err() == nil {
		t.Error("a truth value of 2 passes")
	}
}

// FuzzDecoder: no input makes a decoder panic, or allocate beyond its size.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte{3, 1, 2, 3})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := NewDecoder(b)
		n := len(d.Strings()) + len(d.Blob()) + len(List(d, (*Decoder).Int))
		if n > len(b) {
			t.Errorf("%d values out of %d bytes", n, len(b))
		}
	})
}
