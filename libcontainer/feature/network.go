package feature

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func network() []probe {
	link := func(kind, lost string) probe {
		return probe{
			Feature{Name: kind, Since: "2.6.24", Lost: lost, Do: "Load the module: modprobe " + kind + "."},
			func(*host) (State, string) { return inNetwork(unix.NETLINK_ROUTE, newLink(kind)) },
		}
	}
	return []probe{
		link("veth", "Containers have no network but the host's, or none."),
		link("bridge", "Containers cannot be joined to a network of their own."),
		{
			Feature{Name: "nftables", Since: "3.13",
				Lost: "Ports cannot be published, nor networks kept apart.",
				Do:   "Load the module: modprobe nf_tables."},
			func(*host) (State, string) { return inNetwork(unix.NETLINK_NETFILTER, getGeneration()) },
		}, {
			Feature{Name: "/dev/net/tun", Since: "2.4",
				Lost: "Containers that ask for it (VPN software, user-mode networks) get none.",
				Do:   "Load the module: modprobe tun."},
			func(*host) (State, string) {
				fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err == nil {
					unix.Close(fd)
				}
				return verdict(err)
			},
		},
	}
}

// inNetwork sends one netlink request in a network namespace that dies with its thread, and reads the answer.
func inNetwork(protocol int, request []byte) (State, string) {
	return verdict(elsewhere(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		return roundTrip(protocol, request)
	}))
}

// roundTrip returns the error of a netlink acknowledgement; an answer of any other kind is a success.
func roundTrip(protocol int, request []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	timeout := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("send", err)
	}
	answer := make([]byte, 8192)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return os.NewSyscallError("recv", err)
	}
	if n < unix.SizeofNlMsghdr+4 {
		return fmt.Errorf("netlink answer of %d bytes", n)
	}
	if binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code < 0 {
		return os.NewSyscallError("netlink", unix.Errno(-code))
	}
	return nil
}

// newLink asks for an interface of a kind; the kernel picks its name, and that of a veth's peer. rtnetlink(7).
func newLink(kind string) []byte {
	payload := make([]byte, unix.SizeofIfInfomsg)
	payload = append(payload, attribute(unix.IFLA_LINKINFO, attribute(unix.IFLA_INFO_KIND, []byte(kind)))...)
	return message(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, payload)
}

// getGeneration asks nftables for the number of its rule set's generation: the smallest question it answers.
func getGeneration() []byte {
	return message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0, make([]byte, 4)) // struct nfgenmsg
}

// message puts the header, netlink(7), before a payload.
func message(kind, flags uint16, payload []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = append(b, 1, 0, 0, 0, 0, 0, 0, 0) // sequence number, and port: the kernel's
	return append(b, payload...)
}

// attribute is one attribute, padded to four bytes.
func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
