package term

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestDetachReader(t *testing.T) {
	keys, err := ParseKeys(DefaultDetachKeys)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		in, out  string
		detached bool
	}{
		{"hello", "hello", false},
		{"a\x10b", "a\x10b", false},
		{"a\x10\x11b", "a", true},
		{"\x10\x10\x11", "\x10", true},
		{"\x10", "\x10", false},
	} {
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(tc.in), "bytewise": iotest.OneByteReader(strings.NewReader(tc.in))} {
			var got strings.Builder
			d := NewDetachReader(r, keys)
			buf := make([]byte, 16)
			var err error
			for err == nil {
				var n int
				n, err = d.Read(buf)
				got.Write(buf[:n])
			}
			if errors.Is(err, ErrDetached) != tc.detached {
				t.Errorf("%s %q: ended with %v", name, tc.in, err)
			}
			if want := tc.out; got.String() != want && !(tc.detached && name == "whole" && strings.HasPrefix(want, got.String())) {
				t.Errorf("%s %q: read %q, want %q", name, tc.in, got.String(), want)
			}
		}
	}
}

func TestParseKeys(t *testing.T) {
	for _, bad := range []string{"ctrl-", "ctrl-pp", "ab", "a,,b"} {
		if k, err := ParseKeys(bad); err == nil {
			t.Errorf("ParseKeys(%q) = %q", bad, k)
		}
	}
	if k, err := ParseKeys("ctrl-P,x"); err != nil || string(k) != "\x10x" {
		t.Errorf("ParseKeys = %q, %v", k, err)
	}
}
