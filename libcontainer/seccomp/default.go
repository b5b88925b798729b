package seccomp

import (
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
)

// Default returns the built-in profile: what ordinary programs need, and the
// rest as far as a capability of the container vouches for it. A test holds it
// to the public default profile of the moby project, which several engines
// share, so that what runs elsewhere runs here.
//
// It is not a list of what is harmless, but of what the kernel checks well
// enough. Absent are calls that a container has no use for and that were the
// way into the kernel before (io_uring, userfaultfd, keyrings), that change the
// whole machine (kexec, swap, clock), or that are long dead.
//
// Each call returns the same profile, which must not be changed.
func Default() *Profile { return builtin() }

var builtin = sync.OnceValue(func() *Profile {
	return &Profile{
		Fallback: Errno(unix.EPERM),
		Arches:   family,
		Rules: slices.Concat(
			[]Rule{
				allow(ordinary, If{}),
				// Before 4.8 a tracer could change a call after the filter had seen it.
				allow(`process_vm_readv process_vm_writev ptrace`, If{Kernel: Version{4, 8}}),
			},
			allowedFamilies(),
			allowedPersonalities(),
			ofArchitectures(),
			ofCapabilities(),
			namespaceFlags(),
		),
	}
})

// ordinary calls are allowed everywhere, with any arguments. Names that an
// architecture lacks are skipped there; those with digits are the later, wider
// versions that 32-bit architectures grew.
const ordinary = `
	read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek _llseek
	open openat openat2 creat close close_range dup dup2 dup3 pipe pipe2 fcntl fcntl64 ioctl flock
	splice tee vmsplice sendfile sendfile64 copy_file_range readahead cachestat
	truncate truncate64 ftruncate ftruncate64 fallocate fadvise64 fadvise64_64
	sync syncfs fsync fdatasync sync_file_range

	stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx access faccessat faccessat2
	statfs statfs64 fstatfs fstatfs64 statmount listmount
	chdir fchdir getcwd mkdir mkdirat rmdir rename renameat renameat2 getdents getdents64
	link linkat symlink symlinkat readlink readlinkat unlink unlinkat mknod mknodat umask
	chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 lchown lchown32 fchownat
	utime utimes utimensat utimensat_time64 futimesat name_to_handle_at
	getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat
	listxattr llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat
	inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark

	select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64
	epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2
	eventfd eventfd2 signalfd signalfd4
	io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64

	brk mmap mmap2 munmap mremap mprotect madvise mincore msync mseal remap_file_pages
	mlock mlock2 mlockall munlock munlockall pkey_alloc pkey_free pkey_mprotect
	memfd_create memfd_secret map_shadow_stack membarrier

	fork vfork execve execveat exit exit_group wait4 waitid waitpid
	getpid getppid gettid getpgid getpgrp setpgid getsid setsid pidfd_open pidfd_send_signal process_mrelease
	kill tkill tgkill pause sigaltstack sigprocmask sigreturn
	rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
	rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
	set_tid_address set_robust_list get_robust_list set_thread_area get_thread_area rseq restart_syscall
	futex futex_time64 futex_wait futex_wake futex_requeue futex_waitv
	prctl seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
	uretprobe riscv_hwprobe

	getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32
	getresuid getresuid32 getresgid getresgid32 getgroups getgroups32
	setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32
	setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32
	setgroups setgroups32 capget capset

	getpriority setpriority ioprio_get ioprio_set getcpu
	getrlimit ugetrlimit setrlimit prlimit64 getrusage times sysinfo uname getrandom
	sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr
	sched_getparam sched_setparam sched_getscheduler sched_setscheduler
	sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_rr_get_interval_time64

	time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64
	clock_nanosleep clock_nanosleep_time64 nanosleep alarm getitimer setitimer
	adjtimex clock_adjtime clock_adjtime64
	timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
	timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64

	socketcall socketpair bind connect listen accept accept4 shutdown
	send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64
	getsockname getpeername getsockopt setsockopt

	ipc msgget msgctl msgsnd msgrcv semget semctl semop semtimedop semtimedop_time64
	shmget shmctl shmat shmdt
	mq_open mq_unlink mq_getsetattr mq_notify mq_timedsend mq_timedsend_time64
	mq_timedreceive mq_timedreceive_time64
`

