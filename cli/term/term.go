// Package term handles the user's terminal: raw mode, its size, and the keys that detach from a container.
package term

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"
)

// IsTerminal says whether f is a terminal.
func IsTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// Size is the terminal's rows and columns, zero when f is none.
func Size(f *os.File) (rows, columns uint32) {
	c, r, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0, 0
	}
	return uint32(r), uint32(c)
}

// Raw puts the terminal into raw mode; the returned function restores it and may be called more than once.
func Raw(f *os.File) (restore func(), err error) {
	state, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("raw terminal mode: %w", err)
	}
	return func() { _ = term.Restore(int(f.Fd()), state) }, nil
}

// Resizes calls f at each change of the terminal's size, as long as the process lives.
func Resizes(tty *os.File, f func(rows, columns uint32)) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	go func() {
		for range c {
			f(Size(tty))
		}
	}()
}

// ErrDetached is what a DetachReader returns when the user typed the detach keys.
var ErrDetached = errors.New("detached")

// DefaultDetachKeys are Docker's.
const DefaultDetachKeys = "ctrl-p,ctrl-q"

// ParseKeys reads a sequence such as "ctrl-p,ctrl-q" or "a,b"; empty means that there is no such sequence.
func ParseKeys(s string) ([]byte, error) {
	var out []byte
	if s == "" {
		return nil, nil
	}
	for k := range strings.SplitSeq(s, ",") {
		if c, ok := strings.CutPrefix(k, "ctrl-"); ok && len(c) == 1 {
			b := c[0] &^ 0x20
			if b >= '@' && b <= '_' {
				out = append(out, b-'@')
				continue
			}
		} else if len(k) == 1 {
			out = append(out, k[0])
			continue
		}
		return nil, fmt.Errorf("detach keys: %q in %q is neither a character nor ctrl-X", k, s)
	}
	return out, nil
}

// DetachReader passes input on and ends with ErrDetached at the detach keys. Keys that begin the sequence are held
// back until it is clear that it does not continue.
type DetachReader struct {
	r    io.Reader
	keys []byte
	held int    // how many of keys have been seen
	out  []byte // what is to be returned first
}

// NewDetachReader wraps r; with no keys it changes nothing.
func NewDetachReader(r io.Reader, keys []byte) *DetachReader { return &DetachReader{r: r, keys: keys} }

// Read implements io.Reader.
func (d *DetachReader) Read(p []byte) (int, error) {
	for len(d.out) == 0 {
		n, err := d.r.Read(p)
		if len(d.keys) == 0 {
			return n, err
		}
		if d.scan(p[:n]) {
			return 0, ErrDetached
		}
		if err != nil {
			d.out = append(d.out, d.keys[:d.held]...)
			d.held = 0
			if len(d.out) == 0 {
				return 0, err
			}
		}
	}
	n := copy(p, d.out)
	d.out = d.out[n:]
	return n, nil
}

// scan moves input to out; true at a complete sequence.
func (d *DetachReader) scan(in []byte) bool {
	for _, b := range in {
		if b != d.keys[d.held] {
			d.out = append(d.out, d.keys[:d.held]...)
			d.held = 0
			if b != d.keys[0] {
				d.out = append(d.out, b)
				continue
			}
		}
		d.held++
		if d.held == len(d.keys) {
			return true
		}
	}
	return false
}
