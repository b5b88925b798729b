package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"berth/services/execd/logfile"
	"berth/services/execd/monitor/wire"
)

// launch starts a container and replies.
func (m *Monitor) launch(p *peer, reply *wire.Message, req *wire.Launch, fds []int) {
	proc := &process{
		target:  wire.Target{ID: req.ID},
		state:   wire.State{ID: req.ID, Stdio: req.Stdio, Log: req.Log, Dir: req.Dir, KillAll: req.KillAll, Parent: req.Parent},
		killAll: req.KillAll,
		execs:   make(map[string]*process),
	}
	netns, attach := split(fds, req.NetNS, req.Attach != nil)
	defer closeFile(netns)
	start := func(f Files) (*Process, error) { return m.launcher.Start(req, f, netns) }
	err := m.reserve(proc)
	if err == nil && req.Stands {
		if s := m.takeStanding(req.ID); s != nil {
			defer s.Discard()
			start = func(f Files) (*Process, error) { return s.Start(req, f) }
		} else {
			err = &wire.Error{Code: wire.CodeNotStanding, Text: "the container was not built ahead"}
			m.release(proc)
		}
	}
	if err != nil {
		closeFile(attach)
		reply.Error = wireError(err)
		p.conn.Send(reply)
		return
	}
	if err := m.begin(proc, start, req.Attach, attach, reply); err != nil {
		m.release(proc)
		reply.Error = wireError(err)
		p.conn.Send(reply)
		return
	}
	m.settle(p, proc, reply)
}

// exec starts a session in a running container and replies.
func (m *Monitor) exec(p *peer, reply *wire.Message, req *wire.Exec, fds []int) {
	_, attach := split(fds, false, req.Attach != nil)
	proc := &process{
		target: wire.Target{ID: req.ID, Exec: req.Exec},
		state:  wire.State{ID: req.ID, Stdio: req.Stdio},
	}
	parent, err := m.find(wire.Target{ID: req.ID})
	if err != nil {
		closeFile(attach)
	} else {
		start := func(f Files) (*Process, error) {
			return m.launcher.Exec(req, f, parent.state.Pid, parent.files.pidfd)
		}
		err = m.begin(proc, start, req.Attach, attach, reply)
	}
	if err != nil {
		reply.Error = wireError(err)
		p.conn.Send(reply)
		return
	}
	m.mu.Lock()
	parent.execs[req.Exec] = proc
	m.mu.Unlock()
	m.settle(p, proc, reply)
}

// settle replies and only then watches for the end, so that execd hears of the
// start first.
func (m *Monitor) settle(p *peer, proc *process, reply *wire.Message) {
	var fds []int
	if proc.target.Exec == "" {
		reply.Launched.Held, fds = proc.files.list(proc.io)
	}
	p.conn.Send(reply, fds...)
	m.reaper.watch(proc.state.Pid, proc.files.pidfd, func(s unix.WaitStatus) { m.ended(proc, exitCode(s), "") })
}

// reserve makes the id ours, or says that it runs.
func (m *Monitor) reserve(proc *process) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.containers[proc.state.ID]; old != nil && old.state.Exit == nil {
		return &wire.Error{Code: wire.CodeBusy, Text: "the container runs already"}
	}
	m.containers[proc.state.ID] = proc
	return nil
}

// release undoes reserve.
func (m *Monitor) release(proc *process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.containers, proc.state.ID)
}

