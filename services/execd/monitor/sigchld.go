package monitor

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigaction is struct sigaction of the kernel: handler, flags, restorer and mask. All zero it is the default.
type sigaction [4]uint64

// exchange gives SIGCHLD the action a, and returns what it had.
func (a sigaction) exchange() (old sigaction) {
	const sigsetSize = 8
	unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&a)), uintptr(unsafe.Pointer(&old)), sigsetSize, 0, 0)
	return old
}

// handler is the Go runtime's, which installs it at its start and does not look at it again.
var handler = sync.OnceValue(func() sigaction {
	theirs := sigaction{}.exchange()
	theirs.exchange()
	return theirs
})

// silenceChildren gives SIGCHLD its default action, which is nothing: children that have ended stay to be waited for,
// as they would not if it was ignored, and no thread is woken.
func silenceChildren() {
	handler()
	sigaction{}.exchange()
}

// hearChildren undoes it.
func hearChildren() { handler().exchange() }
