package mount

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel refuses an upper directory that was mounted volatile before; a
// start that failed after the mount must not be the last one.
func TestVolatileOverlayCanBeMountedAgain(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	dir := t.TempDir()
	var probe unix.Statfs_t
	if err := unix.Statfs(dir, &probe); err != nil || probe.Type == unix.OVERLAYFS_SUPER_MAGIC {
		t.Skipf("SKIP: no overlay on %s: %v", dir, err)
	}
	r := &Root{
		Lower: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"),
		Options: []string{Volatile},
	}
	for _, d := range []string{r.Lower[0], r.Upper, r.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, legacy := range []bool{false, true, false} {
		b := NewBuilder(legacy)
		tree, err := b.Overlay(r)
		if err != nil {
			t.Fatalf("mount, legacy=%v: %v", legacy, err)
		}
		tree.Close()
		b.Close()
	}
}
