// Package landlock takes away from the calling process what it may do with files by their names, except below one
// directory (landlock(7)).
//
// The kernel keeps such a restriction beside all others: a process may still do only what its user, its capabilities and
// the file's mode allow, and nothing but that below the directory. Descriptors that are open stay usable. There is no
// way back, and what the process starts inherits it.
//
// Not for: rules for several directories or ports. One is all that the engine has need of.
package landlock

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Least is the version that [Confine] needs: the first one (Linux 5.13) knows no
// way to allow hard links between directories, the second (Linux 5.19) does.
const Least = 2

// Version is that of the running kernel's Landlock, 0 if it has none or it is
// switched off.
func Version() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 { // ENOSYS, EOPNOTSUPP; EPERM by a seccomp filter around us
		return 0
	}
	return int(v)
}

// ErrUnsupported is the answer of kernels whose Landlock is missing, switched
// off or older than [Least].
var ErrUnsupported = errors.New("the kernel has no Landlock of version 2 or later")

// files are the rights to files, by the version that brought them; a kernel
// refuses rights it does not know.
var files = []struct {
	version int
	rights  uint64
}{
	{1, unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM},
	{2, unix.LANDLOCK_ACCESS_FS_REFER},
	{3, unix.LANDLOCK_ACCESS_FS_TRUNCATE},
	{5, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
}

// below is what stays allowed below the directory: making, writing, reading and
// removing files of all kinds, but not executing them, nor talking to devices.
const below = ^uint64(unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV)

// Confine leaves all threads of the process nothing of the file system but what
// is below dir, and, as far as the kernel's version knows how, neither TCP ports
// nor signals and abstract sockets of other processes. The process needs
// no_new_privs or CAP_SYS_ADMIN, and must be built without cgo.
func Confine(dir *os.File) error {
	version := Version()
	if version < Least {
		return ErrUnsupported
	}
	var attr unix.LandlockRulesetAttr
	for _, f := range files {
		if version >= f.version {
			attr.Handled_access_fs |= f.rights
		}
	}
	size := unsafe.Offsetof(attr.Handled_access_net)
	if version >= 4 {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
		size = unsafe.Offsetof(attr.Scoped)
	}
	if version >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		size = unsafe.Offsetof(attr.Quiet_access_fs)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return os.NewSyscallError("landlock_create_ruleset", errno)
	}
	defer unix.Close(int(fd))
	rule := unix.LandlockPathBeneathAttr{Allowed_access: attr.Handled_access_fs & below, Parent_fd: int32(dir.Fd())}
	_, _, errno = unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("allow %s: %w", dir.Name(), os.NewSyscallError("landlock_add_rule", errno))
	}
	// The kernel's own way to restrict all threads is younger (Linux 7.0).
	if _, _, errno = syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return os.NewSyscallError("landlock_restrict_self", errno)
	}
	return nil
}
