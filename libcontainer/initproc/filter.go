package initproc

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filterSize is the size of struct sock_filter; maxFilter is the most of them
// that the kernel takes (BPF_MAXINSNS).
const (
	filterSize = 8
	maxFilter  = 4096
)

var errFilter = errors.New("not an array of struct sock_filter")

// loadFilter puts the calling thread under a seccomp filter (seccomp(2)).
func loadFilter(program []byte) error {
	prog, err := parseFilter(program)
	if prog == nil {
		return err
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(prog)))
	if errno == unix.ENOSYS { // before Linux 3.17
		_, _, errno = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(prog)))
	}
	if errno != 0 {
		return &stepError{step: "load seccomp filter", err: errno}
	}
	return nil
}

// parseFilter is nil for no filter.
func parseFilter(program []byte) (*unix.SockFprog, error) {
	if len(program) == 0 {
		return nil, nil
	}
	n := len(program) / filterSize
	if len(program)%filterSize != 0 || n > maxFilter {
		return nil, &stepError{step: "load seccomp filter", err: errFilter}
	}
	// The bytes arrived at any alignment.
	filter := make([]unix.SockFilter, n)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&filter[0])), len(program)), program)
	return &unix.SockFprog{Len: uint16(n), Filter: &filter[0]}, nil
}
