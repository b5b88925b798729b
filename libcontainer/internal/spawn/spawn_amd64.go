package spawn

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Supported reports whether this package works on this architecture. On which
// kernel it does, Start finds out.
const Supported = true

// Child is a process that does what List says.
type Child struct {
	List
	Cgroup int // v2 directory to be born in (Linux 5.7); -1 for none

	pidfd atomic.Int32 // -1: there is none yet
}

// Prepare readies c for Kill.
func (c *Child) Prepare() { c.pidfd.Store(-1) }

// cloneArgs is struct clone_args as of Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// Start makes the child, which inherits namespaces and control groups from the
// calling thread, and returns when it has executed its command or ended; List
// knows which. The caller has locked the goroutine to its thread. ENOSYS, EINVAL,
// E2BIG: the kernel is too old. The pid and the pidfd are the caller's.
func (c *Child) Start() (pid, pidfd int, err error) {
	l := &c.List
	ignored, err := ignoredSignals()
	if err != nil {
		return 0, -1, err
	}
	ops := make([]op, 0, len(ignored)+len(l.ops)+1)
	for _, signal := range ignored {
		ops = append(ops, op{
			trap: unix.SYS_RT_SIGACTION, result: unset,
			args: [6]uintptr{uintptr(signal), uintptr(unsafe.Pointer(&defaultAction)), 0, sigsetSize},
		})
	}
	ops = append(append(ops, l.ops...), op{trap: trapEnd, result: unset})
	args := &cloneArgs{
		flags:      unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND,
		pidfd:      uint64(uintptr(unsafe.Pointer(&c.pidfd))),
		exitSignal: uint64(unix.SIGCHLD),
	}
	if c.Cgroup >= 0 {
		args.flags, args.cgroup = args.flags|unix.CLONE_INTO_CGROUP, uint64(c.Cgroup)
	}
	// The kernel is given the address as a number: c must be on the heap.
	var pin runtime.Pinner
	pin.Pin(c)
	defer pin.Unpin()
	r := run(args, &ops[0])
	copy(l.ops, ops[len(ignored):])
	if -r <= maxErrno {
		return 0, -1, syscall.Errno(-r)
	}
	return int(r), int(c.pidfd.Load()), nil
}

// Kill ends the child, if it has been made; from any goroutine, while Start has
// not returned.
func (c *Child) Kill() {
	if fd := c.pidfd.Load(); fd >= 0 {
		unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0)
	}
}

// run tells the scheduler that the thread is in a system call, so that no
// goroutine and no collection waits for it. Between the two calls no stack may
// grow.
//
//go:nosplit
//go:norace
func run(args *cloneArgs, ops *op) uintptr {
	entersyscall()
	r := vfork(args, unsafe.Sizeof(*args), ops)
	exitsyscall()
	return r
}

//go:noescape
func vfork(args *cloneArgs, size uintptr, ops *op) (r uintptr)

// Both are exported to package syscall and, because gVisor needs them too, to
// others.

//go:linkname entersyscall runtime.entersyscall
func entersyscall()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()

// sigaction is struct sigaction of the kernel; all zero it is the default.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

var defaultAction sigaction

const (
	sigIgnore  = 1
	lastSignal = 64
)

// ignoredSignals are those that neither the clone nor execve resets.
func ignoredSignals() (list []int, err error) {
	for signal := 1; signal <= lastSignal; signal++ {
		var now sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(signal), 0, uintptr(unsafe.Pointer(&now)), sigsetSize, 0, 0)
		if errno != 0 {
			return nil, errno
		}
		if now.handler == sigIgnore {
			list = append(list, signal)
		}
	}
	return list, nil
}
