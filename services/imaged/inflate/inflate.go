// Package inflate finds out how a layer is compressed and undoes it, within
// bounds: compressed streams come from strangers and a few kilobytes of one can
// ask for terabytes.
package inflate

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"berth/services/imaged/inflate/gunzip"

	"github.com/klauspost/compress/zstd"
)

// Kind is a form of compression.
type Kind int

const (
	None Kind = iota
	Gzip
	Zstd
)

func (k Kind) String() string { return [...]string{"none", "gzip", "zstd"}[k] }

// Limits bound what a stream may expand to. A zero field means its default.
type Limits struct {
	Bytes int64 // after expansion; default 80 GiB: the files of a layer and their headers
	// Ratio is how many bytes one compressed byte may become, once Grace bytes
	// have come out. Default 1000 (deflate itself ends at 1032) after 1 GiB.
	Ratio int64
	Grace int64
}

// DefaultLimits are those of an image layer.
var DefaultLimits = Limits{Bytes: 80 << 30, Ratio: 1000, Grace: 1 << 30}

// maxWindow is the memory one zstd stream may ask for: what "zstd --ultra -22"
// and "--long=27" need. Every decoder is required to take 8 MiB (RFC 8878).
const maxWindow = 128 << 20

// ErrRefused is in the chain of errors that blame the stream: it is damaged,
// or exceeds the limits, or is of a kind that is not supported.
var ErrRefused = errors.New("stream refused")

// Reader gives the expanded bytes of a stream.
type Reader struct {
	kind   Kind
	in     *counter
	src    io.Reader
	close  func()
	limits Limits
	out    int64
}

// readAhead is the unit of reading compressed bytes.
const readAhead = 256 << 10

// NewReader looks at the first bytes of r to tell its kind: what a media type
// claims is not to be trusted, and old registries have the two mixed up. Close
// it in the end; it does not close r.
func NewReader(r io.Reader, l Limits) (*Reader, error) {
	in := &counter{r: r}
	buffered := bufio.NewReaderSize(in, readAhead)
	head, err := buffered.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	z := &Reader{in: in, limits: l.orDefault(), close: func() {}}
	return z, z.start(head, buffered)
}

func (z *Reader) start(head []byte, r *bufio.Reader) error {
	switch z.kind = KindOf(head); {
	case z.kind == Gzip:
		g, err := gunzip.NewReader(r)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
		z.src = g
	case z.kind == Zstd:
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return err
		}
		z.src, z.close = d, d.Close
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return fmt.Errorf("%w: xz compression is not supported", ErrRefused)
	case bytes.HasPrefix(head, []byte("BZh")):
		return fmt.Errorf("%w: bzip2 compression is not supported", ErrRefused)
	default:
		z.src = r
	}
	return nil
}

// KindOf tells from the first four bytes or more of a stream how it is
// compressed. None also stands for what this package does not know.
func KindOf(head []byte) Kind {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}): // RFC 1952
		return Gzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), isSkippable(head): // RFC 8878
		return Zstd
	}
	return None
}

// isSkippable recognises a zstd stream that begins with a skippable frame, as
// chunked layers do.
func isSkippable(head []byte) bool {
	return len(head) >= 4 && head[0]&0xf0 == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18
}

// Kind is how the stream is compressed.
func (z *Reader) Kind() Kind { return z.kind }

func (z *Reader) Read(p []byte) (int, error) {
	n, err := z.src.Read(p)
	z.out += int64(n)
	if z.out > z.limits.Bytes {
		return n, fmt.Errorf("%w: expands to more than %d bytes", ErrRefused, z.limits.Bytes)
	}
	if in := z.in.n.Load(); z.out > z.limits.Grace && z.out/z.limits.Ratio > in {
		return n, fmt.Errorf("%w: expands more than %d-fold", ErrRefused, z.limits.Ratio)
	}
	if err != nil && err != io.EOF && z.in.failed() == nil {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return n, err
}

// Close frees the decoder.
func (z *Reader) Close() { z.close() }

// Largest is how many bytes a stream may have after expansion.
func (l Limits) Largest() int64 { return l.orDefault().Bytes }

func (l Limits) orDefault() Limits {
	d := DefaultLimits
	if l.Bytes > 0 {
		d.Bytes = l.Bytes
	}
	if l.Ratio > 0 {
		d.Ratio = l.Ratio
	}
	if l.Grace > 0 {
		d.Grace = l.Grace
	}
	return d
}

// counter counts what is read from r and keeps r's own failure, so that it is
// not blamed on the stream. The zstd decoder reads from another goroutine.
type counter struct {
	r   io.Reader
	n   atomic.Int64
	err atomic.Pointer[error]
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	if err != nil && err != io.EOF {
		c.err.Store(&err)
	}
	return n, err
}

func (c *counter) failed() error {
	if p := c.err.Load(); p != nil {
		return *p
	}
	return nil
}
