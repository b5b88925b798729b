// Package sandbox shuts the running process in: one directory becomes all it can
// see, a list of system calls all it can ask for, and a few capabilities all it
// may do. It is for a helper that works on what strangers sent, and enters before
// it reads the first byte of that.
//
// [Enter] acts on every thread of the process and cannot be undone. Each wall
// holds by itself, so that a kernel without one of them leaves the others.
//
//	dumpable = 0           nobody of the same user traces it, nor does its core hold anything
//	no_new_privs           nothing it executes gains a privilege
//	limits                 of memory, files, file size and processor time
//	chroot                 names lead nowhere but below the directory
//	Landlock (5.19)        the same once more, for links to outside as well; no TCP, no signals to others
//	capabilities           exactly those given
//	seccomp                exactly the calls given; no new programs, processes, sockets
//
// Not for: containers, whose setup is package initproc's.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
	"berth/libcontainer/landlock"
	"berth/libcontainer/seccomp/filter"
)

// Config is what the process is left with.
type Config struct {
	Dir    *os.File // becomes "/"
	Caps   caps.Set // of those it has
	Limits Limits
	// Filter is a program of package seccomp, which must allow what a Go program
	// has need of; nil: no filter.
	Filter []byte
	// NoLandlock leaves Landlock out.
	NoLandlock bool
}

// Limits are resource limits, soft and hard (getrlimit(2)). There is no core
// file in any case.
type Limits struct {
	// Memory is in bytes, of what can be written to (RLIMIT_DATA): Go reserves a
	// multiple of the addresses that it uses, which RLIMIT_AS would count.
	Memory   uint64
	FileSize uint64 // bytes of any one file
	Files    uint64 // number above the highest descriptor
	Seconds  uint64 // of processor time
}

// State tells which walls stand that not every kernel has.
type State struct {
	Landlock int  `json:"landlock"` // the kernel's version of it, 0: none
	Seccomp  bool `json:"seccomp"`
}

// Enter shuts the process in. It needs CAP_SYS_CHROOT and what Caps lists; the
// first is given up unless Caps has it. After an error the process must exit.
func Enter(c Config) (State, error) {
	var s State
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return s, os.NewSyscallError("prctl PR_SET_DUMPABLE", err)
	}
	// Who was executed with it has it on every thread; each call for all of them is a handshake with all of them.
	if on, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || on == 0 {
		if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
			return s, os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", errno)
		}
	}
	if err := c.Limits.set(); err != nil {
		return s, err
	}
	// Of the whole process: threads share root and working directory.
	if err := unix.Fchdir(int(c.Dir.Fd())); err != nil {
		return s, fmt.Errorf("enter %s: %w", c.Dir.Name(), os.NewSyscallError("fchdir", err))
	}
	if err := unix.Chroot("."); err != nil {
		return s, os.NewSyscallError("chroot", err)
	}
	if !c.NoLandlock {
		switch err := landlock.Confine(c.Dir); {
		case err == nil:
			s.Landlock = landlock.Version()
		case !errors.Is(err, landlock.ErrUnsupported):
			return s, err
		}
	}
	if err := caps.Reduce(c.Caps); err != nil {
		return s, err
	}
	if c.Filter != nil && filter.Supported() {
		if err := filter.LoadAll(c.Filter); err != nil {
			return s, err
		}
		s.Seccomp = true
	}
	return s, nil
}

// CloseFrom closes all descriptors from first on, whoever opened them: for the
// first line of a program, before the Go runtime has opened any of its own.
func CloseFrom(first int) error {
	err := unix.CloseRange(uint(first), ^uint(0)>>32, 0)
	if err == nil || err != unix.ENOSYS && err != unix.EPERM {
		return os.NewSyscallError("close_range", err)
	}
	open, err := os.ReadDir("/proc/self/fd") // before Linux 5.9
	if err != nil {
		return err
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.Close(fd)
		}
	}
	return nil
}

func (l Limits) set() error {
	for resource, value := range map[int]uint64{
		unix.RLIMIT_DATA: l.Memory, unix.RLIMIT_FSIZE: l.FileSize, unix.RLIMIT_NOFILE: l.Files, unix.RLIMIT_CPU: l.Seconds, unix.RLIMIT_CORE: 0,
	} {
		if err := unix.Prlimit(0, resource, &unix.Rlimit{Cur: value, Max: value}, nil); err != nil {
			return fmt.Errorf("limit resource %d to %d: %w", resource, value, os.NewSyscallError("prlimit", err))
		}
	}
	return nil
}
