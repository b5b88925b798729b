// Command probe stands in for berth-unpack: it shuts itself in exactly as that
// does, then tries all that one that was taken over by its archive would like to
// do, and writes what it got away with.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/libcontainer/sandbox"
	"berth/services/imaged/worker/inside"
	"berth/services/imaged/worker/wire"
)

func main() {
	if err := sandbox.CloseFrom(wire.Archive + 1); err != nil {
		fail(err)
	}
	q, err := wire.ReadRequest(os.Stdin)
	if err != nil {
		fail(err)
	}
	dir := os.NewFile(wire.Dir, "layer")
	if _, err := inside.Enter(dir, q); err != nil {
		fail(err)
	}
	var done []string
	for name, try := range attempts {
		if err := try(); err == nil {
			done = append(done, name)
		}
	}
	for _, err := range must() {
		done = append(done, err.Error())
	}
	if len(done) > 0 {
		fail(errors.New(strings.Join(done, "; ")))
	}
	io.Copy(io.Discard, os.NewFile(wire.Archive, "archive"))
	wire.WriteReply(os.Stdout, wire.Reply{DiffID: "sha256:" + strings.Repeat("0", 64)})
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func raw(trap, a, b, c uintptr) error {
	if _, _, errno := unix.RawSyscall6(trap, a, b, c, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func socket(family, kind int) func() error {
	return func() error { _, err := unix.Socket(family, kind, 0); return err }
}

func open(path string) func() error {
	return func() error { _, err := unix.Openat(wire.Dir, path, unix.O_RDONLY, 0); return err }
}

var cstring, _ = unix.BytePtrFromString("/proc/self/exe")

// attempts must all fail.
var attempts = map[string]func() error{
	"TCP socket":     socket(unix.AF_INET, unix.SOCK_STREAM),
	"UDP socket":     socket(unix.AF_INET6, unix.SOCK_DGRAM),
	"unix socket":    socket(unix.AF_UNIX, unix.SOCK_STREAM),
	"netlink socket": socket(unix.AF_NETLINK, unix.SOCK_RAW),
	"packet socket":  socket(unix.AF_PACKET, unix.SOCK_RAW),
	"socket pair":    func() error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },

	"open /etc/passwd":                  open("/etc/passwd"),
	"open /etc/passwd by a dotted name": open(strings.Repeat("../", 30) + "etc/passwd"),
	"open /proc":                        open("/proc"),
	"list what is above": func() error {
		fd, err := unix.Openat(wire.Dir, "..", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var here, above unix.Stat_t
		unix.Fstat(wire.Dir, &here)
		unix.Fstat(fd, &above)
		if here.Ino == above.Ino && here.Dev == above.Dev {
			return unix.EPERM // ".." of the root is the root
		}
		return nil
	},
	"write the archive":   func() error { _, err := unix.Write(wire.Archive, []byte("x")); return err },
	"chroot":              func() error { return unix.Chroot(".") },
	"mount":               func() error { return unix.Mount("none", "/", "tmpfs", 0, "") },
	"unshare":             func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
	"trace its parent":    func() error { return unix.PtraceAttach(1) },
	"signal its parent":   func() error { return raw(unix.SYS_KILL, uintptr(os.Getppid()), 0, 0) },
	"signal by tgkill":    func() error { return raw(unix.SYS_TGKILL, uintptr(os.Getpid()), uintptr(unix.Gettid()), 0) },
	"open a process":      func() error { return raw(unix.SYS_PIDFD_OPEN, uintptr(os.Getpid()), 0, 0) },
	"read memory":         func() error { return raw(unix.SYS_PROCESS_VM_READV, uintptr(os.Getppid()), 0, 0) },
	"execute":             func() error { return raw(unix.SYS_EXECVE, uintptr(unsafe.Pointer(cstring)), 0, 0) },
	"fork":                func() error { return raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0) },
	"clone3":              func() error { return raw(unix.SYS_CLONE3, 0, 0, 0) },
	"become root":         func() error { return raw(unix.SYS_SETRESUID, 0, 0, 0) },
	"regain capabilities": func() error { return raw(unix.SYS_CAPSET, 0, 0, 0) },
	"become dumpable":     func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) },
	"raise a limit":       func() error { return syscall.Setrlimit(unix.RLIMIT_CORE, &syscall.Rlimit{}) },
	"io_uring":            func() error { return raw(unix.SYS_IO_URING_SETUP, 1, 0, 0) },
	"bpf":                 func() error { return raw(unix.SYS_BPF, 0, 0, 0) },
	"keyring":             func() error { return raw(unix.SYS_KEYCTL, 0, 0, 0) },
	"memfd":               func() error { _, err := unix.MemfdCreate("x", 0); return err },
	"open by handle":      func() error { return raw(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(wire.Dir), 0, 0) },
	"executable memory": func() error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		return err
	},
}

// must is what has to work all the same, and what has to be so.
func must() (bad []error) {
	if fd, err := unix.Openat(wire.Dir, "made", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600); err != nil {
		bad = append(bad, fmt.Errorf("cannot make a file: %w", err))
	} else {
		unix.Close(fd)
	}
	if err := unix.Mknodat(wire.Dir, "device", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		bad = append(bad, fmt.Errorf("cannot make a device: %w", err))
	}
	for fd := 5; fd < 64; fd++ {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT != 0 {
			bad = append(bad, fmt.Errorf("descriptor %d is open, mode %o", fd, st.Mode))
		}
	}
	return bad
}
