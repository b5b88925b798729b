package harness

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// Disk is a file system of its own on a loop device, mounted in the tests' private mount namespace.
type Disk struct {
	Dir    string // where it is mounted
	device string
}

// NewDisk makes an ext4 file system of so many MiB; mkfs gets further arguments.
func NewDisk(t testing.TB, mib int64, mkfs ...string) *Disk {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(image)
	if err == nil {
		err = f.Truncate(mib << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	Sh(t, "mkfs.ext4", append(append([]string{"-q", "-F", "-m", "0"}, mkfs...), image)...)
	dir, err := os.MkdirTemp("/tmp", "berth-disk.")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	d := &Disk{Dir: dir, device: strings.TrimSpace(Sh(t, "losetup", "--find", "--show", image))}
	t.Cleanup(func() {
		syscall.Unmount(dir, syscall.MNT_DETACH)
		exec.Command("losetup", "-d", d.device).Run()
		os.Remove(dir)
	})
	d.Mount(t)
	return d
}

// Mount mounts the disk; ext4 replays its journal.
func (d *Disk) Mount(t testing.TB) {
	t.Helper()
	if err := syscall.Mount(d.device, d.Dir, "ext4", 0, ""); err != nil {
		t.Fatalf("mount %s: %v", d.device, err)
	}
	os.Chmod(d.Dir, 0o755)
}

// Unmount waits until nobody uses the disk, in no mount namespace: those of processes that were killed just now go a little
// later than they do, and as long as one has the disk mounted the next Mount gets the same file system once more, cut as it is.
func (d *Disk) Unmount(t testing.TB) {
	t.Helper()
	Eventually(t, 10*time.Second, func() bool { return syscall.Unmount(d.Dir, 0) == nil }, "%s is unmounted", d.Dir)
	Eventually(t, 10*time.Second, func() bool {
		f, err := os.OpenFile(d.device, os.O_RDONLY|syscall.O_EXCL, 0) // EBUSY while it is mounted (open(2))
		if err == nil {
			f.Close()
		}
		return err == nil
	}, "%s is mounted nowhere", d.device)
}

// Cut is a power cut as the file system sees it: EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH (linux/fs/ext4/ext4.h).
// What is not on the disk by now never gets there.
func (d *Disk) Cut(t testing.TB) {
	t.Helper()
	const ioctlShutdown = 0x8004587d
	noLogFlush := uint32(2)
	f, err := os.Open(d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), ioctlShutdown, uintptr(unsafe.Pointer(&noLogFlush))); errno != 0 {
		t.Fatalf("EXT4_IOC_SHUTDOWN on %s: %v", d.Dir, errno)
	}
}

// Fail has ext4 find an error, upon which it takes no more writes; the disk is made with "-e", "remount-ro".
func (d *Disk) Fail(t testing.TB) {
	t.Helper()
	path := "/sys/fs/ext4/" + filepath.Base(d.device) + "/trigger_fs_error"
	if err := os.WriteFile(path, []byte("a test wants it"), 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(d.Dir + "/written")
	if err == nil {
		f.Close()
		t.Fatalf("%s can still be written to", d.Dir)
	}
}

// Repair repairs the file system, which nobody may have mounted.
func (d *Disk) Repair(t testing.TB) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fy", d.device).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 1) { // 1: errors were corrected
		t.Fatalf("e2fsck: %v: %s", err, out)
	}
}
