package initproc

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// forked is all that the child of fork touches, allocated before.
type forked struct {
	paths      []*byte // places where the command may be, in order
	argv, envp **byte
	tty        bool       // make the child's group the terminal's foreground
	gate       [2]uintptr // pipe that ends when the parent has executed the resident init
	group      int32      // the child's process group
	failures   [][]byte   // what to tell the launcher, by errno
}

// lastErrno is the highest error that execve(2) can give, and some more
// (asm-generic/errno.h).
const lastErrno = 133

// fork makes the command, as a child in a process group of its own: what a terminal
// sends goes to that group, and once only. The child waits until this process has
// executed something else, so that the command never sees it, and tells the launcher
// itself should it not start. Signals are blocked for this process afterwards, and not
// for the child.
func (r *runner) fork(c *Command, argv, envp []*byte) (pid int, err error) {
	f := &forked{argv: &argv[0], envp: &envp[0], tty: r.master >= 0}
	for _, path := range candidates(c.Args[0], c.Env) {
		p, err := unix.BytePtrFromString(path)
		if err != nil {
			return 0, &stepError{step: "read arguments", err: err}
		}
		f.paths = append(f.paths, p)
	}
	for errno := range unix.Errno(lastErrno + 1) {
		report := Report{Failure: failure(startError(c.Args[0], errno))}
		message := report.encode()
		f.failures = append(f.failures, append(binary.LittleEndian.AppendUint32(nil, uint32(len(message))), message...))
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, &stepError{step: "fork", err: err}
	}
	f.gate = [2]uintptr{uintptr(pipe[0]), uintptr(pipe[1])}
	all := allSignals
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), 0, sigsetSize, 0, 0); errno != 0 {
		return 0, &stepError{step: "block signals", err: errno}
	}
	n, errno := forkCommand(f)
	if errno != 0 {
		return 0, &stepError{step: "fork", err: errno}
	}
	return int(n), nil
}

// forkCommand is the fork; only the parent returns. The child is a copy of one thread
// of a Go process: until execve it runs straight-line code and raw system calls only.
//
//go:norace
//go:noinline
//go:nosplit
func forkCommand(f *forked) (pid uintptr, errno syscall.Errno) {
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	if errno = becomeCommand(f); int(errno) >= len(f.failures) {
		errno = 0
	}
	told := f.failures[errno]
	syscall.RawSyscall(unix.SYS_WRITE, Socket, uintptr(unsafe.Pointer(&told[0])), uintptr(len(told)))
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, exitFailed, 0, 0)
	}
}

// becomeCommand is the child. It returns the error of the candidate that came closest,
// as search does.
//
//go:norace
//go:nosplit
func becomeCommand(f *forked) syscall.Errno {
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETPGID, 0, 0, 0); errno != 0 {
		return errno
	}
	if f.tty {
		// From a group in the background this would be answered with SIGTTOU, were
		// it not blocked.
		group, _, _ := syscall.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
		f.group = int32(group)
		if _, _, errno := syscall.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSPGRP, uintptr(unsafe.Pointer(&f.group))); errno != 0 {
			return errno
		}
	}
	syscall.RawSyscall(unix.SYS_CLOSE, f.gate[1], 0, 0)
	var nothing byte
	syscall.RawSyscall(unix.SYS_READ, f.gate[0], uintptr(unsafe.Pointer(&nothing)), 1)
	// A handler of the Go runtime must not run in here.
	for sig := uintptr(1); sig <= lastSignal; sig++ {
		reset := sigaction{handler: sigDefault}
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&reset)), 0, sigsetSize, 0, 0)
	}
	none := signalSet(0)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, sigsetSize, 0, 0)
	closest := unix.ENOENT
	for i := 0; i < len(f.paths); i++ {
		_, _, errno := syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(f.paths[i])),
			uintptr(unsafe.Pointer(f.argv)), uintptr(unsafe.Pointer(f.envp)))
		switch errno {
		case unix.ENOENT, unix.ENOTDIR:
		case unix.EACCES:
			closest = errno
		default:
			return errno
		}
	}
	return closest
}
