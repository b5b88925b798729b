// Package filter loads a compiled seccomp program into the calling thread.
//
// It is apart from package seccomp, which compiles programs, because the small
// setup process that loads one should not link tables, parsers and compiler.
package filter

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Limits of a program (linux/bpf_common.h).
const (
	InstructionSize = 8    // bytes of a struct sock_filter
	MaxInstructions = 4096 // BPF_MAXINSNS
)

// setModeFilter is SECCOMP_SET_MODE_FILTER of seccomp(2).
const setModeFilter = 1

// Load puts the calling thread, and whatever it starts or becomes by execve,
// under the program code: struct sock_filter after struct sock_filter, in the
// byte order of the machine, as package seccomp compiles it. It cannot be
// undone. The caller locked the goroutine to its thread; other threads are not
// affected.
//
// It needs CAP_SYS_ADMIN in the thread's user namespace or no_new_privs, and a
// program that allows what the caller has yet to do. Code that is no program
// is EINVAL, no code at all too: to run unconfined, do not call Load.
func Load(code []byte) error { return loadWith(code, 0) }

// LoadAll is Load for every thread of the process (Linux 3.17).
func LoadAll(code []byte) error { return loadWith(code, unix.SECCOMP_FILTER_FLAG_TSYNC) }

func loadWith(code []byte, flags uintptr) error {
	n := len(code) / InstructionSize
	if n == 0 || n > MaxInstructions || len(code)%InstructionSize != 0 {
		return &Error{unix.EINVAL}
	}
	instructions := make([]unix.SockFilter, n)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&instructions[0])), len(code)), code)
	program := unix.SockFprog{Len: uint16(n), Filter: &instructions[0]}
	defer runtime.KeepAlive(instructions)
	if err := load(&program, flags); err != 0 {
		return &Error{err}
	}
	return nil
}

// Error is a failure of seccomp(2).
type Error struct{ Err unix.Errno }

func (e *Error) Error() string { return "load seccomp filter: " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// load asks not to turn on the mitigation of Speculative Store Bypass, which
// slowed filtered processes by some per cent before Linux 5.16 made that the
// rule; then goes without what the kernel does not know.
func load(program *unix.SockFprog, flags uintptr) unix.Errno {
	thread, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, setModeFilter, flags|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(program)))
	if errno == unix.EINVAL { // flag unknown before Linux 4.17
		thread, _, errno = unix.RawSyscall(unix.SYS_SECCOMP, setModeFilter, flags, uintptr(unsafe.Pointer(program)))
	}
	switch {
	case errno == unix.ENOSYS && flags == 0: // call unknown before Linux 3.17
		_, _, errno = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(program)))
	case errno == 0 && flags != 0 && thread != 0: // one that has a filter of its own (seccomp(2))
		errno = unix.ESRCH
	}
	return errno
}

// Supported reports whether the kernel has seccomp(2) with filters: one that has
// misses the program, one that has not the call or its operation.
func Supported() bool {
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, setModeFilter, 0, 0)
	return errno == unix.EFAULT
}
