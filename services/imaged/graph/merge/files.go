package merge

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openPath opens the directory below root with the given components.
func openPath(root *os.File, path []string) (*os.File, error) {
	dir, err := openAt(root, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	for _, name := range path {
		if err != nil {
			return nil, err
		}
		var next *os.File
		next, err = openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
		dir.Close()
		dir = next
	}
	return dir, err
}

// procPath names an open file, for calls that take no descriptor.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// remove deletes name in dir with all below; that there is none is no error.
func remove(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.EISDIR) {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("openat", err)
		}
		sub := os.NewFile(uintptr(fd), name)
		defer sub.Close()
		if err := removeAllIn(sub); err != nil {
			return err
		}
		return os.NewSyscallError("unlinkat", unix.Unlinkat(dir, name, unix.AT_REMOVEDIR))
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return os.NewSyscallError("unlinkat", err)
}

// removeAllIn empties dir, reading it from where it stands; a directory that
// was not read before.
func removeAllIn(dir *os.File) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := remove(int(dir.Fd()), name); err != nil {
			return err
		}
	}
	return nil
}
