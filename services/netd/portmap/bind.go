package portmap

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// bind returns a socket that holds p and carries nothing.
func bind(p Port) (int, error) {
	kind := syscall.SOCK_STREAM
	if p.Protocol == UDP {
		kind = syscall.SOCK_DGRAM
	}
	fd, err := syscall.Socket(syscall.AF_INET, kind|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	hold := holdTCP
	if p.Protocol == UDP {
		hold = holdUDP
	}
	if err := hold(fd, &syscall.SockaddrInet4{Port: int(p.Number), Addr: p.IP.As4()}); err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

// holdTCP binds such that connections of an earlier listener still in TIME_WAIT
// do not matter (they would make a plain bind fail for a minute), but a live
// listener does, and so does any later one. SO_REUSEADDR at bind passes over
// TIME_WAIT; listening for a moment has the kernel check for other listeners
// and take note of this one; SO_REUSEADDR off again forbids others to share;
// shutdown ends the listening and leaves the port bound (inet_csk_get_port and
// tcp_disconnect in Linux). What connects meanwhile gets a reset.
func holdTCP(fd int, a syscall.Sockaddr) error {
	if err := reuse(fd, 1); err != nil {
		return err
	}
	if err := syscall.Bind(fd, a); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		return os.NewSyscallError("listen", err)
	}
	if err := reuse(fd, 0); err != nil {
		return err
	}
	return os.NewSyscallError("shutdown", syscall.Shutdown(fd, syscall.SHUT_RDWR))
}

// holdUDP binds. What reaches the socket in spite of the rules is not read; one
// packet's worth of it is kept.
func holdUDP(fd int, a syscall.Sockaddr) error {
	_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1) // the kernel's minimum
	return os.NewSyscallError("bind", syscall.Bind(fd, a))
}

func reuse(fd, on int) error {
	return os.NewSyscallError("setsockopt SO_REUSEADDR", syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, on))
}

// listener says who uses p on the host, as far as this process may know: the
// program by name if its descriptors are visible, else its user.
func listener(p Port) string {
	uid, inode, ok := socketOf(p)
	if !ok {
		return "another process"
	}
	if program := programOf(inode); program != "" {
		return program
	}
	if u, err := user.LookupId(uid); err == nil {
		return "a process of user " + u.Username
	}
	return "a process of user " + uid
}

// socketOf finds the socket bound to p in /proc/net (proc(5)), IPv6 sockets that
// take IPv4 connections included.
func socketOf(p Port) (uid, inode string, ok bool) {
	for _, file := range []string{string(p.Protocol), string(p.Protocol) + "6"} {
		f, err := os.Open("/proc/net/" + file)
		if err != nil {
			continue
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			// sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode
			w := strings.Fields(lines.Text())
			if len(w) < 10 || (p.Protocol == TCP && w[3] != "0A") { // TCP_LISTEN
				continue
			}
			if a, valid := hexAddress(w[1]); valid && a.Port() == p.Number &&
				(a.Addr() == p.IP || a.Addr().IsUnspecified() || p.IP.IsUnspecified()) {
				return w[7], w[9], true
			}
		}
	}
	return "", "", false
}

// hexAddress reads "0100007F:1F90": an address as a host-order word (four of
// them for IPv6), and a port.
func hexAddress(s string) (netip.AddrPort, bool) {
	text, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	if littleEndian {
		for word := range slices.Chunk(raw, 4) {
			slices.Reverse(word)
		}
	}
	a, ok := netip.AddrFromSlice(raw)
	var number uint16
	if n, _ := fmt.Sscanf(port, "%X", &number); !ok || n != 1 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Unmap(), number), true
}

// Both architectures supported, amd64 and arm64, are.
const littleEndian = true

// programOf finds the process that has the socket open: `nginx (pid 812)`.
func programOf(inode string) string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to == "socket:["+inode+"]" {
			dir := filepath.Dir(filepath.Dir(link))
			name, err := os.ReadFile(dir + "/comm")
			if err != nil {
				return ""
			}
			return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), filepath.Base(dir))
		}
	}
	return ""
}
