package firewall

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
)

// socket is a lasting connection to nftables. It lasts because closing one makes
// the kernel wait, with the lock of nftables held, until elements deleted before
// are out of use: some 20 ms (nft_rcv_nl_event in Linux).
//
// The library counts answers, so an exchange that went wrong would be taken for
// the next one's: after an error the connection is replaced.
type socket struct {
	*nftables.Conn
	raw   *netlink.Conn
	netns int
}

const (
	// A transaction is one sendmsg(2): 10,000 published ports are some 600 KiB.
	sendBuffer = 16 << 20
	// With rules come echoes of them, which must all fit before they are read.
	receiveBuffer = 4 << 20
	// patience with the kernel, which answers before sendmsg returns.
	patience = 5 * time.Second
)

func openSocket(netns int) (*socket, error) {
	s := &socket{netns: netns}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(netns), nftables.WithSockOptions(func(c *netlink.Conn) error {
		s.raw = c
		if err := c.SetWriteBuffer(sendBuffer); err != nil {
			return err
		}
		return c.SetReadBuffer(receiveBuffer)
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	s.Conn = conn
	return s, nil
}

// exchange runs work on the connection, and replaces it if that fails.
func (s *socket) exchange(work func() error) error {
	s.raw.SetReadDeadline(time.Now().Add(patience))
	err := work()
	if err == nil {
		return nil
	}
	s.Conn.CloseLasting()
	if fresh, openErr := openSocket(s.netns); openErr == nil {
		*s = *fresh
	}
	return err
}

// portID is the socket's address (netlink(7)).
func (s *socket) portID() (id uint32, err error) {
	raw, err := s.raw.SyscallConn()
	if err != nil {
		return 0, err
	}
	var address syscall.Sockaddr
	ctlErr := raw.Control(func(fd uintptr) { address, err = syscall.Getsockname(int(fd)) })
	if err = errors.Join(ctlErr, err); err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	n, ok := address.(*syscall.SockaddrNetlink)
	if !ok {
		return 0, fmt.Errorf("its family is not netlink: %T", address)
	}
	return n.Pid, nil
}