// allowedFamilies let socket make all address families but two: AF_ALG (38),
// the kernel's own cryptography, whose bugs made root of anybody
// (CVE-2026-31431), and AF_VSOCK (40), which passes by network namespaces to
// the hypervisor. On 32-bit x86 socketcall is a way around: its arguments lie
// in memory, where no filter sees them.
func allowedFamilies() []Rule {
	rules := []Rule{allowArg("socket", Arg{Op: Less, Value: unix.AF_ALG})}
	for f := uint64(unix.AF_ALG + 1); f <= unix.AF_MCTP; f++ {
		if f != unix.AF_VSOCK {
			rules = append(rules, allowArg("socket", Arg{Op: Equal, Value: f}))
		}
	}
	return rules
}

// allowedPersonalities are Linux itself and what old binaries and setarch ask
// for (linux/personality.h). Others bring back system calls and memory layouts
// of long ago.
func allowedPersonalities() []Rule {
	const linux32, uname26, query = 0x0008, 0x20000, 0xffffffff
	var rules []Rule
	for _, p := range []uint64{0, linux32, uname26, uname26 | linux32, query} {
		rules = append(rules, allowArg("personality", Arg{Op: Equal, Value: p}))
	}
	return rules
}

// ofArchitectures are calls that mean something on one architecture only.
func ofArchitectures() []Rule {
	return []Rule{
		allow(`arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls`, If{Arches: []string{"arm", "arm64"}}),
		allow(`arch_prctl`, If{Arches: []string{"amd64", "x32"}}),
		allow(`modify_ldt`, If{Arches: []string{"amd64", "x32", "x86"}}),
	}
}

// ofCapabilities are calls that only a holder of the capability could use:
// without it they would fail anyway, but not before the kernel has run more
// code on behalf of a stranger than needs be.
func ofCapabilities() []Rule {
	return []Rule{
		allow(`bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie
		lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree
		perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare`,
			with(unix.CAP_SYS_ADMIN)),
		allow(`kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace`, with(unix.CAP_SYS_PTRACE)),
		allow(`get_mempolicy mbind set_mempolicy set_mempolicy_home_node`, with(unix.CAP_SYS_NICE)),
		allow(`settimeofday stime clock_settime clock_settime64`, with(unix.CAP_SYS_TIME)),
		allow(`delete_module init_module finit_module`, with(unix.CAP_SYS_MODULE)),
		allow(`iopl ioperm`, with(unix.CAP_SYS_RAWIO)),
		allow(`open_by_handle_at`, with(unix.CAP_DAC_READ_SEARCH)),
		allow(`chroot`, with(unix.CAP_SYS_CHROOT)),
		allow(`reboot`, with(unix.CAP_SYS_BOOT)),
		allow(`acct`, with(unix.CAP_SYS_PACCT)),
		allow(`vhangup`, with(unix.CAP_SYS_TTY_CONFIG)),
		allow(`syslog`, with(unix.CAP_SYSLOG)),
		allow(`bpf`, with(unix.CAP_BPF)),
		allow(`perf_event_open`, with(unix.CAP_PERFMON)),
	}
}

// newNamespaces are the flags of clone that make namespaces. CLONE_NEWTIME is
// not among them: its bit is part of the exit signal in clone.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// namespaceFlags keep containers from making namespaces, user namespaces above
// all: root in one of those reaches much more of the kernel (CVE-2022-0185,
// CVE-2024-1086). The flags of clone3 lie in memory and cannot be seen; ENOSYS
// makes libraries fall back to clone, where EPERM would make them give up.
func namespaceFlags() []Rule {
	return []Rule{
		{
			Names: []string{"clone"}, Action: Allow,
			Args:   []Arg{{Index: 0, Op: MaskedEqual, Mask: newNamespaces, Value: 0}},
			Unless: Unless{Caps: caps.Of(unix.CAP_SYS_ADMIN)},
		},
		{
			Names: []string{"clone3"}, Action: Errno(unix.ENOSYS),
			Unless: Unless{Caps: caps.Of(unix.CAP_SYS_ADMIN)},
		},
	}
}

func allow(names string, condition If) Rule {
	return Rule{Names: strings.Fields(names), Action: Allow, If: condition}
}

func allowArg(name string, arg Arg) Rule {
	return Rule{Names: []string{name}, Action: Allow, Args: []Arg{arg}}
}

func with(c caps.Cap) If { return If{Caps: caps.Of(c)} }
