// Package ns names the namespaces of Linux and enters them.
//
// A namespace is held by a descriptor: of a file in /proc/PID/ns, of a bind
// mount of one, or of a process (pidfd, Linux 5.8). While a descriptor is open
// the namespace lives, and when the last one closes it may go; nothing has to
// be removed from a disk. Prefer descriptors to paths.
//
// Entering a namespace changes the calling thread, not the process. A
// goroutine that enters one locks its thread first and, unless it has brought
// the old namespace back, ends without unlocking, so that the runtime throws
// the thread away. Two kinds do not change the calling thread at all: [PID]
// and [Time] take effect for the children it makes. And [User] is refused by
// the kernel to a process with several threads, which every Go program is.
//
// Sources: namespaces(7), setns(2), and the man page of each kind.
package ns

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

// Kind is a kind of namespace.
type Kind string

// The kinds, with the Linux version that brought each.
const (
	Mount  Kind = "mnt"    // 2.4.19
	UTS    Kind = "uts"    // 2.6.19
	IPC    Kind = "ipc"    // 2.6.19
	PID    Kind = "pid"    // 2.6.24
	Net    Kind = "net"    // 2.6.29
	User   Kind = "user"   // 3.8
	Cgroup Kind = "cgroup" // 4.6
	Time   Kind = "time"   // 5.6
)

// Kinds lists every kind, in the order in which a process has to join them:
// User first, because it grants the right to the others; Mount last, because
// after it the paths of this host are gone.
func Kinds() []Kind { return []Kind{User, Cgroup, IPC, UTS, Net, PID, Time, Mount} }

// ErrUnknown is the error for a Kind that is none of the constants.
var ErrUnknown = errors.New("unknown kind of namespace")

// Flag is the CLONE_NEW… constant of the kind, 0 for an unknown kind.
func (k Kind) Flag() uintptr {
	switch k {
	case Mount:
		return unix.CLONE_NEWNS
	case UTS:
		return unix.CLONE_NEWUTS
	case IPC:
		return unix.CLONE_NEWIPC
	case PID:
		return unix.CLONE_NEWPID
	case Net:
		return unix.CLONE_NEWNET
	case User:
		return unix.CLONE_NEWUSER
	case Cgroup:
		return unix.CLONE_NEWCGROUP
	case Time:
		return unix.CLONE_NEWTIME
	}
	return 0
}

// Path is the file that stands for a process's namespace of this kind.
func (k Kind) Path(pid int) string {
	return "/proc/" + strconv.Itoa(pid) + "/ns/" + string(k)
}

// Supported reports whether the kernel has the kind.
func (k Kind) Supported() bool {
	return unix.Access("/proc/self/ns/"+string(k), unix.F_OK) == nil
}

// Open opens the namespace that a process is in. The caller closes the
// descriptor. The pid must be held by the caller (a child not yet reaped, or
// a pidfd that is still alive after the call), else it may be another's.
func Open(pid int, k Kind) (int, error) {
	return OpenPath(k.Path(pid))
}

// OpenPath opens a namespace by a path: /proc/PID/ns/KIND or a bind mount of
// it.
func OpenPath(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// Enter moves the calling thread, which must be locked, into the namespace
// that fd holds. EINVAL if fd is not of this kind.
//
// To enter a mount namespace a thread must not share its working directory
// and root with others; Enter unshares them first. It also stays at the root
// directory of the new namespace afterwards.
func Enter(fd int, k Kind) error {
	flag := k.Flag()
	if flag == 0 {
		return ErrUnknown
	}
	if k == Mount {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
	}
	return unix.Setns(fd, int(flag))
}

// ID identifies a namespace while it lives: two descriptors hold the same
// namespace exactly if their IDs are equal.
type ID struct{ Dev, Ino uint64 }

// Identify tells which namespace fd holds.
func Identify(fd int) (ID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return ID{}, err
	}
	return ID{uint64(st.Dev), st.Ino}, nil
}
