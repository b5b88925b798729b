package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
)

// A download that broke off leaves what it has in DIR/partial/ALGORITHM-HEX,
// and whoever wants the same blob later goes on behind it: after Ctrl-C, after
// the network came back, after kill -9 or a reboot.
//
// How much of such a file is right is not written down anywhere: its bytes are
// hashed again when it is taken up, which costs less than fetching them, and
// the whole is compared with the digest in the end as ever. A power cut may have
// damaged the tail; then the comparison fails and the blob is fetched anew.

// PartialAge is how long what a download left behind is kept.
const PartialAge = 7 * 24 * time.Hour

func (s *Store) partial(d digest.Digest) string {
	return filepath.Join(s.partials, d.Algorithm().String()+"-"+d.Encoded())
}

// Resume is Stage, except that it goes on with what an earlier download of the
// blob kept; Size says how much that is. A blob can be resumed once at a time:
// who comes second starts from nothing.
func (s *Store) Resume(want digest.Digest, size int64) (*Staged, error) {
	if err := Check(want); err != nil {
		return nil, err
	}
	if size < 0 || !s.claim(want) {
		return s.Stage(want, size)
	}
	b, err := s.resume(want, size)
	if err != nil {
		s.release(want)
		return nil, fmt.Errorf("stage blob: %w", err)
	}
	return b, nil
}

func (s *Store) resume(want digest.Digest, size int64) (*Staged, error) {
	f, err := os.OpenFile(s.partial(want), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	b := &Staged{store: s, file: f, hash: want.Algorithm().Hash(), want: want, size: size, partial: true}
	if b.n, err = io.Copy(b.hash, f); err == nil && b.n > size {
		b.hash.Reset()
		b.n, err = 0, f.Truncate(0)
		if err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return b, nil
}

// Keep is Discard for a blob that is wanted again: what is there of it stays for
// Resume, or ResumeUpload. One that was begun by neither is discarded.
func (b *Staged) Keep() {
	if b.file == nil {
		return
	}
	if b.note == "" && (!b.partial || b.n == 0) {
		b.Discard()
		return
	}
	b.close()
}

// Demote takes a blob away that nobody needs at the moment, but keeps its bytes
// for Resume. That there is none is no error.
func (s *Store) Demote(d digest.Digest) error {
	if err := Check(d); err != nil {
		return err
	}
	if !s.claim(d) {
		return s.Delete(d)
	}
	defer s.release(d)
	now := time.Now()
	path := s.path(d)
	err := errors.Join(os.Chmod(path, 0o600), os.Chtimes(path, now, now), os.Rename(path, s.partial(d)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// DropPartials deletes what downloads left behind at least age ago, except
// where one goes on at the moment.
func (s *Store) DropPartials(age time.Duration) (count int, bytes int64, err error) {
	err = s.eachPartial(func(d digest.Digest, st fs.FileInfo) error {
		if time.Since(st.ModTime()) < age || !s.claim(d) {
			return nil
		}
		defer s.release(d)
		count, bytes = count+1, bytes+st.Size()
		return os.Remove(s.partial(d))
	})
	return count, bytes, err
}

// Partials is how many downloads left something behind, and how much.
func (s *Store) Partials() (count int, bytes int64, err error) {
	err = s.eachPartial(func(_ digest.Digest, st fs.FileInfo) error {
		count, bytes = count+1, bytes+st.Size()
		return nil
	})
	return count, bytes, err
}

func (s *Store) eachPartial(f func(digest.Digest, fs.FileInfo) error) error {
	entries, err := os.ReadDir(s.partials)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		for _, a := range algorithms {
			prefix := a.String() + "-"
			if len(e.Name()) < len(prefix) || e.Name()[:len(prefix)] != prefix {
				continue
			}
			d := digest.NewDigestFromEncoded(a, e.Name()[len(prefix):])
			if st, err := e.Info(); err == nil && Check(d) == nil {
				errs = append(errs, f(d, st))
			}
		}
	}
	return errors.Join(errs...)
}

// claim reserves the partial file of d, if nobody has it.
func (s *Store) claim(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.claimed[d] {
		return false
	}
	s.claimed[d] = true
	return true
}

func (s *Store) release(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.claimed, d)
}
