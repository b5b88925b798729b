package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Server holds network namespaces by id and makes new ones on request.
type Server struct {
	sysctls []Sysctl
	allow   func(uid uint32) bool

	mu   sync.Mutex
	held map[string]*os.File
}

// NewServer returns a server that gives every new namespace the given
// parameters (usually [Defaults]) and serves peers whose user id allow accepts;
// their capabilities are the kernel's business.
func NewServer(sysctls []Sysctl, allow func(uid uint32) bool) *Server {
	return &Server{sysctls: sysctls, allow: allow, held: map[string]*os.File{}}
}

// Get returns a duplicate, owned by the caller, of the descriptor held for id.
// The error unwraps to os.ErrNotExist if none is held.
func (s *Server) Get(id string) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.held[id]
	if f == nil {
		return nil, fmt.Errorf("network namespace %s: %w", id, os.ErrNotExist)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Adopt makes the server hold ns, which it takes over, under id: after a
// restart, the namespaces of running containers, from /proc/PID/ns/net. What
// was held under id before is closed.
func (s *Server) Adopt(id string, ns *os.File) error {
	if !validID(id) {
		ns.Close()
		return fmt.Errorf("namespace id %q is not valid", id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.held[id]; old != nil {
		old.Close()
	}
	s.held[id] = ns
	return nil
}

// Drop closes what is held for id. The namespace lives on while processes are
// in it. Dropping what is not held is no error.
func (s *Server) Drop(id string) {
	s.mu.Lock()
	f := s.held[id]
	delete(s.held, id)
	s.mu.Unlock()
	if f != nil {
		f.Close()
	}
}

// List returns the ids held, sorted.
func (s *Server) List() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.held))
	for id := range s.held {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Listen opens the SOCK_SEQPACKET socket for [Server.Serve] at path, replacing
// one left behind by a dead process.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
}

// Serve answers peers until the listener is closed, then returns nil. Peers
// that are not allowed are disconnected without a word.
func (s *Server) Serve(l *net.UnixListener) error {
	var peers sync.WaitGroup
	defer peers.Wait()
	var mu sync.Mutex
	open := map[*net.UnixConn]bool{}
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for c := range open {
			c.Close()
		}
	}()
	for {
		conn, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if uid, err := peerUID(conn); err != nil || !s.allow(uid) {
			conn.Close()
			continue
		}
		mu.Lock()
		open[conn] = true
		mu.Unlock()
		peers.Go(func() {
			s.converse(conn)
			mu.Lock()
			delete(open, conn)
			mu.Unlock()
			conn.Close()
		})
	}
}

func peerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// converse answers one peer's requests until it hangs up or breaks the protocol.
func (s *Server) converse(conn *net.UnixConn) {
	buf := make([]byte, maxPacket)
	for {
		n, err := conn.Read(buf)
		if err != nil || n == 0 {
			return
		}
		if err := s.answer(conn, buf[0], string(buf[1:n])); err != nil {
			return
		}
	}
}

// answer serves one request; the error is of the connection, not the request.
func (s *Server) answer(conn *net.UnixConn, op byte, arg string) error {
	switch op {
	case opNew:
		list, err := s.newNamespaces(strings.Split(arg, "\n"))
		return handOver(conn, list, err)
	case opGet:
		m, err := s.existing(arg)
		return handOver(conn, []made{m}, err)
	case opDrop:
		for id := range strings.Lines(arg) {
			s.Drop(strings.TrimSuffix(id, "\n"))
		}
		return send(conn, replyOK, "")
	case opList:
		return s.answerList(conn)
	default:
		return send(conn, replyError, fmt.Sprintf("unknown request %q", op))
	}
}

// handOver answers with the two descriptors of each namespace, and closes them.
func handOver(conn *net.UnixConn, list []made, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return send(conn, replyUnknown, err.Error())
	}
	if err != nil {
		return send(conn, replyError, err.Error())
	}
	fds := make([]int, 0, 2*len(list))
	for _, m := range list {
		defer m.close()
		fds = append(fds, int(m.ns.Fd()), m.socket)
	}
	_, _, err = conn.WriteMsgUnix([]byte{replyOK}, unix.UnixRights(fds...), nil)
	return err
}

// newNamespaces makes a namespace for each id, all or none.
func (s *Server) newNamespaces(ids []string) ([]made, error) {
	if err := s.checkNew(ids); err != nil {
		return nil, err
	}
	list, err := create(len(ids), s.sysctls)
	if err != nil {
		return nil, err
	}
	for i, id := range ids {
		if err == nil {
			err = s.Adopt(id, list[i].ns)
		}
		if err == nil {
			list[i].ns, err = s.Get(id)
		}
	}
	if err != nil {
		for i, id := range ids {
			s.Drop(id)
			list[i].close()
		}
		return nil, err
	}
	return list, nil
}

func (s *Server) checkNew(ids []string) error {
	if len(ids) > MaxNew {
		return fmt.Errorf("%d namespaces in one request: want at most %d", len(ids), MaxNew)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := map[string]bool{}
	for _, id := range ids {
		if !validID(id) {
			return fmt.Errorf("namespace id %q is not valid", id)
		}
		if s.held[id] != nil || asked[id] {
			return fmt.Errorf("network namespace %s exists already", id)
		}
		asked[id] = true
	}
	return nil
}

func (s *Server) existing(id string) (m made, err error) {
	if m.ns, err = s.Get(id); err != nil {
		return m, err
	}
	if m.socket, err = openInside(m.ns); err != nil {
		m.ns.Close()
	}
	return m, err
}

func (s *Server) answerList(conn *net.UnixConn) error {
	var part strings.Builder
	for _, id := range s.List() {
		if part.Len()+len(id)+2 > maxPacket {
			if err := send(conn, replyMore, part.String()); err != nil {
				return err
			}
			part.Reset()
		}
		part.WriteString(id + "\n")
	}
	if err := send(conn, replyMore, part.String()); err != nil {
		return err
	}
	return send(conn, replyOK, "")
}
