package worker

import (
	"sync"
	"syscall"

	"berth/libcontainer/seccomp"
)

// profile is all that berth-unpack may ask the kernel for once it is shut in:
// what making files takes, and what the Go runtime does on its own. There is
// nothing to make sockets with, to execute a program, to signal or trace
// another process, to mount, to change identity or limits, or to name a file
// other than relative to a descriptor.
var profile = &seccomp.Profile{
	Fallback: seccomp.Errno(syscall.EPERM),
	Rules: []seccomp.Rule{
		{Action: seccomp.Allow, Names: []string{
			// Descriptors.
			"read", "write", "pread64", "pwrite64", "readv", "writev", "lseek", "close", "fcntl", "fstat", "ftruncate", "fallocate",
			// Files, by descriptor and name.
			"openat", "mkdirat", "mknodat", "linkat", "symlinkat", "unlinkat", "newfstatat", "statx", "readlinkat", "getdents64",
			"fchown", "fchownat", "fchmod", "fchmodat", "fsetxattr", "fgetxattr", "utimensat",
			// Memory, time and threads.
			"brk", "munmap", "madvise", "mremap", "mincore", "futex", "nanosleep", "clock_nanosleep", "clock_gettime", "gettimeofday",
			"sched_yield", "sched_getaffinity", "getpid", "gettid", "sigaltstack", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
			"restart_syscall", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "getrandom", "rseq", "set_robust_list",
			"exit", "exit_group",
		}},
		// Memory is never executed that was written to.
		{Action: seccomp.Allow, Names: []string{"mmap", "mprotect"}, Args: []seccomp.Arg{{Index: 2, Op: seccomp.MaskedEqual, Mask: syscall.PROT_EXEC}}},
		// A new thread, and no process.
		{Action: seccomp.Allow, Names: []string{"clone"}, Args: []seccomp.Arg{{Index: 0, Op: seccomp.MaskedEqual, Mask: syscall.CLONE_THREAD | namespaces, Value: syscall.CLONE_THREAD}}},
		{Action: seccomp.Errno(syscall.ENOSYS), Names: []string{"clone3"}}, // its arguments lie where no filter sees them
	},
}

// namespaces are the flags of clone(2) that make new ones.
const namespaces = syscall.CLONE_NEWNS | syscall.CLONE_NEWCGROUP | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET

// filter is the profile, compiled for this machine.
var filter = sync.OnceValues(func() ([]byte, error) {
	target, err := seccomp.Host()
	if err != nil {
		return nil, err
	}
	return profile.Compile(target)
})
