package lifecycle

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/execd/container"
	"berth/services/execd/launch"
	"berth/services/execd/monitor/wire"
)

// Session is a further process in a container.
type Session struct {
	ID        string
	Container string
	Command   []string
	Started   *wire.Launched

	done chan struct{}
	exit *wire.Exit
}

// Wait blocks until the process has ended.
func (s *Session) Wait(ctx context.Context) (*wire.Exit, error) {
	select {
	case <-s.done:
		return s.exit, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Target is how the monitor knows it.
func (s *Session) Target() wire.Target { return wire.Target{ID: s.Container, Exec: s.ID} }

// sessions are those that run.
type sessions struct {
	mu   sync.Mutex
	byID map[string]*Session
	// early are those whose stream told of their end, which the monitor is yet to tell of.
	early map[string]bool
}

func (s *sessions) add(e *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID == nil {
		s.byID = make(map[string]*Session)
	}
	s.byID[e.ID] = e
}

func (s *sessions) drop(id string) *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byID[id]
	delete(s.byID, id)
	return e
}

// ended reports whether the end is news.
func (s *sessions) ended(x *wire.Exit) bool {
	s.mu.Lock()
	told := s.early[x.Exec]
	delete(s.early, x.Exec)
	s.mu.Unlock()
	if told {
		return false
	}
	if e := s.drop(x.Exec); e != nil {
		e.exit = x
		close(e.done)
	}
	return true
}

// endedEarly is ended for what the stream told, which has no names; false if the monitor was faster.
func (s *sessions) endedEarly(e *Session, x *wire.Exit) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[e.ID] != e {
		return false
	}
	delete(s.byID, e.ID)
	if s.early == nil {
		s.early = make(map[string]bool)
	}
	s.early[e.ID] = true
	x.ID, x.Exec = e.Container, e.ID
	e.exit = x
	close(e.done)
	return true
}

// of lists the sessions of a container.
func (s *sessions) of(id string) []*Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*Session
	for _, e := range s.byID {
		if e.Container == id && e.Started != nil {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *Session) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Execs are the sessions of a container as clients see them.
func (m *Manager) Execs(id string) []*apiv1.ExecInfo {
	var out []*apiv1.ExecInfo
	for _, e := range m.sessions.of(id) {
		out = append(out, &apiv1.ExecInfo{Id: e.ID, Pid: int32(e.Started.Pid), Command: e.Command, Running: true})
	}
	return out
}

// Exec starts a further process in a running container.
func (m *Manager) Exec(ctx context.Context, c *container.Container, open *apiv1.ExecRequest_Open, client *Client) (*Session, error) {
	i, err := m.settled(ctx, c)
	if err != nil {
		return nil, err
	}
	switch {
	case i.State == container.Paused:
		return nil, fault.FailedPrecondition.Errorf("CONTAINER_PAUSED", "container %s is paused: unpause it first", i.Name)
	case !i.State.Up():
		return nil, notRunning(i)
	}
	size := open.GetTerminalSize()
	in := &launch.ExecInput{
		Cgroup: i.Cgroup, Spec: i.Spec, Image: i.Image, ContainerEnv: i.Env, ContainerCwd: i.Cwd,
		Args: open.Args, Env: open.Env, WorkingDir: open.WorkingDir, User: open.User, Tty: open.Tty, Privileged: open.Privileged,
		Rows: uint16(size.GetRows()), Columns: uint16(size.GetColumns()),
	}
	plan, err := m.Builder.Exec(in)
	if err != nil {
		return nil, err
	}
	config, filter, err := plan.Encode(m.keeper.SameBuild())
	if err != nil {
		return nil, err
	}
	s := &Session{ID: newExecID(), Container: i.ID, Command: open.Args, done: make(chan struct{})}
	req := &wire.Exec{ID: i.ID, Exec: s.ID, Config: config, Filter: filter, Stdio: wire.Stdio{
		Terminal: open.Tty, Stdin: client != nil && client.Streams.Stdin, StdinOnce: true, Discard: client == nil && !open.Tty,
		Rows: in.Rows, Columns: in.Columns,
	}}
	m.sessions.add(s)
	s.Started, err = m.execHere(ctx, req, client)
	if err != nil {
		m.sessions.drop(s.ID)
		return nil, err
	}
	m.Events.Emit("container", "exec_start", i.ID, attributes(i, "execID", s.ID, "command", strings.Join(open.Args, " ")))
	return s, nil
}

func (m *Manager) execHere(ctx context.Context, req *wire.Exec, client *Client) (*wire.Launched, error) {
	if client == nil {
		got, err := m.keeper.Exec(ctx, req, nil)
		return got, commandError(err)
	}
	req.Attach = &client.Streams
	got, err := m.keeper.Exec(ctx, req, client.Far)
	return got, commandError(err)
}

// SessionEnded is called with the end that a session's stream told of.
func (m *Manager) SessionEnded(s *Session, x *wire.Exit) {
	if m.sessions.endedEarly(s, x) {
		m.exits.Go(func() { m.execDied(x) })
	}
}

func (m *Manager) execDied(e *wire.Exit) {
	c, err := m.Containers.Find(e.ID)
	if err != nil {
		return
	}
	m.Events.Emit("container", "exec_die", e.ID, attributes(c.Info(), "execID", e.Exec, "exitCode", strconv.Itoa(e.Code)))
}

func newExecID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Resize sets the size of a target's terminal.
func (m *Manager) Resize(ctx context.Context, t wire.Target, size *apiv1.TerminalSize) error {
	return wrap("resize terminal", commandError(m.keeper.Resize(ctx, t, size.GetRows(), size.GetColumns())))
}

// failSessions ends the sessions that a killed monitor had: nobody waits for
// their processes any more.
func (m *Manager) failSessions(reason string) {
	m.sessions.mu.Lock()
	all := m.sessions.byID
	m.sessions.byID, m.sessions.early = nil, nil
	m.sessions.mu.Unlock()
	for _, e := range all {
		e.exit = &wire.Exit{ID: e.Container, Exec: e.ID, Code: 255, Error: fmt.Sprintf("exit status lost: %s", reason)}
		close(e.done)
	}
}
