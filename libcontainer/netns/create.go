package netns

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"berth/libcontainer/netlink"
)

// Sysctl is one kernel parameter below net., by its dotted name. Where a
// component of the name holds a dot itself (an interface "eth0.5"), use
// slashes throughout.
type Sysctl struct{ Name, Value string }

// Defaults are the parameters of every new namespace. They are set before the
// first interface is born, so that no router solicitation and no link-local
// address ever shows up on an IPv4-only network. lo keeps ::1.
var Defaults = []Sysctl{
	{"net.ipv6.conf.default.disable_ipv6", "1"},
	{"net.ipv6.conf.default.accept_ra", "0"},
	{"net.ipv6.conf.all.accept_ra", "0"},
	{"net.ipv4.ip_unprivileged_port_start", "0"},
	{"net.ipv4.ping_group_range", "0 2147483647"},
}

// lo has index 1 in every namespace (net/core/dev.c, LOOPBACK_IFINDEX).
const loIndex = 1

// create makes a namespace with lo up and the given parameters, and returns
// descriptors of it and of an rtnetlink socket inside.
func create(sysctls []Sysctl) (ns *os.File, socket int, err error) {
	onThread(func() {
		var handle netns.NsHandle
		if handle, err = netns.New(); err != nil {
			err = os.NewSyscallError("unshare network namespace", err)
			return
		}
		ns = os.NewFile(uintptr(handle), "net namespace")
		for _, s := range sysctls {
			if err = set(s); err != nil {
				return
			}
		}
		socket, err = netlink.Socket()
	})
	if err != nil {
		if ns != nil {
			ns.Close()
		}
		return nil, -1, err
	}
	conn, err := borrow(socket)
	if err != nil {
		ns.Close()
		unix.Close(socket)
		return nil, -1, err
	}
	defer conn.Close()
	var up netlink.Batch
	up.SetUp(loIndex)
	if err := conn.Do(&up); err != nil {
		ns.Close()
		unix.Close(socket)
		return nil, -1, err
	}
	return ns, socket, nil
}

// openInside opens an rtnetlink socket inside an existing namespace.
func openInside(ns *os.File) (socket int, err error) {
	onThread(func() {
		if err = netns.Set(netns.NsHandle(ns.Fd())); err != nil {
			err = os.NewSyscallError("setns", err)
			return
		}
		socket, err = netlink.Socket()
	})
	return socket, err
}

// onThread runs fn on a thread of its own that dies afterwards, so that no
// other goroutine can ever find itself in the namespace fn left it in. The
// process's first thread cannot die without taking /proc/self with it; if the
// scheduler offers that one, it is held while another is taken.
func onThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked on a thread that fn ran on
		if unix.Gettid() == unix.Getpid() {
			onThread(fn)
			runtime.UnlockOSThread()
			return
		}
		fn()
	}()
	<-done
}

// Current opens the network namespace of the calling thread, which the caller
// has locked.
func Current() (*os.File, error) {
	// Not thread-self, which is as young as Linux 3.17.
	return os.Open("/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/ns/net")
}

// set writes a parameter of the calling thread's namespace. A parameter this
// kernel does not have (IPv6 compiled out, ip_unprivileged_port_start before
// Linux 4.11) is passed over.
func set(s Sysctl) error {
	rest, ok := strings.CutPrefix(s.Name, "net.")
	if !ok || strings.Contains(rest, "..") {
		return fmt.Errorf("sysctl %q does not belong to a network namespace", s.Name)
	}
	if !strings.Contains(rest, "/") {
		rest = strings.ReplaceAll(rest, ".", "/")
	}
	f, err := os.OpenFile("/proc/sys/net/"+rest, os.O_WRONLY, 0)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s: %w", s.Name, err)
	}
	defer f.Close()
	if _, err := f.WriteString(s.Value); err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w", s.Name, s.Value, err)
	}
	return nil
}

// borrow makes a Conn of a duplicate, so that closing it leaves socket open.
func borrow(socket int) (*netlink.Conn, error) {
	fd, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return netlink.NewConn(fd), nil
}
