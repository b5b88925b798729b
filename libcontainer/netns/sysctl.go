package netns

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// parameterTree is a procfs through which the parameters of namespaces are set.
//
// The kernel keeps the path names it has seen below /proc/sys/net once for each
// namespace, all in one list: with a thousand containers on the host, looking up
// /proc/sys/net/ipv4 means walking past a thousand others of the same name, and
// setting four parameters takes a millisecond instead of 40 µs. So this is a
// procfs of our own (Linux 5.8; before, all of them share their names), mounted
// nowhere, and given up after a while with all the names that it has gathered.
type parameterTree struct {
	fd   int
	used int // namespaces
}

// renewAfter so many namespaces: the procfs is made anew, which takes some 50 µs.
const renewAfter = 64

// kernelParameters belongs to the [traveller].
var kernelParameters = parameterTree{fd: -1}

// borrow returns the tree, for the parameters of one more namespace.
func (t *parameterTree) borrow() (*parameterTree, error) {
	if t.fd >= 0 && t.used < renewAfter {
		t.used++
		return t, nil
	}
	if t.fd >= 0 {
		go unix.Close(t.fd) // taking it down waits for RCU
	}
	t.used = 1
	var err error
	if t.fd, err = mountDetached("proc"); err != nil { // Linux 5.2
		t.fd, err = unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	return t, os.NewSyscallError("open /proc", err)
}

// mountDetached returns a descriptor of a new file system of a kind that needs
// no device. Only who has the descriptor can see it.
func mountDetached(kind string) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// set writes a parameter of the calling thread's namespace. A parameter this
// kernel does not have (IPv6 compiled out, ip_unprivileged_port_start before
// Linux 4.11) is passed over.
func (t *parameterTree) set(s Sysctl) error {
	rest, ok := strings.CutPrefix(s.Name, "net.")
	if !ok || strings.Contains(rest, "..") {
		return fmt.Errorf("sysctl %q does not belong to a network namespace", s.Name)
	}
	if !strings.Contains(rest, "/") {
		rest = strings.ReplaceAll(rest, ".", "/")
	}
	fd, err := unix.Openat(t.fd, "sys/net/"+rest, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s: %w", s.Name, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(s.Value)); err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w", s.Name, s.Value, err)
	}
	return nil
}
