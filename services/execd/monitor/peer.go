package monitor

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"berth/internal/rest"
	"berth/services/execd/monitor/wire"
)

// peer is the connected execd.
type peer struct{ conn *wire.Conn }

// Serve accepts execd until l is closed. There is one execd at a time: a new
// connection takes the place of the one before, which may be that of a daemon
// that is gone without having said so.
func (m *Monitor) Serve(l *net.UnixListener) error {
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if err := checkPeer(c); err != nil {
			m.log.Print(err)
			c.Close()
			continue
		}
		go m.serve(&peer{wire.NewConn(c)})
	}
}

// checkPeer admits our own user only. The folder of the socket says the same.
func checkPeer(c *net.UnixConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	cerr := rc.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return fmt.Errorf("ask for peer credentials: %w", err)
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("connection by uid %d refused", cred.Uid)
	}
	return nil
}

func (m *Monitor) serve(p *peer) {
	defer p.conn.Close()
	if err := m.greet(p); err != nil {
		m.log.Printf("greet execd: %v", err)
		return
	}
	defer m.part(p)
	for {
		msg, fds, err := p.conn.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				m.log.Printf("receive from execd: %v", err)
			}
			return
		}
		// Each request has its own goroutine: one that waits (for a process in
		// D state, a slow disk) holds up no other.
		go m.answer(p, msg, fds)
	}
}

// greet makes p the peer and tells it everything.
func (m *Monitor) greet(p *peer) error {
	msg, fds, err := p.conn.Recv()
	if err != nil {
		return err
	}
	wire.CloseAll(fds)
	if msg.Op != wire.OpHello || msg.Hello == nil {
		return fmt.Errorf("first message is %q", msg.Op)
	}
	hello := &wire.Hello{Version: wire.Version, Pid: os.Getpid(), Build: m.build}
	if err := p.conn.Send(&wire.Message{Op: wire.OpHello, Seq: msg.Seq, Hello: hello}); err != nil {
		return err
	}
	if msg.Hello.Version != wire.Version {
		return fmt.Errorf("execd speaks version %d, this is %d", msg.Hello.Version, wire.Version)
	}
	if msg.Hello.Build == hello.Build {
		p.conn.SameBuild()
	}
	// From here on events go to p. One may thereby precede the state that
	// tells the same.
	m.mu.Lock()
	old := m.peer
	m.peer = p
	all := make([]*process, 0, len(m.containers))
	for _, c := range m.containers {
		all = append(all, c)
	}
	m.mu.Unlock()
	if old != nil {
		old.conn.Close()
	}
	go m.Close() // what was built ahead, a new execd does not know
	for _, c := range all {
		if err := m.sendState(p, c); err != nil {
			return err
		}
	}
	return p.conn.Send(&wire.Message{Op: wire.OpReady})
}

func (m *Monitor) sendState(p *peer, c *process) error {
	c.open.RLock()
	defer c.open.RUnlock()
	m.mu.Lock()
	s := c.state
	for id, e := range c.execs {
		s.Execs = append(s.Execs, wire.ExecState{Exec: id, Pid: e.state.Pid})
	}
	started := c.io != nil
	m.mu.Unlock()
	if !started {
		return nil // its launch is under way, and its asker gone: launch ends it
	}
	var fds []int
	if s.Exit == nil {
		s.Held, fds = c.files.list(c.io)
	}
	return p.conn.Send(&wire.Message{Op: wire.OpState, State: &s}, fds...)
}

func (m *Monitor) part(p *peer) {
	m.mu.Lock()
	if m.peer == p {
		m.peer = nil
	}
	m.mu.Unlock()
	m.touch()
}

// answer does what a request asks and replies.
func (m *Monitor) answer(p *peer, msg *wire.Message, fds []int) {
	defer rest.Worked()
	reply := &wire.Message{Op: msg.Op, Seq: msg.Seq}
	var err error
	switch {
	case msg.Op == wire.OpLaunch && msg.Launch != nil:
		m.launch(p, reply, msg.Launch, fds)
		return
	case msg.Op == wire.OpExec && msg.Exec != nil:
		m.exec(p, reply, msg.Exec, fds)
		return
	case msg.Op == wire.OpStandBy && msg.Launch != nil:
		err = m.standBy(msg.Launch, fds)
		fds = nil
	case msg.Op == wire.OpStandDown && msg.Target != nil:
		m.standDown(msg.Target.ID)
	case msg.Op == wire.OpAttach && msg.Attach != nil && len(fds) == 1:
		reply.Position, err = m.attach(msg.Attach, fds[0])
		fds = nil
	case msg.Op == wire.OpAdopt && msg.State != nil:
		err = m.adopt(msg.State, fds)
		fds = nil
	case msg.Op == wire.OpResize && msg.Resize != nil:
		err = m.resize(msg.Resize)
	case msg.Op == wire.OpSignal && msg.Signal != nil:
		err = m.signal(msg.Signal)
	case msg.Op == wire.OpCloseStdin && msg.Target != nil:
		err = m.closeStdin(*msg.Target)
	case msg.Op == wire.OpForget && msg.Target != nil:
		m.forget(msg.Target.ID)
	case msg.Op == wire.OpReaped && msg.Exit != nil && msg.Exit.Status != nil:
		m.reapedByExecd(msg.Exit)
	case msg.Op == wire.OpQuit:
		err = m.tryQuit()
	default:
		err = &wire.Error{Code: wire.CodeInvalid, Text: fmt.Sprintf("request %q not understood", msg.Op)}
	}
	wire.CloseAll(fds)
	reply.Error = wireError(err)
	p.conn.Send(reply)
}

// wireError is err as it travels.
func wireError(err error) *wire.Error {
	if err == nil {
		return nil
	}
	var w *wire.Error
	if errors.As(err, &w) {
		return &wire.Error{Code: w.Code, Text: err.Error()}
	}
	return &wire.Error{Code: wire.CodeInternal, Text: err.Error()}
}

func (m *Monitor) tryQuit() error {
	m.mu.Lock()
	n := m.running()
	m.mu.Unlock()
	if n > 0 {
		return &wire.Error{Code: wire.CodeBusy, Text: fmt.Sprintf("%d containers run", n)}
	}
	m.end()
	return nil
}
