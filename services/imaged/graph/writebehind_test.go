package graph

import (
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestWriteBehind waits for a file to get its place on the disk, which ext4 gives out when it writes. On its own the
// kernel leaves a file alone for half a minute.
func TestWriteBehind(t *testing.T) {
	dir := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		t.Skipf("SKIPPED: %s is not on ext4, put TMPDIR there", dir)
	}
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
