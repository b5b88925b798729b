package netlink

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Deletion is news of a link.
type Deletion struct {
	Name     string // empty: news was lost, and any link may be gone
	FromPort bool   // it is there, and no longer a port of its bridge
}

// WatchDeleted calls gone for every link that is deleted from the namespace of
// the calling thread, or leaves its bridge, until ctx is done; then it returns
// nil.
func WatchDeleted(ctx context.Context, gone func(Deletion)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("socket netlink", err)
	}
	f := os.NewFile(uintptr(fd), "netlink")
	defer f.Close()
	if err := onlyDeletions(fd); err != nil {
		return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		return os.NewSyscallError("bind netlink", err)
	}
	events, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Now()) })
	defer stop()
	conn := &Conn{fd: fd, recv: make([]byte, 32<<10)}
	for ctx.Err() == nil {
		var got error
		err := events.Read(func(uintptr) bool {
			got = conn.receive(func(m message) error {
				if m.kind == unix.RTM_DELLINK {
					if l, ok := parseLink(m.body); ok {
						gone(Deletion{Name: l.Name, FromPort: m.body[0] == unix.AF_BRIDGE})
					}
				}
				return nil
			})
			return !errors.Is(got, unix.EAGAIN)
		})
		switch {
		case ctx.Err() != nil:
		case err != nil:
			return err
		case errors.Is(got, unix.ENOBUFS):
			gone(Deletion{})
		case got != nil:
			return got
		}
	}
	return nil
}

// onlyDeletions has the kernel keep all else from a socket: a slot that is made
// is news a dozen times, and each would wake its reader. Link news come as one
// message a datagram.
func onlyDeletions(fd int) error {
	const typeAt = 4 // nlmsg_type in struct nlmsghdr
	kind := native.AppendUint16(nil, unix.RTM_DELLINK)
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: typeAt}, // read as big-endian
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(binary.BigEndian.Uint16(kind)), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: ^uint32(0)},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}
