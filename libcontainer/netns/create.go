package netns

import (
	"os"
	"strconv"

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
// address ever shows up on an IPv4-only network; should somebody switch IPv6 on
// for one interface, it still believes no router. lo keeps ::1.
var Defaults = []Sysctl{
	{"net.ipv6.conf.default.disable_ipv6", "1"},
	{"net.ipv6.conf.default.accept_ra", "0"},
	{"net.ipv4.ip_unprivileged_port_start", "0"},
	{"net.ipv4.ping_group_range", "0 2147483647"},
}

// lo has index 1 in every namespace (net/core/dev.c, LOOPBACK_IFINDEX).
const loIndex = 1

// made is a new namespace: descriptors of it and of an rtnetlink socket inside.
type made struct {
	ns     *os.File
	socket int
}

func (m made) close() {
	if m.ns != nil {
		m.ns.Close()
	}
	if m.socket >= 0 {
		unix.Close(m.socket)
	}
}

// create makes n namespaces with lo up and the given parameters, all or none.
func create(n int, sysctls []Sysctl) (list []made, err error) {
	err = aside(func() error {
		for range n {
			m, err := createHere(sysctls)
			if err != nil {
				m.close()
				return err
			}
			list = append(list, m)
		}
		return nil
	})
	if err != nil {
		for _, m := range list {
			m.close()
		}
		return nil, err
	}
	return list, nil
}

// createHere makes one and leaves the calling thread in it. What it returns
// with an error is to be closed.
func createHere(sysctls []Sysctl) (m made, err error) {
	m.socket = -1
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return m, os.NewSyscallError("unshare network namespace", err)
	}
	if m.socket, err = netlink.Socket(); err != nil {
		return m, err
	}
	if m.ns, err = namespaceOf(m.socket); err != nil {
		return m, err
	}
	tree, err := kernelParameters.borrow()
	if err != nil {
		return m, err
	}
	for _, s := range sysctls {
		if err := tree.set(s); err != nil {
			return m, err
		}
	}
	conn := netlink.NewConn(m.socket)
	defer conn.Release()
	var up netlink.Batch
	up.SetUp(loIndex)
	return m, conn.Do(&up)
}

// namespaceOf opens the namespace of a socket that was just opened by the
// calling thread. Asking the socket (Linux 4.9) is cheaper than /proc, where the
// kernel first makes files for the thread.
func namespaceOf(socket int) (*os.File, error) {
	if fd, err := unix.IoctlRetInt(socket, unix.SIOCGSKNS); err == nil {
		return os.NewFile(uintptr(fd), "net namespace"), nil
	}
	return Current()
}

// openInside opens an rtnetlink socket inside an existing namespace.
func openInside(ns *os.File) (socket int, err error) {
	err = aside(func() (err error) {
		if err = netns.Set(netns.NsHandle(ns.Fd())); err != nil {
			return os.NewSyscallError("setns", err)
		}
		socket, err = netlink.Socket()
		return err
	})
	return socket, err
}

// Current opens the network namespace of the calling thread, which the caller
// has locked.
func Current() (*os.File, error) {
	// Not thread-self, which is as young as Linux 3.17.
	return os.Open("/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/ns/net")
}
