package safepath

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzWalk holds the walk to the answers of openat2, the oracle, on a tree
// with links whose texts are fuzzed too.
func FuzzWalk(f *testing.F) {
	if !haveOpenat2() {
		f.Skip("SKIPPED: no openat2 to compare with")
	}
	for _, seed := range []struct{ path, a, b string }{
		{"a/x", "/d/..", "../a"},
		{"d/e/../../b", "d/e", "a/../d/f"},
		{"../a/", "/", "."},
		{"a", "b", "a"},
		{"d/b/..", "d", "/d/f/"},
		{"/d//e/.", "a/../../d", "//"},
		{"b/f/.", "a/x", "d/"},
	} {
		f.Add(seed.path, seed.a, seed.b, uint8(0))
		f.Add(seed.path, seed.a, seed.b, uint8(0xff))
	}
	f.Fuzz(func(t *testing.T, path, a, b string, bits uint8) {
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, "d/e"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "d/f"), nil, 0o644))
		if os.Symlink(a, filepath.Join(dir, "a")) != nil || os.Symlink(b, filepath.Join(dir, "b")) != nil ||
			os.Symlink(a, filepath.Join(dir, "d/b")) != nil {
			t.Skip("not the text of a link")
		}
		root, err := OpenRoot(dir)
		must(t, err)
		defer unix.Close(root)
		r := request{flags: unix.O_PATH | unix.O_CLOEXEC, beneath: bits&1 != 0}
		if bits&2 != 0 {
			r.flags |= unix.O_NOFOLLOW
		}
		if bits&4 != 0 {
			r.flags |= unix.O_DIRECTORY
		}
		if bits&8 != 0 {
			r.flags &^= unix.O_PATH
		}
		if checkPath(path) != nil {
			return
		}
		kernel, kernelErr := kernelOpen(root, path, r)
		walk, walkErr := walkOpen(root, path, r)
		if kernelErr != walkErr {
			t.Fatalf("path %q, a -> %q, b -> %q, flags %#x, beneath %v: walk %v, openat2 %v", path, a, b, r.flags, r.beneath, walkErr, kernelErr)
		}
		if kernelErr != nil {
			return
		}
		defer unix.Close(kernel)
		defer unix.Close(walk)
		var want, got unix.Stat_t
		must(t, unix.Fstat(kernel, &want))
		must(t, unix.Fstat(walk, &got))
		if !sameInode(&want, &got) {
			t.Fatalf("path %q, a -> %q, b -> %q: walk came to another inode than openat2", path, a, b)
		}
	})
}
