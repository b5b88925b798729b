package daemon

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/hashicorp/go-hclog"

	"berth/internal/account"
)

// Numbers of include/uapi/linux/prctl.h and capability.h.
const (
	prSetDumpable   = 4
	prSetKeepCaps   = 8
	prCapBSetRead   = 23
	prCapBSetDrop   = 24
	prSetNoNewPrivs = 38
	prCapAmbient    = 47
	ambientRaise    = 2

	capVersion3 = 0x20080522
	capSetPCap  = 8
)

// capabilityNames by number, as of Linux 6.18.
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

type capHeader struct {
	version uint32
	pid     int32
}

type capData [2]struct{ effective, permitted, inheritable uint32 }

func (d *capData) effectiveMask() uint64 { return uint64(d[0].effective) | uint64(d[1].effective)<<32 }
func (d *capData) permittedMask() uint64 { return uint64(d[0].permitted) | uint64(d[1].permitted)<<32 }

func (d *capData) set(effective, permitted, inheritable uint64) {
	for i := range d {
		shift := 32 * i
		d[i].effective = uint32(effective >> shift)
		d[i].permitted = uint32(permitted >> shift)
		d[i].inheritable = uint32(inheritable >> shift)
	}
}

// dropPrivileges makes every thread of the process what Spec says. A process
// not started as root, by systemd's User=, is there already.
func dropPrivileges(spec Spec, id account.ID) error {
	if os.Geteuid() != 0 {
		return nil
	}
	have, err := capGet()
	if err != nil {
		return err
	}
	var keep uint64
	if spec.User == "" {
		lose, err := capMask(spec.Lose)
		if err != nil {
			return err
		}
		keep = have.permittedMask() &^ lose
	} else {
		if keep, err = capMask(spec.Keep); err != nil {
			return err
		}
		if missing := keep &^ have.permittedMask(); missing != 0 {
			return fmt.Errorf("started without the capabilities %s", capText(missing))
		}
	}
	if err := boundTo(keep, have.effectiveMask()); err != nil {
		return err
	}
	var inheritable uint64
	if spec.User != "" {
		if err := becomeUser(spec.User, id); err != nil {
			return err
		}
		if spec.HandOn {
			inheritable = keep
		}
	}
	var want capData
	want.set(keep, keep, inheritable)
	header := capHeader{version: capVersion3}
	if err := allThreads("capset", syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&want)), 0); err != nil {
		return err
	}
	if spec.User == "" {
		return nil
	}
	if spec.HandOn {
		for c := range capabilityNames {
			if keep&(1<<c) == 0 {
				continue
			}
			// Linux 4.3; before it programs we execute get no capabilities,
			// which their starter must then notice.
			if err := allThreads("prctl(PR_CAP_AMBIENT)", syscall.SYS_PRCTL, prCapAmbient, ambientRaise, uintptr(c)); err == syscall.EINVAL {
				break
			} else if err != nil {
				return err
			}
		}
	}
	// Linux 3.5.
	return allThreads("prctl(PR_SET_NO_NEW_PRIVS)", syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0)
}

// boundTo removes from the bounding set what is not in keep.
func boundTo(keep, effective uint64) error {
	if effective&(1<<capSetPCap) == 0 {
		return nil // whoever took SETPCAP from us has bounded us
	}
	for c := uintptr(0); c < 64; c++ {
		if keep&(1<<c) != 0 {
			continue
		}
		in, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prCapBSetRead, c, 0)
		if errno != 0 {
			return nil // beyond the kernel's last capability
		}
		if in == 0 {
			continue
		}
		if err := allThreads("prctl(PR_CAPBSET_DROP)", syscall.SYS_PRCTL, prCapBSetDrop, c, 0); err != nil {
			return err
		}
	}
	return nil
}

// becomeUser changes ids and keeps the permitted set across the change.
func becomeUser(name string, id account.ID) error {
	if err := allThreads("prctl(PR_SET_KEEPCAPS)", syscall.SYS_PRCTL, prSetKeepCaps, 1, 0); err != nil {
		return err
	}
	// The syscall package changes all threads.
	if err := syscall.Setgroups(id.Groups); err != nil {
		return fmt.Errorf("become %s: %w", name, os.NewSyscallError("setgroups", err))
	}
	if err := syscall.Setresgid(id.GID, id.GID, id.GID); err != nil {
		return fmt.Errorf("become %s: %w", name, os.NewSyscallError("setresgid", err))
	}
	if err := syscall.Setresuid(id.UID, id.UID, id.UID); err != nil {
		return fmt.Errorf("become %s: %w", name, os.NewSyscallError("setresuid", err))
	}
	// Changing ids gave /proc/self to root (proc(5), "dumpable"), and with it
	// /proc/self/fd, which we open paths through. Who may trace us after this
	// has our uid and at least our capabilities.
	if err := allThreads("prctl(PR_SET_DUMPABLE)", syscall.SYS_PRCTL, prSetDumpable, 1, 0); err != nil {
		return err
	}
	os.Unsetenv("HOME")
	os.Unsetenv("USER")
	os.Unsetenv("LOGNAME")
	return nil
}

// allThreads makes one raw system call on every thread: credentials belong to
// threads, and a goroutine runs on any of them. It needs a binary without cgo.
func allThreads(name string, trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		if errno == syscall.EINVAL {
			return errno
		}
		return os.NewSyscallError(name, errno)
	}
	return nil
}

func capGet() (capData, error) {
	var d capData
	header := capHeader{version: capVersion3}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CAPGET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&d)), 0); errno != 0 {
		return d, os.NewSyscallError("capget", errno)
	}
	return d, nil
}

func capMask(names []string) (mask uint64, err error) {
	for _, n := range names {
		c := slices.Index(capabilityNames, strings.TrimPrefix(n, "CAP_"))
		if c < 0 {
			return 0, fmt.Errorf("no capability is called %q", n)
		}
		mask |= 1 << c
	}
	return mask, nil
}

func capText(mask uint64) string {
	var names []string
	for c, n := range capabilityNames {
		if mask&(1<<c) != 0 {
			names = append(names, n)
		}
	}
	return strings.Join(names, " ")
}

const (
	wantFiles = 1 << 20
	fewFiles  = 1 << 14
	// tableSize is how many descriptors the kernel's table has room for from
	// the start. Growing it later waits for an RCU grace period, 5-20 ms, in
	// the middle of somebody's request (fs/file.c, expand_fdtable).
	tableSize = 4096
)

// raiseLimits gets as many descriptors as allowed. The soft limit is at the
// hard one already: the Go runtime does that.
func raiseLimits(log hclog.Logger) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return
	}
	if limit.Max < wantFiles {
		raised := syscall.Rlimit{Cur: wantFiles, Max: wantFiles}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) == nil {
			limit = raised
		} else if limit.Max < fewFiles {
			log.Warn("few file descriptors allowed: many containers at once will be refused", "limit", limit.Max, "wanted", wantFiles)
		}
	}
	at := uintptr(min(tableSize, limit.Max) - 1)
	// On the descriptor 0, which any daemon has.
	if fd, _, errno := syscall.RawSyscall(syscall.SYS_FCNTL, 0, syscall.F_DUPFD_CLOEXEC, at); errno == 0 {
		syscall.Close(int(fd))
	}
}
