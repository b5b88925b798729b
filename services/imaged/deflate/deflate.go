// Package deflate compresses layers with all processors at once.
//
// A layer that is made here is compressed while it is read, unpacked and
// hashed. As a step of that chain it would be the slowest by far, so it is
// none: blocks are compressed beside it, each by a goroutine of its own.
//
//	Write ─► block ─┬─► compress ─┐
//	                ├─► compress ─┼─► in order ─► w
//	                └─► compress ─┘
//
// They end at a byte each (RFC 1951, 3.2.4) and so are one gzip stream with one
// header, which every decoder reads: it is no different from one that was
// flushed now and then. Blocks refer to nothing before them, which costs less
// than 1 % in size.
//
// Compressing is most of the work of a commit, and the encoder is made for it:
// it takes less time than the fastest level of the usual libraries for Go for
// about the same size (docs/performance.md).
package deflate

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"runtime"
)

const (
	blockSize = 512 << 10
	// maxBlocks bounds the memory, some 2 MiB a block, where there are many
	// processors: with eight it is not compressing that takes longest.
	maxBlocks = 8
)

// Writer compresses what is written to it, fast rather than small, and always to
// the same bytes, however many processors there are. It is for one goroutine.
// Close must be called, after a failure too: until then goroutines of it are at
// work, and w may be written to.
type Writer struct {
	w      io.Writer
	cur    *block
	free   chan *block
	queue  chan *block // in order
	ended  chan struct{}
	failed chan struct{} // closed when err is set
	err    error

	sum    uint32 // CRC-32 of what was written
	size   uint32 // modulo 2³², as gzip wants it
	closed bool
}

// block is a part of the stream.
type block struct {
	in    []byte
	out   []byte
	z     encoder
	ready chan struct{} // compressed
}

// NewWriter makes a writer to w of the format of RFC 1952.
func NewWriter(w io.Writer) *Writer {
	n := min(runtime.GOMAXPROCS(0), maxBlocks) + 1 // one being filled
	z := &Writer{
		w: w, free: make(chan *block, n), queue: make(chan *block, n),
		ended: make(chan struct{}), failed: make(chan struct{}),
	}
	for range n {
		z.free <- &block{ready: make(chan struct{}, 1)}
	}
	z.cur = <-z.free
	go z.run()
	return z
}

// header has no name and no time: equal archives give equal blobs. Its last two
// bytes say that it was compressed fast, and by an unknown system.
var header = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255}

// run writes to w what has been compressed, until there is no more.
func (z *Writer) run() {
	defer close(z.ended)
	_, err := z.w.Write(header)
	for b := range z.queue {
		<-b.ready
		if err == nil {
			_, err = z.w.Write(b.out)
		}
		if err != nil && z.err == nil {
			z.err = err
			close(z.failed)
		}
		z.free <- b
	}
}

// Write takes p in. An error of w comes with a later call.
func (z *Writer) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if z.cur.in == nil {
			z.cur.in = make([]byte, 0, blockSize)
		}
		take := p[:min(len(p), blockSize-len(z.cur.in))]
		z.cur.in = append(z.cur.in, take...)
		z.sum = crc32.Update(z.sum, crc32.IEEETable, take)
		z.size += uint32(len(take))
		n, p = n+len(take), p[len(take):]
		if len(z.cur.in) == blockSize {
			z.compress(false)
		}
		select {
		case <-z.failed:
			return n, z.err
		default:
		}
	}
	return n, nil
}

// compress has the current block compressed and takes another.
func (z *Writer) compress(last bool) {
	b := z.cur
	go func() {
		b.out = b.z.encode(b.in, last)
		b.in = b.in[:0]
		b.ready <- struct{}{}
	}()
	z.queue <- b // has room for all
	z.cur = <-z.free
}

// Close writes what is left, and the end of the stream. It does not close w.
// Nothing is written to w afterwards. A second call does nothing.
func (z *Writer) Close() error {
	if z.closed {
		return z.err
	}
	z.closed = true
	z.compress(true)
	close(z.queue)
	<-z.ended
	if z.err != nil {
		return z.err
	}
	_, z.err = z.w.Write(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, z.sum), z.size))
	return z.err
}
