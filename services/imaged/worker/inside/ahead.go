package inside

import (
	"fmt"
	"hash"
	"io"
	"sync"

	"berth/services/imaged/inflate"
)

// aheadReader reads its source in a goroutine of its own, a few buffers ahead
// of whoever reads from it, and hashes in another what has been read:
//
//	source ─► full ─► Read ─► used ─► hash ─► empty ─► source …
type aheadReader struct {
	full  chan chunk
	used  chan []byte // to be hashed
	empty chan []byte
	stop  chan struct{}
	once  sync.Once
	sum   chan struct{} // closed when all is hashed
	cur   []byte        // rest of the buffer being read
	buf   []byte        // all of it
	err   error
}

type chunk struct {
	buf []byte
	n   int
	err error
}

const (
	aheadBuffers = 6
	aheadSize    = 256 << 10
)

// readAhead starts reading from r, and calls free when it no longer does. What
// is read is in h after Hashed.
func readAhead(r io.Reader, h hash.Hash, free func()) *aheadReader {
	a := &aheadReader{
		full: make(chan chunk, aheadBuffers), used: make(chan []byte, aheadBuffers), empty: make(chan []byte, aheadBuffers),
		stop: make(chan struct{}), sum: make(chan struct{}),
	}
	for range aheadBuffers {
		a.empty <- make([]byte, aheadSize)
	}
	go a.run(r, free)
	go a.hash(h)
	return a
}

func (a *aheadReader) run(r io.Reader, free func()) {
	defer free()
	for {
		select {
		case <-a.stop:
			return
		case buf := <-a.empty:
			c := fill(r, buf[:cap(buf)])
			a.full <- c // has room for all buffers
			if c.err != nil {
				return
			}
		}
	}
}

// hash takes what Read is done with, until there is no more or all ends.
func (a *aheadReader) hash(h hash.Hash) {
	for {
		select {
		case <-a.stop:
			return
		case buf, ok := <-a.used:
			if !ok {
				close(a.sum)
				return
			}
			h.Write(buf)
			a.empty <- buf
		}
	}
}

// fill reads until buf is full: inflaters give out small pieces. A panic of
// theirs is an error of the stream.
func fill(r io.Reader, buf []byte) (c chunk) {
	c.buf = buf
	defer func() {
		if v := recover(); v != nil {
			c.err = fmt.Errorf("%w: decoder panics: %v", inflate.ErrRefused, v)
		}
	}()
	for c.n < len(buf) && c.err == nil {
		var n int
		n, c.err = r.Read(buf[c.n:])
		c.n += n
	}
	return c
}

func (a *aheadReader) Read(p []byte) (int, error) {
	for len(a.cur) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		a.next()
	}
	n := copy(p, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

// next has what was read hashed, and goes on to the next buffer.
func (a *aheadReader) next() {
	if a.buf != nil {
		a.used <- a.buf
	}
	c := <-a.full
	a.buf, a.cur, a.err = c.buf[:c.n], c.buf[:c.n], c.err
	if a.err != nil { // the last: it will not be filled again, so it may be read and hashed at once
		a.used <- a.buf
		close(a.used)
	}
}

// Hashed waits until all has been hashed. Read must have answered its error.
func (a *aheadReader) Hashed() { <-a.sum }

// Close ends the reading as soon as a Read of the source that is under way
// returns; it does not wait for that.
func (a *aheadReader) Close() { a.once.Do(func() { close(a.stop) }) }
