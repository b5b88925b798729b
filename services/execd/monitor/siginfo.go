package monitor

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfoPid is the field si_pid of a SIGCHLD siginfo_t (sigaction(2)), which
// x/sys keeps in a blank array: three ints, on 64-bit padded to eight bytes,
// stand before the union it is in. Zero: no child.
func siginfoPid(info *unix.Siginfo) int {
	type sigchld struct {
		_   [3]int32
		_   int32
		pid int32
	}
	return int((*sigchld)(unsafe.Pointer(info)).pid)
}