// begin connects stdio, starts the process and lets output flow. It takes over
// attach. On failure nothing is left.
func (m *Monitor) begin(proc *process, start func(Files) (*Process, error), streams *wire.Streams, attach *os.File, reply *wire.Message) (err error) {
	s := &stdio{stdinOnce: proc.state.Stdio.StdinOnce}
	defer func() {
		if err != nil {
			s.abandon()
		}
	}()
	if proc.state.Log.Dir != "" {
		if s.log, err = logfile.Create(proc.state.Log.Dir, proc.state.Log.MaxBytes, proc.state.Log.MaxFiles); err != nil {
			closeFile(attach)
			return fmt.Errorf("open log: %w", err)
		}
	}
	var c *client
	if streams != nil && attach != nil {
		if c, err = newClient(attach, *streams); err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		c.patient = true
		defer func() {
			if err != nil {
				c.conn.Close()
			}
		}()
	}
	theirs, err := s.connect(proc.state.Stdio)
	if err != nil {
		return err
	}
	started, err := start(theirs)
	closeFile(theirs.Stdin)
	closeFile(theirs.Stdout)
	closeFile(theirs.Stderr)
	if err != nil {
		return err
	}
	if started.Terminal != nil {
		if err := s.adoptTerminal(started.Terminal); err != nil {
			return err
		}
	}
	now := time.Now()
	m.mu.Lock()
	proc.state.Pid = started.Pid
	proc.state.StartedAt = now
	proc.state.Cgroups = started.Cgroups
	proc.state.Cgroup = started.Cgroup
	if started.PidFD >= 0 {
		proc.files.pidfd = pollable(started.PidFD, "pidfd")
	}
	proc.files.mounts = started.Mounts
	proc.io = s
	m.mu.Unlock()
	s.onStdinClosed = func() { m.tell(&wire.Message{Op: wire.OpStdinClosed, Target: &proc.target}) }
	reply.Launched = &wire.Launched{
		Pid: started.Pid, StartedAt: now, Begun: started.Begun, Trace: started.Trace, Warnings: started.Warnings,
		Cgroup: started.Cgroup, Cgroups: started.Cgroups,
	}
	if c != nil {
		s.join(c)
		go c.listen(s)
	}
	s.pump()
	return nil
}

// connect makes the pipes and answers with the process's ends.
func (s *stdio) connect(io wire.Stdio) (Files, error) {
	var f Files
	if io.Terminal {
		return f, nil // the launcher makes it
	}
	var err error
	if io.Stdin {
		s.stdin, f.Stdin, err = pipe(false)
	} else {
		f.Stdin, err = null(unix.O_RDONLY)
	}
	if err != nil {
		return f, err
	}
	if io.Discard {
		if f.Stdout, err = null(unix.O_WRONLY); err == nil {
			f.Stderr, err = null(unix.O_WRONLY)
		}
		return f, err
	}
	var out, errs *os.File
	if out, f.Stdout, err = pipe(true); err != nil {
		return f, err
	}
	s.outputs = append(s.outputs, output{out, wire.KindStdout, logfile.Stdout})
	if errs, f.Stderr, err = pipe(true); err != nil {
		return f, err
	}
	s.outputs = append(s.outputs, output{errs, wire.KindStderr, logfile.Stderr})
	return f, nil
}

// null opens /dev/null for a process: without the poller, which os.Open would ask for it.
func null(mode int) (*os.File, error) {
	fd, err := unix.Open(os.DevNull, mode|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: os.DevNull, Err: err}
	}
	return os.NewFile(uintptr(fd), os.DevNull), nil
}

