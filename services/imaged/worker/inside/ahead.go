package inside

import (
	"fmt"
	"io"
	"sync"

	"berth/services/imaged/inflate"
)

// aheadReader reads its source in a goroutine of its own, a few buffers ahead
// of whoever reads from it.
type aheadReader struct {
	full  chan chunk
	empty chan []byte
	stop  chan struct{}
	once  sync.Once
	cur   []byte // rest of the chunk being read
	buf   []byte // its whole buffer
	err   error
}

type chunk struct {
	buf []byte
	n   int
	err error
}

const (
	aheadBuffers = 4
	aheadSize    = 256 << 10
)

// readAhead starts reading from r, and calls free when it no longer does.
func readAhead(r io.Reader, free func()) *aheadReader {
	a := &aheadReader{
		full: make(chan chunk, aheadBuffers), empty: make(chan []byte, aheadBuffers), stop: make(chan struct{}),
	}
	for range aheadBuffers {
		a.empty <- make([]byte, aheadSize)
	}
	go a.run(r, free)
	return a
}

func (a *aheadReader) run(r io.Reader, free func()) {
	defer free()
	for {
		select {
		case <-a.stop:
			return
		case buf := <-a.empty:
			c := fill(r, buf)
			a.full <- c // has room for all buffers
			if c.err != nil {
				return
			}
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
		if a.buf != nil {
			a.empty <- a.buf
		}
		c := <-a.full
		a.buf, a.cur, a.err = c.buf, c.buf[:c.n], c.err
	}
	n := copy(p, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

// Close ends the reading as soon as a Read of the source that is under way
// returns; it does not wait for that.
func (a *aheadReader) Close() { a.once.Do(func() { close(a.stop) }) }
