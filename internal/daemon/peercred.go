package daemon

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"berth/internal/account"
	"berth/internal/fault"
)

// Peer is who is at the other end of a socket, as the kernel noted at connect
// time (unix(7), SO_PEERCRED). PID is for logs: its process may be gone and the
// number reused.
type Peer struct {
	PID    int
	UID    int
	GID    int
	Groups []int // supplementary
}

// AuthType makes Peer a credentials.AuthInfo.
func (Peer) AuthType() string { return "peercred" }

// InGroup reports whether gid is among the peer's groups.
func (p Peer) InGroup(gid int) bool { return p.GID == gid || slices.Contains(p.Groups, gid) }

// PeerOf is the caller of the RPC that ctx belongs to.
func PeerOf(ctx context.Context) (Peer, bool) {
	if p, ok := peer.FromContext(ctx); ok {
		who, ok := p.AuthInfo.(Peer)
		return who, ok
	}
	return Peer{}, false
}

// Rule decides who may call. It runs for every call, and looks at Peer alone.
type Rule func(Peer) error

// AllowPeople admits root and the members of the group berth.
func AllowPeople() Rule {
	return func(p Peer) error {
		if p.UID == 0 {
			return nil
		}
		gid, err := account.Group(account.People)
		if err == nil && p.InGroup(gid) {
			return nil
		}
		return fault.PermissionDenied.Errorf("CALLER_NOT_ALLOWED", "user %s may not use the engine", userName(p.UID)).
			With("uid", strconv.Itoa(p.UID)).
			Hint("run as root, or join the group %s (which is equivalent to root): usermod -aG %[1]s %[2]s", account.People, userName(p.UID))
	}
}

// AllowEngine admits root and the engine's own users.
func AllowEngine() Rule {
	allowed := []int{0, os.Geteuid()}
	for _, name := range account.Users {
		if id, err := account.User(name); err == nil {
			allowed = append(allowed, id.UID)
		}
	}
	return func(p Peer) error {
		if slices.Contains(allowed, p.UID) {
			return nil
		}
		return fault.PermissionDenied.Errorf("CALLER_NOT_ALLOWED", "user %s is not one of the engine's own", userName(p.UID)).
			With("uid", strconv.Itoa(p.UID)).
			Hint("use %s instead", ApidSocket)
	}
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// peerCredentials is the transport security of a unix socket: the kernel says
// who is there. It refuses nobody; a refused handshake would reach the client
// as a mere closed connection, so a Rule refuses the call, in words.
type peerCredentials struct{}

func (peerCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("peer credentials of a %T", c)
	}
	p, err := readPeer(uc)
	return c, p, err
}

func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fmt.Errorf("peer credentials are for servers")
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }
func (peerCredentials) OverrideServerName(string) error           { return nil }

func readPeer(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var p Peer
	var callErr error
	err = raw.Control(func(fd uintptr) {
		var cred *syscall.Ucred
		if cred, callErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); callErr != nil {
			return
		}
		p = Peer{PID: int(cred.Pid), UID: int(cred.Uid), GID: int(cred.Gid)}
		p.Groups, callErr = peerGroups(fd)
	})
	if err == nil {
		err = callErr
	}
	if err == syscall.ENOPROTOOPT {
		// Linux before 4.13 does not tell; the user's groups of record are
		// the next best, for the socket's mode has let the peer connect.
		p.Groups, err = recordedGroups(p.UID), nil
	}
	return p, err
}

// peerGroups asks for SO_PEERGROUPS (Linux 4.13), for which neither syscall nor
// x/sys/unix has a function.
func peerGroups(fd uintptr) ([]int, error) {
	const soPeerGroups = 59
	buf := make([]byte, 4*64)
	for {
		size := uint32(len(buf))
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.SOL_SOCKET, soPeerGroups,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == syscall.ERANGE && int(size) > len(buf):
			buf = make([]byte, size)
		case errno != 0:
			return nil, errno
		default:
			var groups []int
			for ; size >= 4; size -= 4 {
				groups = append(groups, int(binary.NativeEndian.Uint32(buf[size-4:])))
			}
			return groups, nil
		}
	}
}

func recordedGroups(uid int) []int {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return nil
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil
	}
	var groups []int
	for _, s := range ids {
		if n, err := strconv.Atoi(s); err == nil {
			groups = append(groups, n)
		}
	}
	return groups
}
