package store

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"berth/internal/fault"
	"berth/internal/faultpoint"

	"github.com/opencontainers/go-digest"
)

var (
	blobStaged   = faultpoint.Declare("imaged.blob-staged", "a blob's bytes are written, not yet compared with its digest")
	blobVerified = faultpoint.Declare("imaged.blob-verified", "a blob is verified and synced, not yet visible")
	blobRenamed  = faultpoint.Declare("imaged.blob-renamed", "a blob is visible, no record refers to it yet")
)

// Staged is a blob on its way in: Write its bytes, then Verify, Sync and
// Publish, or all three with Commit. Discard, which is harmless after Publish,
// belongs in a defer. A Staged is for one goroutine.
type Staged struct {
	store *Store
	file  *os.File
	hash  hash.Hash
	want  digest.Digest // empty: whatever it comes to
	size  int64         // expected; negative: unknown
	n     int64         // bytes so far

	partial  bool   // begun by Resume: the file may outlive a failure
	note     string // of an upload: a file that goes with it
	unhashed bool   // hash lacks what an earlier process wrote; Claim reads it
}

// Stage begins a blob that must come to the digest want and to size bytes
// (negative: of any length).
func (s *Store) Stage(want digest.Digest, size int64) (*Staged, error) {
	if err := Check(want); err != nil {
		return nil, err
	}
	return s.stage(want.Algorithm(), want, size)
}

// StageNew begins a blob made here, whose digest is known when it is written.
func (s *Store) StageNew() (*Staged, error) { return s.stage(digest.Canonical, "", -1) }

// Claim says at the end what a blob that StageNew began must come to. Of another
// algorithm than the usual one, or begun by an earlier process, it has to be read once
// more.
func (b *Staged) Claim(want digest.Digest) error {
	if err := Check(want); err != nil {
		return err
	}
	if want.Algorithm() != b.algorithm() || b.unhashed {
		b.hash = want.Algorithm().Hash()
		if _, err := io.Copy(b.hash, io.NewSectionReader(b.file, 0, b.n)); err != nil {
			return fmt.Errorf("hash blob %s: %w", want, err)
		}
		b.unhashed = false
	}
	b.want = want
	return nil
}

func (s *Store) stage(a digest.Algorithm, want digest.Digest, size int64) (*Staged, error) {
	f, err := os.CreateTemp(s.staging, "blob-")
	if err != nil {
		return nil, fmt.Errorf("stage blob: %w", err)
	}
	return &Staged{store: s, file: f, hash: a.Hash(), want: want, size: size}, nil
}

// Write appends to the blob. DataLoss as soon as it is longer than announced.
func (b *Staged) Write(p []byte) (int, error) {
	if b.size >= 0 && b.n+int64(len(p)) > b.size {
		return 0, b.mismatch("is longer than the %d bytes announced", b.size)
	}
	n, err := b.file.Write(p)
	if !b.unhashed {
		b.hash.Write(p[:n])
	}
	b.n += int64(n)
	return n, err
}

// Size is the number of bytes written so far.
func (b *Staged) Size() int64 { return b.n }

// Digest is that of the bytes written so far.
func (b *Staged) Digest() digest.Digest {
	return digest.NewDigest(b.algorithm(), b.hash)
}

func (b *Staged) algorithm() digest.Algorithm {
	if b.want != "" {
		return b.want.Algorithm()
	}
	return digest.Canonical
}

// Verify compares what was written with what was announced: DataLoss if they
// differ.
func (b *Staged) Verify() error {
	if err := blobStaged.Hit(); err != nil {
		return err
	}
	if b.size >= 0 && b.n != b.size {
		return b.mismatch("has %d bytes instead of %d", b.n, b.size)
	}
	if got := b.Digest(); b.want != "" && got != b.want {
		return b.mismatch("came as %s", got)
	}
	return nil
}

func (b *Staged) mismatch(format string, args ...any) error {
	return fault.DataLoss.Errorf("DIGEST_MISMATCH", "blob %s %s", b.want, fmt.Sprintf(format, args...)).
		With("digest", b.want.String())
}

// Sync waits until the bytes are on the disk.
func (b *Staged) Sync() error { return b.file.Sync() }

// Publish makes the blob visible under its digest. The caller has called
// Verify and made sure that the bytes are on the disk, be it by Sync or by
// syncing the whole file system. The name itself is on the disk after the next
// sync of the directory; the record that is written later makes sure of that.
func (b *Staged) Publish() (digest.Digest, error) {
	if err := blobVerified.Hit(); err != nil {
		return "", err
	}
	d := b.Digest()
	if err := b.file.Chmod(0o400); err != nil {
		return "", err
	}
	if err := os.Rename(b.file.Name(), b.store.path(d)); err != nil {
		return "", err
	}
	if err := syncDir(filepath.Dir(b.store.path(d))); err != nil {
		return "", err
	}
	b.dropNote()
	return d, errors.Join(b.close(), blobRenamed.Hit())
}

// dropNote deletes what is left of an upload whose file has gone.
func (b *Staged) dropNote() {
	if b.note != "" {
		os.Remove(b.note)
	}
}

// Commit is Verify, Sync and Publish.
func (b *Staged) Commit() (digest.Digest, error) {
	if err := b.Verify(); err != nil {
		return "", err
	}
	if err := b.Sync(); err != nil {
		return "", fmt.Errorf("sync blob %s: %w", b.want, err)
	}
	return b.Publish()
}

// Discard gives up on the blob and frees its space.
func (b *Staged) Discard() {
	if b.file == nil {
		return
	}
	os.Remove(b.file.Name())
	b.dropNote()
	b.close()
}

func (b *Staged) close() error {
	err := b.file.Close()
	b.file = nil
	if b.partial {
		b.store.release(b.want)
	}
	return err
}

// Put stores a small blob made here, such as a manifest.
func (s *Store) Put(content []byte) (digest.Digest, error) {
	return s.put(content, digest.FromBytes(content))
}

// PutAs stores a small blob that must have the digest want.
func (s *Store) PutAs(content []byte, want digest.Digest) error {
	_, err := s.put(content, want)
	return err
}

func (s *Store) put(content []byte, want digest.Digest) (digest.Digest, error) {
	if size, err := s.Size(want); err == nil && size == int64(len(content)) {
		return want, nil
	}
	b, err := s.Stage(want, int64(len(content)))
	if err != nil {
		return "", err
	}
	defer b.Discard()
	if _, err := b.Write(content); err != nil {
		return "", fmt.Errorf("write blob %s: %w", want, err)
	}
	return b.Commit()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
