package store

import (
	"io"
	"os"
	"sync"
)

// Spool is a blob that is read while it is still being written. The file is
// the buffer between network and unpacking: a registry is never kept waiting
// by a slow disk, which some answer by closing the connection, and what was
// written a moment ago is read from the page cache.
//
// One goroutine writes; others read. What they read is unverified: their result
// is thrown away unless the blob verifies in the end.
type Spool struct {
	Blob *Staged
	file *os.File // a descriptor for reading

	mu    sync.Mutex
	moved sync.Cond // size or ended changed
	size  int64
	ended bool
	err   error // what readers get at the end, instead of io.EOF
}

// NewSpool makes a spool of a blob, whose readers begin with what was written to
// it before. Free it in the end; the blob stays the caller's.
func NewSpool(blob *Staged) (*Spool, error) {
	f, err := os.Open(blob.file.Name())
	if err != nil {
		return nil, err
	}
	s := &Spool{Blob: blob, file: f, size: blob.Size()}
	s.moved.L = &s.mu
	return s, nil
}

// Write appends to the blob.
func (s *Spool) Write(p []byte) (int, error) {
	n, err := s.Blob.Write(p)
	s.mu.Lock()
	s.size += int64(n)
	s.mu.Unlock()
	s.moved.Broadcast()
	return n, err
}

// End tells readers that nothing more comes, because of err if that is not nil.
// Whoever made the spool always calls it: readers wait for it.
func (s *Spool) End(err error) {
	s.mu.Lock()
	s.ended, s.err = true, err
	s.mu.Unlock()
	s.moved.Broadcast()
}

// Free ends the reading: readers still there fail.
func (s *Spool) Free() { s.file.Close() }

// Reader reads from the start, waiting for what is not there yet.
func (s *Spool) Reader() *SpoolReader { return &SpoolReader{s: s} }

// SpoolReader reads a spool.
type SpoolReader struct {
	s   *Spool
	off int64
}

func (r *SpoolReader) Read(p []byte) (int, error) {
	have, err := r.Wait(r.off)
	if err != nil {
		return 0, err
	}
	n, err := r.s.file.ReadAt(p[:min(int64(len(p)), have-r.off)], r.off)
	r.off += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// File is the file that is read, for somebody else to do it; Free closes it.
func (r *SpoolReader) File() *os.File { return r.s.file }

// Wait blocks until there is more than off and gives the size, or until the
// end, which is io.EOF or what End was given.
func (r *SpoolReader) Wait(off int64) (int64, error) { return r.s.wait(off) }

func (s *Spool) wait(off int64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.size <= off && !s.ended {
		s.moved.Wait()
	}
	switch {
	case s.err != nil:
		return 0, s.err
	case s.size > off:
		return s.size, nil
	}
	return 0, io.EOF
}
