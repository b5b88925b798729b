package graph

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"berth/services/imaged/erofs"
	"berth/services/imaged/trash"
	"berth/services/imaged/unpack"

	"golang.org/x/sys/unix"
)

// TestWriteBehind waits for a file to get its place on the disk, which ext4 gives out when it writes. On its own the
// kernel leaves a file alone for half a minute.
func TestWriteBehind(t *testing.T) {
	dir := onExt4(t)
	write := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		return f
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var w WriteBehind
	var ends []func()
	for range 2 {
		end, err := w.Begin(d)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	ends[0]() // the other goes on
	f := write("file")
	began := time.Now()
	for delayed(t, f) {
		if time.Since(began) > 15*time.Second {
			t.Fatal("nothing is written while a layer is being unpacked")
		}
		time.Sleep(20 * time.Millisecond)
	}
	stopped := w.stop
	ends[1]()
	select {
	case <-stopped:
	default:
		t.Error("the writing goes on when nobody wants it any more")
	}
}

// TestSyncWithoutWriteBehind: a layer is on the disk after its Sync where nobody writes behind, be it an image or a tree.
// That is what a power cut asks for; writing behind only makes the wait shorter.
func TestSyncWithoutWriteBehind(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: unpacking a tree needs root")
	}
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB, without holes
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "file", Mode: 0o644, Size: int64(len(content))})
	w.Write(content)
	w.Close()
	for name, form := range map[string]struct {
		options unpack.Options
		file    string
	}{
		"erofs":   {unpack.Options{Whiteouts: unpack.OverlayUser, Image: true, BlockSize: erofs.MinBlock}, unpack.ImageFile},
		"overlay": {unpack.Options{Whiteouts: unpack.OverlayUser}, "file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := onExt4(t)
			can, err := trash.Open(filepath.Join(dir, "trash"), t.Logf)
			if err != nil {
				t.Fatal(err)
			}
			defer can.Close()
			layers, err := OpenLayerDir(filepath.Join(dir, "l"), form.options, can)
			if err != nil {
				t.Fatal(err)
			}
			layers.behind.users = 1 // as if it were at work already; nobody is
			staged, err := layers.Stage(t.Context(), func(ctx context.Context, dir *os.File, o unpack.Options) (unpack.Result, error) {
				return unpack.Extract(ctx, dir, bytes.NewReader(archive.Bytes()), o)
			})
			if err != nil {
				t.Fatal(err)
			}
			defer staged.Discard()
			f, err := os.Open(filepath.Join(staged.(*stagedDir).path, form.file))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if !delayed(t, f) {
				t.Log("somebody else has synced the file system meanwhile: this run cannot tell")
			}
			if err := staged.Sync(); err != nil {
				t.Fatal(err)
			}
			if delayed(t, f) {
				t.Errorf("%s has no place on the disk after the sync of its layer", form.file)
			}
			if layers.behind.stop != nil {
				t.Error("somebody has written behind")
			}
		})
	}
}

// onExt4 is a directory on ext4, whose files tell whether they were written.
func onExt4(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		t.Skipf("SKIPPED: %s is not on ext4, put TMPDIR there", dir)
	}
	return dir
}

// delayed reports whether ext4 has not yet given f a place on the disk (linux/fiemap.h).
func delayed(t *testing.T, f *os.File) bool {
	t.Helper()
	const (
		iocFiemap = 0xc020660b
		delalloc  = 4
	)
	var m struct {
		start, length                  uint64
		flags, mapped, count, reserved uint32
		extent                         struct {
			logical, physical, length uint64
			_                         [2]uint64
			flags                     uint32
			_                         [3]uint32
		}
	}
	m.length, m.count = 1<<20, 1
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), iocFiemap, uintptr(unsafe.Pointer(&m))); errno != 0 {
		t.Fatal(os.NewSyscallError("fiemap", errno))
	}
	return m.mapped == 1 && m.extent.flags&delalloc != 0
}
