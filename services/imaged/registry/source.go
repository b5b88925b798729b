package registry

import (
	"io"
	"sync"
)

// source gives a blob piece by piece. What is read in order is opened once: it may come from another registry.
type source struct {
	open func() (io.ReadCloser, error)

	mu    sync.Mutex
	rest  io.ReadCloser // opened, and read up to at; nil for none
	at    int64
	ended bool
}

// from opens n bytes from an offset.
func (s *source) from(offset, n int64) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		s.mu.Lock()
		rc := s.rest
		s.rest = nil
		fits := rc != nil && s.at == offset
		s.mu.Unlock()
		if rc != nil && !fits {
			rc.Close()
		}
		if !fits {
			var err error
			if rc, err = openAt(s.open, offset); err != nil {
				return nil, err
			}
		}
		return &piece{source: s, rc: rc, at: offset, left: n}, nil
	}
}

func (s *source) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.rest != nil {
		s.rest.Close()
		s.rest = nil
	}
}

// piece is part of a source. Once all of it was read, closing it leaves the rest to the next.
type piece struct {
	source *source
	rc     io.ReadCloser

	mu      sync.Mutex // a transport may close what it still reads
	at      int64
	left    int64
	reading bool
	closed  bool
}

func (p *piece) Read(b []byte) (int, error) {
	p.mu.Lock()
	if p.left == 0 || p.closed {
		p.mu.Unlock()
		return 0, io.EOF
	}
	p.reading = true
	b = b[:min(int64(len(b)), p.left)]
	p.mu.Unlock()
	n, err := p.rc.Read(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reading = false
	p.at, p.left = p.at+int64(n), p.left-int64(n)
	if p.left == 0 {
		err = nil
	}
	return n, err
}

func (p *piece) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if p.left > 0 || p.reading || !p.source.take(p.rc, p.at) {
		return p.rc.Close()
	}
	return nil
}

// take takes back what was read up to at.
func (s *source) take(rc io.ReadCloser, at int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.rest != nil {
		return false
	}
	s.rest, s.at = rc, at
	return true
}

// openAt opens what is sent at an offset.
func openAt(open func() (io.ReadCloser, error), offset int64) (io.ReadCloser, error) {
	rc, err := open()
	if err != nil || offset == 0 {
		return rc, err
	}
	if s, ok := rc.(io.Seeker); ok {
		_, err = s.Seek(offset, io.SeekStart)
	} else {
		_, err = io.CopyN(io.Discard, rc, offset)
	}
	if err != nil {
		rc.Close()
		return nil, err
	}
	return rc, nil
}
