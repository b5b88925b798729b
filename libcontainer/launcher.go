package libcontainer

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"berth/libcontainer/initproc"
)

// Launcher starts containers. It can be used by many goroutines at once.
type Launcher struct {
	binary *os.File // the init binary, sealed
	null   *os.File
	proc   int // the host's procfs; -1: it is none
	images *images
	pin    bool        // inits stay on one processor, see pinThread
	users  unix.Stat_t // our user namespace, which a process of several threads cannot leave; all zero: not known

	force    initproc.Force // set by tests
	initOnly bool           // set by tests: Exec by an init always
	// netByClone is set by tests: a network namespace is made by the clone, as where
	// there is one processor.
	netByClone bool
}

// New makes a launcher from the init binary at path. The file is read once: a
// launch executes an anonymous, sealed copy in memory, which a container that
// gets hold of it (through /proc/PID/exe) can neither change nor use to find the
// original (CVE-2019-5736).
func New(path string) (*Launcher, error) {
	source, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load init: %w", err)
	}
	defer source.Close()
	binary, err := seal(source)
	if err != nil {
		return nil, fmt.Errorf("load init %q: %w", path, err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		binary.Close()
		return nil, fmt.Errorf("load init: %w", err)
	}
	proc, err := initproc.OpenProc()
	if err != nil {
		proc = -1
	}
	l := &Launcher{binary: binary, null: null, proc: proc, images: newImages(), pin: anyProcessor()}
	_ = unix.Stat("/proc/self/ns/user", &l.users) // all zero without procfs
	return l, nil
}

// Close gives up the init binary. Running containers do not need it.
func (l *Launcher) Close() error {
	l.images.close()
	l.null.Close()
	if l.proc >= 0 {
		unix.Close(l.proc)
	}
	return l.binary.Close()
}

// seal copies r into a memfd and forbids every change to it.
func seal(r io.Reader) (*os.File, error) {
	// MFD_EXEC is needed where vm.memfd_noexec is set, and unknown before 6.3.
	fd, err := unix.MemfdCreate("berth-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("berth-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err == unix.ENOSYS {
		return unlinkedCopy(r)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "berth-init")
	if _, err := io.Copy(file, r); err != nil {
		file.Close()
		return nil, err
	}
	// Others execute it too: root of a user namespace.
	if err := file.Chmod(0o755); err != nil {
		file.Close()
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		file.Close()
		return nil, os.NewSyscallError("seal memfd", err)
	}
	return file, nil
}

// unlinkedCopy is for kernels before 3.17, which have no memfd: a file that has
// no name any more. While it is being executed the kernel lets nobody write it
// (ETXTBSY), and there is nothing else that is worth it.
func unlinkedCopy(r io.Reader) (*os.File, error) {
	temp, err := os.CreateTemp("", "berth-init-")
	if err != nil {
		return nil, err
	}
	defer temp.Close()
	defer os.Remove(temp.Name())
	if _, err := io.Copy(temp, r); err != nil {
		return nil, err
	}
	if err := temp.Chmod(0o755); err != nil {
		return nil, err
	}
	return os.Open(temp.Name())
}
