// Package rawfork makes a process that is born into an existing user namespace.
//
// The kernel lets only a process with a single thread enter a user namespace,
// which a Go program never is, and syscall.ForkExec cannot enter one in the child
// between clone and execve. This package can, and does nothing else.
//
// The child of a fork is a copy of one thread of a Go process: no scheduler, no
// collector, no stack growth. Until execve it may run nothing but straight-line
// code and raw system calls; the runtime's own hooks for package syscall, borrowed
// by linkname as gVisor does, keep signals and stack growth away meanwhile.
package rawfork

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Child says what the child does, in this order.
type Child struct {
	Files  []int // become its descriptors 0, 1, …
	UserNS int   // user namespace to enter
	Exec   int   // place in Files of the binary to execute
	Args   []string
	Env    []string
	Cgroup int // v2 directory to be born in (clone3, Linux 5.7); -1 for none
}

// failed is the exit status of a child that could not execve.
const failed = 125

// Start makes the child and returns its pid and pidfd (-1 before Linux 5.2). In
// the user namespace the child is user and group 0 without supplementary groups,
// and leads a session. What fails in the child makes it exit with status 125.
//
// It runs on the calling thread, whose namespaces for children and v1 cgroups the
// child inherits.
func Start(c *Child) (pid, pidfd int, err error) {
	s, release, err := prepare(c)
	if err != nil {
		return 0, -1, err
	}
	defer release()
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	n, errno := fork(s)
	if errno != 0 {
		return 0, -1, errno
	}
	return int(n), int(s.pidfd), nil
}

// state is all the child touches, allocated before the fork.
type state struct {
	files  []uintptr
	userns uintptr
	binary uintptr
	argv   **byte
	envp   **byte
	empty  *byte
	clone  *cloneArgs // nil: the clone of old
	pidfd  int32
}

// cloneArgs is struct clone_args as of Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// prepare copies the descriptors out of the way of those they will become.
func prepare(c *Child) (*state, func(), error) {
	s := &state{userns: uintptr(c.UserNS), binary: uintptr(c.Exec), empty: new(byte), pidfd: -1}
	release := func() {
		for _, fd := range s.files {
			unix.Close(int(fd))
		}
	}
	for _, fd := range c.Files {
		// The descriptors of the plan are below; nothing is clobbered.
		high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, len(c.Files))
		if err != nil {
			release()
			return nil, nil, err
		}
		s.files = append(s.files, uintptr(high))
	}
	if c.UserNS < len(c.Files) {
		release()
		return nil, nil, unix.EINVAL
	}
	argv, err := syscall.SlicePtrFromStrings(c.Args)
	if err != nil {
		release()
		return nil, nil, err
	}
	envp, err := syscall.SlicePtrFromStrings(c.Env)
	if err != nil {
		release()
		return nil, nil, err
	}
	s.argv, s.envp = &argv[0], &envp[0]
	if c.Cgroup >= 0 {
		s.clone = &cloneArgs{
			flags:      unix.CLONE_PIDFD | unix.CLONE_INTO_CGROUP,
			exitSignal: uint64(unix.SIGCHLD),
			cgroup:     uint64(c.Cgroup),
		}
	}
	return s, release, nil
}

// fork makes the child; only the parent returns.
//
//go:norace
//go:noinline
func fork(s *state) (pid uintptr, errno syscall.Errno) {
	var pin runtime.Pinner
	pin.Pin(s)
	defer pin.Unpin()
	if s.clone != nil {
		s.clone.pidfd = uint64(uintptr(unsafe.Pointer(&s.pidfd)))
	}
	return forkHere(s)
}

//go:norace
//go:noinline
//go:nosplit
func forkHere(s *state) (pid uintptr, errno syscall.Errno) {
	beforeFork()
	if s.clone != nil {
		pid, _, errno = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(s.clone)), unsafe.Sizeof(*s.clone), 0)
	} else {
		// The third argument is where the pidfd goes, on all architectures.
		pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_PIDFD|uintptr(unix.SIGCHLD), 0, uintptr(unsafe.Pointer(&s.pidfd)), 0, 0, 0)
	}
	if errno != 0 || pid != 0 {
		afterFork()
		return pid, errno
	}
	afterForkInChild()
	run(s)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, failed, 0, 0)
	}
}

// run is the child. It returns if anything fails.
//
//go:norace
//go:nosplit
func run(s *state) {
	for i := 0; i < len(s.files); i++ {
		if _, _, errno := syscall.RawSyscall(unix.SYS_DUP3, s.files[i], uintptr(i), 0); errno != 0 {
			return
		}
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		return
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETNS, s.userns, unix.CLONE_NEWUSER, 0); errno != 0 {
		return
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0); errno != 0 {
		return
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); errno != 0 {
		return
	}
	syscall.RawSyscall6(unix.SYS_EXECVEAT, s.binary, uintptr(unsafe.Pointer(s.empty)),
		uintptr(unsafe.Pointer(s.argv)), uintptr(unsafe.Pointer(s.envp)), unix.AT_EMPTY_PATH, 0)
}

// The hooks of package syscall: signals are blocked from beforeFork on, and a
// stack that would grow aborts. afterForkInChild also resets signal handlers.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()
