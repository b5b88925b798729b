package libcontainer

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// cldExited is si_code of a child that exited, in place of one that was killed.
const cldExited = 1

// siginfoStatus points at si_status: behind three ints, padding to a pointer, and
// si_pid and si_uid (64-bit layout, include/uapi/asm-generic/siginfo.h).
func siginfoStatus(info *unix.Siginfo) unsafe.Pointer {
	const offset = 16 + 4 + 4
	return unsafe.Add(unsafe.Pointer(info), offset)
}
