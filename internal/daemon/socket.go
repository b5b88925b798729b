package daemon

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"berth/internal/account"
)

// Socket is one the daemon listens on.
type Socket struct {
	Name string // below the run directory
	Type string // "unix" (the default) or "unixpacket"
}

// group that may connect. All sockets but apid's are the engine's own affair,
// and stand in a directory only its users enter.
func (s Socket) group() string {
	if s.Name == ApidSocket {
		return account.People
	}
	return account.Engine
}

// openSockets takes each socket from whoever started us (LISTEN_FDS, see
// sd_listen_fds(3): systemd or "berth up", which keep them open while we
// restart) or binds it.
func openSockets(run string, sockets []Socket) (map[string]*net.UnixListener, error) {
	inherited, err := inheritedListeners()
	if err != nil {
		return nil, err
	}
	open := make(map[string]*net.UnixListener, len(sockets))
	for _, s := range sockets {
		path := filepath.Join(run, s.Name)
		if l := inherited[path]; l != nil {
			open[s.Name] = l
			continue
		}
		l, err := bind(path, s)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
		open[s.Name] = l
	}
	return open, nil
}

// bind needs the daemon's lock: whatever has the name now is a dead instance's.
func bind(path string, s Socket) (*net.UnixListener, error) {
	network := s.Type
	if network == "" {
		network = "unix"
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	// Between bind and chmod the socket has mode 0700, by our umask.
	l, err := net.ListenUnix(network, &net.UnixAddr{Net: network, Name: path})
	if err != nil {
		return nil, err
	}
	// The next instance replaces it; by then this one may not even be allowed
	// to remove it.
	l.SetUnlinkOnClose(false)
	if os.Geteuid() == 0 {
		gid, err := account.Group(s.group())
		if err == nil {
			err = os.Chown(path, 0, gid)
		}
		if err != nil {
			l.Close()
			return nil, err
		}
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// inheritedListeners are the listening sockets passed by LISTEN_FDS, by path.
func inheritedListeners() (map[string]*net.UnixListener, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	os.Unsetenv("LISTEN_PID")
	os.Unsetenv("LISTEN_FDS")
	os.Unsetenv("LISTEN_FDNAMES")
	// A starter that cannot know our pid before the exec leaves it out.
	if count == "" || (pid != "" && pid != strconv.Itoa(os.Getpid())) {
		return nil, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > 64 {
		return nil, fmt.Errorf("LISTEN_FDS=%q is not a number of descriptors", count)
	}
	const first = 3 // SD_LISTEN_FDS_START
	listeners := make(map[string]*net.UnixListener, n)
	for fd := first; fd < first+n; fd++ {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "LISTEN_FDS")
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("inherited descriptor %d: %w", fd, err)
		}
		ul, ok := l.(*net.UnixListener)
		if !ok {
			return nil, fmt.Errorf("inherited descriptor %d listens on %s, want a unix socket", fd, l.Addr())
		}
		ul.SetUnlinkOnClose(false)
		listeners[ul.Addr().String()] = ul
	}
	return listeners, nil
}

// notify tells the service manager (sd_notify(3)); without one it does nothing.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: path}) // "@" is abstract, as in sd_notify
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte(state))
}
