package unpack

import (
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of this package, each with the name of the call in its
// error and restarted when a signal interrupts it. All names are single
// components and nothing follows a symbolic link.

func retry(call string, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return os.NewSyscallError(call, err)
		}
	}
}

func openat(dir int, name string, flags int, mode uint32) (fd int, err error) {
	err = retry("openat", func() (err error) {
		fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
		return err
	})
	return fd, err
}

func openDir(dir int, name string) (int, error) {
	return openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

func mkdirat(dir int, name string, mode uint32) error {
	return retry("mkdirat", func() error { return unix.Mkdirat(dir, name, mode) })
}

func mknodat(dir int, name string, kind uint32, dev uint64) error {
	return retry("mknodat", func() error { return unix.Mknodat(dir, name, kind|0o600, int(dev)) })
}

func linkat(fromDir int, from string, dir int, name string) error {
	return retry("linkat", func() error { return unix.Linkat(fromDir, from, dir, name, 0) })
}

func symlinkat(target string, dir int, name string) error {
	return retry("symlinkat", func() error { return unix.Symlinkat(target, dir, name) })
}

func unlinkat(dir int, name string, flags int) error {
	return retry("unlinkat", func() error { return unix.Unlinkat(dir, name, flags) })
}

func fstat(fd int) (st unix.Stat_t, err error) {
	err = retry("fstat", func() error { return unix.Fstat(fd, &st) })
	return st, err
}

func fstatat(dir int, name string) (st unix.Stat_t, err error) {
	err = retry("fstatat", func() error { return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return st, err
}

func fchown(fd, uid, gid int) error {
	return retry("fchown", func() error { return unix.Fchown(fd, uid, gid) })
}

func fchownat(dir int, name string, uid, gid int) error {
	return retry("fchownat", func() error { return unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW) })
}

func fchmod(fd int, mode uint32) error {
	return retry("fchmod", func() error { return unix.Fchmod(fd, mode) })
}

// fchmodat follows links, as the kernel knew no other way before 6.6: only for
// names that are known not to be one.
func fchmodat(dir int, name string, mode uint32) error {
	return retry("fchmodat", func() error { return unix.Fchmodat(dir, name, mode, 0) })
}

func ftruncate(fd int, size int64) error {
	return retry("ftruncate", func() error { return unix.Ftruncate(fd, size) })
}

func fsetxattr(fd int, attr string, value []byte) error {
	err := retry("fsetxattr", func() error { return unix.Fsetxattr(fd, attr, value, 0) })
	if err != nil {
		return &os.PathError{Op: "set extended attribute", Path: strings.ToValidUTF8(attr, "?"), Err: err}
	}
	return nil
}

func utimensat(dir int, name string, times [2]unix.Timespec) error {
	return retry("utimensat", func() error {
		return unix.UtimesNanoAt(dir, name, times[:], unix.AT_SYMLINK_NOFOLLOW)
	})
}

// futimens is utimensat(2) without a name, which acts on the descriptor itself;
// x/sys has no wrapper for that form.
func futimens(fd int, times [2]unix.Timespec) error {
	return retry("futimens", func() error {
		_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
}

func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		var n int
		err := retry("write", func() (err error) {
			n, err = unix.Write(fd, p)
			return err
		})
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}