// adoptTerminal takes the master over in a form on which goroutines can wait.
func (s *stdio) adoptTerminal(master *os.File) error {
	defer master.Close()
	fd, err := unix.FcntlInt(uintptr(wire.FD(master)), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	s.setTerminal(pollable(fd, "terminal"))
	return nil
}

func (s *stdio) setTerminal(master *os.File) {
	s.terminal = master
	s.outputs = []output{{master, wire.KindStdout, logfile.Stdout}}
}

// abandon closes everything of a process that did not start.
func (s *stdio) abandon() {
	closeFile(s.stdin)
	for _, o := range s.outputs {
		o.f.Close()
	}
	if s.log != nil {
		s.log.Close()
	}
}

// ended records the end of a process and tells execd.
func (m *Monitor) ended(proc *process, code int, reason string) {
	at := time.Now()
	first := proc.target.Exec == ""
	if first && proc.killAll {
		if err := m.launcher.Kill(proc.state.Parent, proc.state.Cgroup); err != nil {
			m.log.Printf("kill what %.12s left: %v", proc.state.ID, err)
		}
	}
	exit := &wire.Exit{
		ID: proc.target.ID, Exec: proc.target.Exec, Pid: proc.state.Pid,
		Code: code, Error: reason, At: at, Ran: at.Sub(proc.state.StartedAt),
	}
	var ending []byte
	if !first { // of a container there is more to know
		ending = wire.Ending(exit)
	}
	proc.io.finish(ending)
	exit.LogDropped = proc.io.dropped()
	if at := proc.io.spoke(); at.After(proc.state.StartedAt) {
		exit.FirstByte = at.Sub(proc.state.StartedAt)
	}
	if first {
		exit.OOM = m.launcher.Ended(proc.state.Parent, proc.state.Cgroup)
	}
	m.mu.Lock()
	proc.state.Exit = exit
	if parent := m.containers[proc.target.ID]; !first && parent != nil {
		delete(parent.execs, proc.target.Exec)
	}
	m.mu.Unlock()
	told := m.tell(&wire.Message{Op: wire.OpExit, Exit: exit})
	if first {
		m.keepExit(proc, told)
	}
	proc.open.Lock()
	proc.io.release(!first)
	closeFile(proc.files.pidfd)
	proc.open.Unlock()
	proc.files.dropMounts()
	m.touch()
}

// answerTime is how long execd has to record an exit that it was told of before
// it is written down here too. It counts only should both die meanwhile.
const answerTime = 50 * time.Millisecond

// keepExit writes the exit down for an execd that does not know of it when this
// monitor ends: at once if there is none, otherwise unless it answers.
func (m *Monitor) keepExit(proc *process, told bool) {
	write := func() {
		if err := writeExit(proc.state.Dir, proc.state.Exit); err != nil {
			m.log.Printf("keep exit status of %.12s: %v", proc.state.ID, err)
		}
	}
	if !told {
		write()
		return
	}
	time.AfterFunc(answerTime, func() {
		m.mu.Lock()
		known := m.containers[proc.state.ID] != proc
		m.mu.Unlock()
		if !known {
			write()
		}
	})
}

func (m *Monitor) forget(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.containers[id]; p != nil && p.state.Exit != nil {
		delete(m.containers, id)
	}
}

func (m *Monitor) attach(req *wire.Attach, fd int) (*wire.Position, error) {
	f := os.NewFile(uintptr(fd), "stream")
	p, err := m.find(req.Target)
	if err != nil {
		f.Close()
		return nil, err
	}
	c, err := newClient(f, req.Streams)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	at, ok := p.io.join(c)
	if !ok {
		c.conn.Close()
		return nil, &wire.Error{Code: wire.CodeNotFound, Text: "the process has ended"}
	}
	go c.listen(p.io)
	return &at, nil
}

func (m *Monitor) resize(req *wire.Resize) error {
	p, err := m.find(req.Target)
	if err != nil {
		return err
	}
	return p.io.resize(req.Rows, req.Columns)
}

// signal is sent by pid: a child's stays its own until it is reaped, which
// drops it from the map of the reaper under the same lock.
func (m *Monitor) signal(req *wire.Signal) error {
	p, err := m.find(req.Target)
	if err != nil {
		return err
	}
	if fd := wire.FD(p.files.pidfd); fd >= 0 {
		if err = unix.PidfdSendSignal(fd, unix.Signal(req.Number), nil, 0); !errors.Is(err, unix.ENOSYS) {
			return signalError(err)
		}
	}
	return signalError(m.reaper.kill(p.state.Pid, unix.Signal(req.Number)))
}

func signalError(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return &wire.Error{Code: wire.CodeNotFound, Text: "the process has ended"}
	}
	return os.NewSyscallError("kill", err)
}

func (m *Monitor) closeStdin(t wire.Target) error {
	p, err := m.find(t)
	if err != nil {
		return err
	}
	p.io.closeStdin()
	return nil
}

// split sorts the descriptors of a request; what was not announced is closed.
func split(fds []int, netns, attach bool) (ns, client *os.File) {
	take := func(name string) *os.File {
		if len(fds) == 0 {
			return nil
		}
		f := os.NewFile(uintptr(fds[0]), name)
		fds = fds[1:]
		return f
	}
	if netns {
		ns = take("netns")
	}
	if attach {
		client = take("stream")
	}
	wire.CloseAll(fds)
	return ns, client
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close()
	}
}

// ExitFile is where a container's end is kept in its folder.
const ExitFile = "exit"

// writeExit is atomic. Nothing is synced: the folder is on a tmpfs, and what a
// reboot ends needs no status.
func writeExit(dir string, e *wire.Exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	tmp := dir + "/." + ExitFile
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, dir+"/"+ExitFile)
}
