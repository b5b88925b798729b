package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// A blob that a client sends in pieces outlives the process that takes them:
//
//	DIR/upload/ID       what came of it; how much that is says the file itself
//	DIR/upload/ID.note  what the caller has to remember of it
//
// The note comes first and goes last, so that a file without one is garbage. As
// with downloads, nothing says how much of a file is right: all of it is hashed in
// the end. What a power cut damaged is refused then, and sent anew.

// UploadAge is how long an upload waits for its next piece.
const UploadAge = time.Hour

const noteSuffix = ".note"

// Upload is an upload that began and did not end.
type Upload struct {
	ID      string
	Note    []byte
	Touched time.Time // when the last piece came
}

func (s *Store) upload(id string) string { return filepath.Join(s.uploads, id) }

// BeginUpload is StageNew for a blob that ResumeUpload can go on with after a
// restart. The caller makes the id, of letters and digits, and gets the note back.
func (s *Store) BeginUpload(id string, note []byte) (*Staged, error) {
	path := s.upload(id)
	b, err := s.beginUpload(path, note)
	if err != nil {
		os.Remove(path + noteSuffix)
		return nil, fmt.Errorf("begin upload: %w", err)
	}
	return b, nil
}

func (s *Store) beginUpload(path string, note []byte) (*Staged, error) {
	if err := os.WriteFile(path+noteSuffix, note, 0o600); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &Staged{store: s, file: f, hash: digest.Canonical.Hash(), size: -1, note: path + noteSuffix}, nil
}

// ResumeUpload goes on behind what an earlier process got. What there is will be
// read once more, by Claim.
func (s *Store) ResumeUpload(id string) (*Staged, error) {
	path := s.upload(id)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("resume upload: %w", err)
	}
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("resume upload: %w", err)
	}
	return &Staged{store: s, file: f, hash: digest.Canonical.Hash(), size: -1, n: n, unhashed: n > 0, note: path + noteSuffix}, nil
}

// DropUpload deletes an upload that nobody has open.
func (s *Store) DropUpload(id string) error {
	path := s.upload(id)
	err := os.Remove(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = os.Remove(path + noteSuffix)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Uploads are those that an earlier process began, for whoever goes on with them.
// It deletes those whose last piece came before age ago, and halves. No upload may
// be open meanwhile.
func (s *Store) Uploads(age time.Duration) (all []Upload, err error) {
	entries, err := os.ReadDir(s.uploads)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		id := strings.TrimSuffix(e.Name(), noteSuffix)
		note, err := os.ReadFile(s.upload(id) + noteSuffix)
		st, statErr := os.Stat(s.upload(id))
		switch {
		case err != nil || statErr != nil || time.Since(st.ModTime()) > age:
			errs = append(errs, s.DropUpload(id))
		case e.Name() == id:
			all = append(all, Upload{id, note, st.ModTime()})
		}
	}
	return all, errors.Join(errs...)
}
