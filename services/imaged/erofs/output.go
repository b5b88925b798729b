package erofs

import (
	"bytes"
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// bufferSize is how much is written at once, and holeSize how many zeros make a
// hole. What is beyond directFrom is written past the page cache, in multiples of
// page: all that would not be read soon would only have to be copied once more, and
// push other things out of memory.
const (
	bufferSize = 1 << 20
	holeSize   = 128 << 10
	directFrom = 32 << 20
	page       = 4096
)

// write is a write that goes on while its successor is collected.
type write struct {
	buf  []byte
	off  int64
	done chan error
}

var zeros [holeSize]byte

func (w *Writer) pos() int64 { return w.off + int64(len(w.buf)) }

// copy copies n bytes, at most holeSize, or makes a hole of them.
func (w *Writer) copy(r io.Reader, n int64) (int64, error) {
	if int64(cap(w.buf)-len(w.buf)) < n {
		if err := w.flush(); err != nil {
			return 0, err
		}
	}
	piece := w.buf[len(w.buf) : len(w.buf)+int(n)]
	if _, err := io.ReadFull(r, piece); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	if n == holeSize && bytes.Equal(piece, zeros[:]) {
		return n, w.hole(n)
	}
	w.buf = w.buf[:len(w.buf)+int(n)]
	return n, nil
}

// write appends p, which is not a file's content.
func (w *Writer) write(p []byte) error {
	if w.sum != nil {
		w.sum.Write(p)
	}
	for len(p) > 0 {
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return err
			}
		}
		n := copy(w.buf[len(w.buf):cap(w.buf)], p)
		w.buf = w.buf[:len(w.buf)+n]
		p = p[n:]
	}
	return nil
}

// pad fills the block.
func (w *Writer) pad() error {
	if rest := w.pos() & (w.bits.size() - 1); rest != 0 {
		return w.write(zeros[:w.bits.size()-rest])
	}
	return nil
}

// hole leaves out n zeros, those at its ends excepted that share a page with others
// where pages are written.
func (w *Writer) hole(n int64) error {
	if err := w.flush(); err != nil {
		return err
	}
	if len(w.buf) > 0 {
		rest := -w.pos() & (page - 1)
		w.buf = append(w.buf, zeros[:rest]...)
		n -= rest
		if err := w.flush(); err != nil {
			return err
		}
	}
	skip := n
	if w.paged() {
		skip &^= page - 1
	}
	w.off += skip
	w.buf = append(w.buf, zeros[:n-skip]...)
	return nil
}

// paged reports whether writes are to begin and end with a page from here on.
func (w *Writer) paged() bool { return w.Direct != nil && w.off >= directFrom }

// flush writes the buffer: all of it or, past the page cache, whole pages.
func (w *Writer) flush() error {
	n := len(w.buf)
	if w.paged() {
		n -= int((w.off + int64(n)) & (page - 1)) // up to the end of a page, where the next write begins
	}
	if n <= 0 {
		return nil
	}
	if err := w.settle(); err != nil {
		return err
	}
	if w.paged() && !w.direct && w.off&(page-1) == 0 {
		if w.direct = w.Direct(true) == nil; !w.direct {
			w.Direct = nil
		}
	}
	last := &write{w.buf[:n], w.off, make(chan error, 1)}
	go func() {
		_, err := w.file.WriteAt(last.buf, last.off)
		last.done <- err
	}()
	w.last, w.off = last, w.off+int64(n)
	w.buf, w.spare = append(w.spare[:0], w.buf[n:]...), w.buf
	return nil
}

// settle waits for the write that is under way.
func (w *Writer) settle() error {
	last := w.last
	if last == nil {
		return nil
	}
	w.last = nil
	err := <-last.done
	if errors.Is(err, unix.EINVAL) && w.direct { // the disk has larger sectors, or is none
		if err = w.cached(); err == nil {
			_, err = w.file.WriteAt(last.buf, last.off)
		}
	}
	return err
}

// cached goes back to writing through the page cache.
func (w *Writer) cached() error {
	err := w.settle()
	if err == nil && w.direct {
		err = w.Direct(false)
	}
	w.direct, w.Direct = false, nil
	return err
}
