package pull

import (
	"io"
	"os"
	"sync"

	"berth/services/imaged/store"
)

// spool is a blob that is read while it is still being written. The file is
// the buffer between network and unpacking: a registry is never kept waiting
// by a slow disk, which some answer by closing the connection, and what was
// written a moment ago is read from the page cache.
type spool struct {
	blob *store.Staged
	file *os.File // a descriptor for reading

	mu    sync.Mutex
	moved sync.Cond // size or ended changed
	size  int64
	ended bool
	err   error // what readers get at the end, instead of io.EOF
}

func newSpool(blob *store.Staged) (*spool, error) {
	f, err := blob.Reader()
	if err != nil {
		return nil, err
	}
	s := &spool{blob: blob, file: f}
	s.moved.L = &s.mu
	return s, nil
}

func (s *spool) Write(p []byte) (int, error) {
	n, err := s.blob.Write(p)
	s.mu.Lock()
	s.size += int64(n)
	s.mu.Unlock()
	s.moved.Broadcast()
	return n, err
}

// end tells readers that nothing more comes, because of err if that is not nil.
func (s *spool) end(err error) {
	s.mu.Lock()
	s.ended, s.err = true, err
	s.mu.Unlock()
	s.moved.Broadcast()
}

func (s *spool) free() { s.file.Close() }

// reader reads from the start, waiting for what is not there yet.
func (s *spool) reader() io.Reader { return &spoolReader{s: s} }

type spoolReader struct {
	s   *spool
	off int64
}

func (r *spoolReader) Read(p []byte) (int, error) {
	have, err := r.s.wait(r.off)
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

// wait blocks until there is more than off and gives the size, or until the
// end: whoever began the spool always calls end.
func (s *spool) wait(off int64) (int64, error) {
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
