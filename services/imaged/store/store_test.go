package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/fault"

	"github.com/opencontainers/go-digest"
)

func open(t *testing.T) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// files are the paths of all files below dir.
func files(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestRoundTrip(t *testing.T) {
	s, _ := open(t)
	content := []byte("some bytes")
	for _, want := range []digest.Digest{digest.SHA256.FromBytes(content), digest.SHA512.FromBytes(content)} {
		if _, err := s.Open(want); !errors.Is(err, fault.NotFound) {
			t.Fatalf("open before it is there: %v", err)
		}
		if err := s.PutAs(content, want); err != nil {
			t.Fatal(err)
		}
		got, err := s.ReadAll(want, 100)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("got %q, %v", got, err)
		}
		if size, err := s.Size(want); size != int64(len(content)) || err != nil {
			t.Errorf("size %d, %v", size, err)
		}
		if err := s.Verify(want); err != nil {
			t.Error(err)
		}
	}
	n := 0
	for _, err := range s.All() {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 2 {
		t.Errorf("All gives %d blobs", n)
	}
	d := digest.FromBytes(content)
	if err := errors.Join(s.Delete(d), s.Delete(d)); err != nil {
		t.Error(err)
	}
	if _, err := s.Size(d); !errors.Is(err, fault.NotFound) {
		t.Errorf("after delete: %v", err)
	}
}

func TestF20WrongBytesStayInvisible(t *testing.T) {
	s, dir := open(t)
	want := digest.FromString("right")
	cases := map[string]struct {
		content string
		size    int64
	}{
		"wrong": {"wrong", 5}, "short": {"righ", 5}, "long": {"right!", 5}, "empty": {"", 5}, "unknown size": {"wrong", -1},
	}
	for name, c := range cases {
		b, err := s.Stage(want, c.size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = b.Write([]byte(c.content)); err == nil {
			_, err = b.Commit()
		}
		if !errors.Is(err, fault.DataLoss) {
			t.Errorf("%s: %v", name, err)
		}
		b.Discard()
		if left := files(t, dir); len(left) != 0 {
			t.Errorf("%s left %v", name, left)
		}
	}
}

func TestF11DamageIsSeen(t *testing.T) {
	s, _ := open(t)
	d, err := s.Put([]byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	path := s.path(d)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("c0ntent"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(d); !errors.Is(err, fault.DataLoss) {
		t.Errorf("verify: %v", err)
	}
	if _, err := s.ReadAll(d, 100); !errors.Is(err, fault.DataLoss) {
		t.Errorf("read: %v", err)
	}
}

func TestOpenSweepsStaging(t *testing.T) {
	s, dir := open(t)
	b, err := s.StageNew()
	if err != nil {
		t.Fatal(err)
	}
	b.Write([]byte("half"))
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestS16Digests(t *testing.T) {
	s, dir := open(t)
	hex := digest.FromString("x").Encoded()
	for _, d := range []string{
		"", "sha256:", "sha256:../../etc/passwd", "sha256:" + hex[:63], "sha256:" + hex + "0", "sha256:" + strings.ToUpper(hex),
		"SHA256:" + hex, "md5:d41d8cd98f00b204e9800998ecf8427e", "sha384:" + hex + hex[:32], "sha512:" + hex, hex, "sha256:" + hex + "\n",
		"sha256:/" + hex[1:], "sha256+b64:" + hex, "../sha256:" + hex,
	} {
		_, errOpen := s.Open(digest.Digest(d))
		_, errStage := s.Stage(digest.Digest(d), 1)
		errDelete := s.Delete(digest.Digest(d))
		for _, err := range []error{errOpen, errStage, errDelete} {
			if !errors.Is(err, fault.InvalidArgument) {
				t.Errorf("%q: %v", d, err)
			}
		}
	}
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}
