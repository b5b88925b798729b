package erofs

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// large writes an image beyond directFrom, of files of all lengths with holes here and there. It gives what is in
// them.
func large(w *Writer) (contents [][]byte, err error) {
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{3}).Read(noise)
	root := NewDir(0o755)
	for sum := 0; sum < directFrom*2+12345; {
		content := bytes.Clone(noise[:random.IntN(len(noise))])
		switch random.IntN(4) {
		case 0: // zeros in the middle, and at no boundary
			content = append(content, make([]byte, 300_000+random.IntN(500_000))...)
			content = append(content, noise[:random.IntN(5000)]...)
		case 1:
			content = content[:random.IntN(1+len(content)/1000)]
		}
		e, err := w.Content(bytes.NewReader(content), int64(len(content)))
		if err != nil {
			return nil, err
		}
		root.Link(strconv.Itoa(len(contents)), &Node{Mode: unix.S_IFREG | 0o644, Content: e})
		contents = append(contents, content)
		sum += len(content)
	}
	return contents, w.Finish(root)
}

// direct switches O_DIRECT of f, and counts.
func direct(t *testing.T, f *os.File, calls *int) func(bool) error {
	return func(on bool) error {
		*calls++
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil {
			t.Error(err)
		}
		if flags &^= unix.O_DIRECT; on {
			flags |= unix.O_DIRECT
		}
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags)
		return err
	}
}

// unaligned refuses writes that begin or end within a page while they go past the page cache, and all of them if it
// never takes any.
type unaligned struct {
	*os.File
	direct, never bool
	refused       int
}

func (f *unaligned) WriteAt(p []byte, off int64) (int, error) {
	if f.direct && (f.never || off%page != 0 || len(p)%page != 0) {
		f.refused++
		return 0, &os.PathError{Op: "write", Path: f.Name(), Err: unix.EINVAL}
	}
	return f.File.WriteAt(p, off)
}

// However an image gets to its file, it is the same, and has what was put in.
func TestLargeImages(t *testing.T) {
	for _, blockSize := range []int{MinBlock, 4096} {
		var want []byte
		for _, way := range []string{"cache", "direct", "no direct", "aligned", "no direct after all"} {
			f, err := os.Create(filepath.Join(t.TempDir(), "image"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			u := &unaligned{File: f, never: way == "no direct after all"}
			w, err := NewWriter(u, blockSize)
			if err != nil {
				t.Fatal(err)
			}
			calls := 0
			switch way {
			case "direct":
				w.Direct = direct(t, f, &calls)
			case "no direct":
				w.Direct = func(bool) error { calls++; return unix.EINVAL }
			case "aligned", "no direct after all":
				w.Direct = func(on bool) error { calls++; u.direct = on; return nil }
			}
			contents, err := large(w)
			if err != nil {
				t.Fatalf("%s: %v", way, err)
			}
			if n := map[string]int{"direct": 2, "no direct": 1, "aligned": 2, "no direct after all": 2}[way]; calls != n {
				t.Errorf("%s: switched %d times, want %d", way, calls, n)
			}
			if u.refused > 0 != u.never {
				t.Errorf("%s: %d writes were refused", way, u.refused)
			}
			got, err := os.ReadFile(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			if want == nil {
				want = got
				check(t, got, contents)
			} else if !bytes.Equal(got, want) {
				t.Errorf("%s, blocks of %d bytes: another image, of %d bytes instead of %d", way, blockSize, len(got), len(want))
			}
		}
	}
}

func check(t *testing.T, image []byte, contents [][]byte) {
	t.Helper()
	r, err := NewReader(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	root, err := r.Inode(r.Root())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range contents {
		e, ok, err := r.Lookup(root, strconv.Itoa(i))
		if err != nil || !ok {
			t.Fatalf("file %d: %v, %v", i, ok, err)
		}
		n, err := r.Inode(e.Nid)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r.Content(n)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("file %d has %d bytes, or others, of %d; %v", i, len(got), len(want), err)
		}
	}
}

// full fails from the nth write on.
type full struct {
	*os.File
	left int
}

func (f *full) WriteAt(p []byte, off int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, unix.ENOSPC
	}
	return f.File.WriteAt(p, off)
}

// F-12: a write that fails is told, whichever it is.
func TestF12EveryWriteCounts(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := 0; ; n++ {
		w, err := NewWriter(&full{f, n}, MinBlock)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = large(w); err == nil {
			if n < 50 {
				t.Errorf("an image took %d writes", n)
			}
			return
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("after %d writes: %v", n, err)
		}
		n += n / 8 // not each of a hundred
	}
}
