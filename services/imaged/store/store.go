// Package store keeps blobs: immutable files named by the digest of their
// bytes. Manifests, image configurations and compressed layers are blobs.
//
// A blob becomes visible only by [Staged.Publish], after its bytes have been
// compared with its name and are on the disk. So whatever opens is right as far
// as the store could tell, and after a crash there are whole blobs and staging
// files, never halves; [Open] deletes the latter.
//
// The directory belongs to one process:
//
//	DIR/blobs/ALGORITHM/HEX   the blobs
//	DIR/staging/…             being written
//	DIR/partial/…             downloads that broke off, see [Store.Resume]
//	DIR/upload/…              what clients send in pieces, see [Store.BeginUpload]
//
// The store does not know who needs a blob; package images does.
package store

import (
	_ "crypto/sha256" // go-digest finds algorithms among those linked in
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"berth/internal/fault"

	"github.com/opencontainers/go-digest"
)

// Store is a directory of blobs. Its methods may be called from any goroutine.
type Store struct {
	// Throw makes the file at path vanish at once and frees its space later;
	// unlinking a large file takes a while. nil: os.Remove. Set it before use.
	Throw func(path string) error

	blobs    string
	staging  string
	partials string
	uploads  string

	mu      sync.Mutex
	claimed map[digest.Digest]bool // whose partial file somebody writes
}

// algorithms are those a blob's name may use: the two that the OCI image
// specification registers and that are implemented everywhere.
var algorithms = []digest.Algorithm{digest.SHA256, digest.SHA512}

// Open opens the store in dir, made if need be, and deletes what was being
// staged when the last process ended, and transfers that broke off long ago.
func Open(dir string) (*Store, error) {
	s := &Store{
		blobs: filepath.Join(dir, "blobs"), staging: filepath.Join(dir, "staging"), partials: filepath.Join(dir, "partial"),
		uploads: filepath.Join(dir, "upload"),
		claimed: map[digest.Digest]bool{},
	}
	if err := os.RemoveAll(s.staging); err != nil {
		return nil, err
	}
	for _, a := range algorithms {
		if err := os.MkdirAll(filepath.Join(s.blobs, a.String()), 0o700); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{s.staging, s.partials, s.uploads} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	if _, _, err := s.DropPartials(PartialAge); err != nil {
		return nil, err
	}
	_, err := s.Uploads(UploadAge) // also where none are taken any more
	return s, err
}

// Staging is a directory for what is being written; it is emptied at each start.
func (s *Store) Staging() string { return s.staging }

// Check refuses everything but well-formed digests of a known algorithm. Paths
// and URLs are only ever built of digests that passed it (regression S-16).
func Check(d digest.Digest) error {
	for _, a := range algorithms {
		hex, ok := strings.CutPrefix(string(d), string(a)+":")
		if ok && len(hex) == 2*a.Size() && strings.Trim(hex, "0123456789abcdef") == "" {
			return nil
		}
	}
	return fault.InvalidArgument.Errorf("BAD_DIGEST", "%q is not a sha256 or sha512 digest", string(d))
}

// path is where the blob d is; d must have passed Check.
func (s *Store) path(d digest.Digest) string {
	return filepath.Join(s.blobs, d.Algorithm().String(), d.Encoded())
}

// Open opens the blob d for reading; the caller closes it. NotFound when there
// is none.
func (s *Store) Open(d digest.Digest) (*os.File, error) {
	if err := Check(d); err != nil {
		return nil, err
	}
	f, err := os.Open(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(d)
	}
	return f, err
}

func notFound(d digest.Digest) error {
	return fault.NotFound.Errorf("BLOB_NOT_FOUND", "no blob %s in the store", d).With("digest", d.String())
}

// Size is the length of the blob d in bytes. NotFound when there is none.
func (s *Store) Size(d digest.Digest) (int64, error) {
	if err := Check(d); err != nil {
		return 0, err
	}
	st, err := os.Lstat(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, notFound(d)
	}
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// ReadAll gives the content of a small blob, verified once more: a manifest
// decides what runs, and hashing a few kilobytes costs nothing. DataLoss when
// it is damaged or longer than limit bytes.
func (s *Store) ReadAll(d digest.Digest, limit int64) ([]byte, error) {
	f, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit || d.Algorithm().FromBytes(b) != d {
		return nil, damaged(d)
	}
	return b, nil
}

// Verify reads the whole blob d and compares it with its name. DataLoss when
// they differ.
func (s *Store) Verify(d digest.Digest) error {
	f, err := s.Open(d)
	if err != nil {
		return err
	}
	defer f.Close()
	v := d.Verifier()
	if _, err := io.Copy(v, f); err != nil {
		return fmt.Errorf("verify blob %s: %w", d, err)
	}
	if !v.Verified() {
		return damaged(d)
	}
	return nil
}

func damaged(d digest.Digest) error {
	return fault.DataLoss.Errorf("BLOB_DAMAGED", "blob %s is damaged", d).With("digest", d.String())
}

// Delete removes the blob d; that there is none is no error.
func (s *Store) Delete(d digest.Digest) error {
	if err := Check(d); err != nil {
		return err
	}
	remove := s.Throw
	if remove == nil {
		remove = os.Remove
	}
	if err := remove(s.path(d)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// All yields the digest of every blob, in no order. An error ends it. Files that
// are not blobs are passed over.
func (s *Store) All() iter.Seq2[digest.Digest, error] {
	return func(yield func(digest.Digest, error) bool) {
		for _, a := range algorithms {
			dir, err := os.Open(filepath.Join(s.blobs, a.String()))
			if err != nil {
				yield("", err)
				return
			}
			if !allIn(dir, a, yield) {
				return
			}
		}
	}
}

// allIn yields the blobs in a directory and closes it; false if that is enough.
func allIn(dir *os.File, a digest.Algorithm, yield func(digest.Digest, error) bool) bool {
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(4096)
		for _, n := range names {
			if d := digest.NewDigestFromEncoded(a, n); Check(d) == nil && !yield(d, nil) {
				return false
			}
		}
		if err == io.EOF {
			return true
		}
		if err != nil {
			yield("", err)
			return false
		}
	}
}
