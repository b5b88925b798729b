package main

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"berth/internal/fault"
	"berth/services/imaged/graph"
	"berth/services/imaged/graph/graphtest"
	"berth/services/imaged/graph/overlay"
	"berth/services/imaged/trash"
)

// onOldKernel calls f while the kernel says to its thread that it is Linux 2.6 (personality(2)).
func onOldKernel(t *testing.T, f func()) {
	t.Helper()
	const uname26 = 0x0020000
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	was, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, uname26, 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	defer unix.RawSyscall(unix.SYS_PERSONALITY, was, 0, 0)
	f()
}

// storeWith makes a store that holds a layer.
func storeWith(t *testing.T, driver string) (dir, layer string, can *trash.Can) {
	t.Helper()
	dir = t.TempDir()
	can, err := trash.Open(filepath.Join(dir, "trash"), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(can.Close)
	d, err := openDriver(dir, driver, can, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	staged, err := d.Stage(t.Context(), graphtest.Make(rootTar(t)))
	if err == nil {
		err = staged.Sync()
	}
	if err == nil {
		err = staged.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir, staged.Layer().Name, can
}

// TestStoreOfANewerKernel: a kernel that cannot stack the layers of a store, as its overlayfs reads other marks, does not open
// it in another way either; the one that made them opens it again.
func TestStoreOfANewerKernel(t *testing.T) {
	for _, driver := range []string{"overlay", "erofs"} {
		dir, layer, can := storeWith(t, driver)
		before := filesIn(t, dir)
		for _, asked := range []string{"auto", driver} {
			onOldKernel(t, func() {
				_, err := openDriver(dir, asked, can, hclog.NewNullLogger())
				if fault.KindOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "holds layers of graph driver "+driver) ||
					!strings.Contains(err.Error(), "5.11") {
					t.Errorf("%s, asked for %s: %v", driver, asked, err)
				}
			})
			if after := filesIn(t, dir); !slices.Equal(after, before) {
				t.Errorf("%s, asked for %s: there is %q, was %q", driver, asked, after, before)
			}
		}
		d, err := openDriver(dir, "auto", can, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		if layers, err := d.Layers(); d.Name() != driver || !slices.Equal(layers, []string{layer}) {
			t.Errorf("driver %s has layers %q, %v", d.Name(), layers, err)
		}
	}
}

// TestStoreOfAnOlderKernel: what a kernel without userxattr makes, later ones open as it is.
func TestStoreOfAnOlderKernel(t *testing.T) {
	var dir string
	onOldKernel(t, func() {
		var can *trash.Can
		dir, _, can = storeWith(t, "auto")
		if _, err := openDriver(t.TempDir(), "overlay", can, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "5.11") {
			t.Errorf("overlay in a new store: %v", err)
		}
		if n := overlay.BlockSize(); n != os.Getpagesize() {
			t.Errorf("images are made with blocks of %d bytes", n)
		}
	})
	can, err := trash.Open(filepath.Join(dir, "trash"), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer can.Close()
	var d graph.Driver
	if d, err = openDriver(dir, "auto", can, hclog.NewNullLogger()); err != nil {
		t.Fatal(err)
	}
	if layers, err := d.Layers(); d.Name() != "plaincopy" || len(layers) != 1 {
		t.Errorf("driver %s has layers %q, %v", d.Name(), layers, err)
	}
}

// filesIn are the names of all files below dir.
func filesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		names = append(names, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
