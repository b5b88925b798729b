package netlink

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// WatchDeleted calls gone with the name of every link that is deleted from the
// namespace of the calling thread, until ctx is done; then it returns nil. With
// an empty name it says that events were lost, and any link may be gone.
func WatchDeleted(ctx context.Context, gone func(name string)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("socket netlink", err)
	}
	f := os.NewFile(uintptr(fd), "netlink")
	defer f.Close()
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
						gone(l.Name)
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
			gone("")
		case got != nil:
			return got
		}
	}
	return nil
}
