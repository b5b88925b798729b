package keeper

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"berth/internal/fault"
	"berth/internal/version"
	"berth/services/execd/monitor/wire"
)

// Config is what New needs.
type Config struct {
	// Dir is the folder of monitor.sock and monitor.lock, $RUN/execd.
	Dir string
	// Monitor is the path of the binary, and Args are its arguments.
	Monitor string
	Args    []string
	Log     hclog.Logger
	// Exited is called for every end of a process the monitor tells of, from
	// one goroutine, possibly more than once for the same end.
	Exited func(*wire.Exit)
	// Lost is called for a container that could not be handed to a new monitor.
	Lost func(id string, pid int, err error)
	// Gone is called when a monitor has died, with all exec sessions it had.
	Gone func()
}

// Keeper talks to the monitor. Its methods may be called from any goroutine;
// while there is no monitor they wait until ctx ends.
type Keeper struct {
	cfg Config
	brk broker
	kin kin

	mu   sync.Mutex
	held map[string]*second
	link *link
	up   chan struct{} // closed while link is usable
	stop context.CancelFunc
	done chan struct{}

	retired atomic.Bool // the monitor was told to quit: it needs no successor
}

// Open connects to the running monitor, or starts one, and returns what it has.
func Open(ctx context.Context, cfg Config) (*Keeper, []*wire.State, error) {
	k := &Keeper{cfg: cfg, held: make(map[string]*second), up: make(chan struct{}), done: make(chan struct{})}
	if err := k.kin.open(); err != nil {
		return nil, nil, err
	}
	l, err := k.connect(ctx)
	for wait := 10 * time.Millisecond; dying(err) && wait < time.Second; wait *= 2 {
		time.Sleep(wait)
		l, err = k.connect(ctx)
	}
	if err != nil {
		k.kin.close()
		return nil, nil, err
	}
	states := make([]*wire.State, 0, len(l.states))
	for _, s := range l.states {
		st := s.state
		states = append(states, &st)
	}
	k.take(l)
	run, stop := context.WithCancel(context.Background())
	k.stop = stop
	go k.run(run, l)
	return k, states, nil
}

// dying reports whether a monitor took the connection and went away: one that was
// just killed has a socket for as long as the kernel needs to end it.
func dying(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)
}

// Close leaves the monitor and its containers alone; see also Retire.
func (k *Keeper) Close() {
	k.stop()
	<-k.done
	k.kin.close()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.held {
		s.close()
	}
	k.held = nil
}

// MonitorPid is 0 while there is none.
func (k *Keeper) MonitorPid() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.link == nil {
		return 0
	}
	return k.link.hello.Pid
}

// SameBuild reports whether the monitor is of this build, and so has the same forms of what is not JSON. One that was
// running before an upgrade is not.
func (k *Keeper) SameBuild() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.link != nil && k.link.hello.Build == version.String()
}

// take makes l the link and its states what we hold.
func (k *Keeper) take(l *link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, s := range l.states {
		if old := k.held[id]; old != nil {
			old.close()
		}
		if s.state.Exit != nil {
			s.close()
			delete(k.held, id)
			continue
		}
		k.held[id] = s
	}
	l.states = nil
	k.link = l
	close(k.up)
}

// drop makes callers wait for the next link.
func (k *Keeper) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.link = nil
	k.up = make(chan struct{})
}

// run reads from the monitor, and gets another when it is gone.
func (k *Keeper) run(ctx context.Context, l *link) {
	defer close(k.done)
	for {
		stop := context.AfterFunc(ctx, func() { l.conn.Close() })
		err := k.read(l)
		stop()
		l.conn.Close()
		k.drop()
		k.brk.failAll(fault.Unavailable.Errorf("MONITOR_GONE", "the monitor went away"))
		if ctx.Err() != nil || k.retired.Load() {
			return
		}
		k.cfg.Log.Warn("monitor went away", "pid", l.hello.Pid, "error", err)
		k.cfg.Gone()
		if l = k.again(ctx); l == nil {
			return
		}
	}
}

// again gets a monitor and hands it the containers; nil when ctx ends.
func (k *Keeper) again(ctx context.Context) *link {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		l, err := k.connect(ctx)
		if err == nil {
			states := l.states
			k.take(l)
			go k.handOver(ctx, l, states)
			return l
		}
		if ctx.Err() != nil {
			return nil
		}
		k.cfg.Log.Error("start monitor", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// handOver gives a new monitor the containers that only we hold. A monitor that
// was alive all the time has told of its own (known).
func (k *Keeper) handOver(ctx context.Context, l *link, known map[string]*second) {
	k.mu.Lock()
	var orphans []*second
	for id, s := range k.held {
		if _, ok := known[id]; !ok {
			orphans = append(orphans, s)
		}
	}
	k.mu.Unlock()
	for _, s := range orphans {
		for _, e := range s.state.Execs {
			k.kin.expect(e.Pid, nil)
		}
		st := s.state
		st.Execs = nil
		_, err := k.callOn(ctx, l, nil, &wire.Message{Op: wire.OpAdopt, State: &st}, s.fds...)
		var refused *wire.Error
		switch {
		case errors.As(err, &refused):
			k.cfg.Log.Error("hand container to new monitor", "container", st.ID, "error", err)
			k.release(st.ID)
			k.cfg.Lost(st.ID, st.Pid, err)
		case err != nil:
			return // this monitor died too: its successor is handed all of them
		}
		// Only now: the monitor must know the container when it hears of its end.
		k.kin.expect(st.Pid, func(status int) {
			k.send(ctx, &wire.Message{Op: wire.OpReaped, Exit: &wire.Exit{ID: st.ID, Status: &status}})
		})
	}
	if len(orphans) > 0 {
		k.cfg.Log.Info("containers handed to a new monitor", "count", len(orphans), "pid", l.hello.Pid)
	}
}

// read handles what the monitor sends until the connection ends.
func (k *Keeper) read(l *link) error {
	for {
		msg, fds, err := l.conn.Recv()
		if err != nil {
			return err
		}
		if msg.Seq != 0 {
			if !k.brk.deliver(answer{msg, fds}) {
				wire.CloseAll(fds) // the asker has left
			}
			continue
		}
		wire.CloseAll(fds)
		k.event(msg)
	}
}

func (k *Keeper) event(msg *wire.Message) {
	switch {
	case msg.Op == wire.OpExit && msg.Exit != nil:
		if msg.Exit.Exec == "" {
			k.release(msg.Exit.ID)
		} else {
			k.endExec(msg.Exit)
		}
		k.cfg.Exited(msg.Exit)
	case msg.Op == wire.OpStdinClosed && msg.Target != nil:
		k.mu.Lock()
		if s := k.held[msg.Target.ID]; s != nil && msg.Target.Exec == "" {
			s.closeStdin()
		}
		k.mu.Unlock()
	}
}

func (k *Keeper) endExec(e *wire.Exit) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.held[e.ID]; s != nil {
		s.dropExec(e.Exec)
	}
}

// release closes the second copy of what has ended.
func (k *Keeper) release(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.held[id]; s != nil {
		s.close()
		delete(k.held, id)
	}
}

// current waits for a link.
func (k *Keeper) current(ctx context.Context) (*link, error) {
	for {
		k.mu.Lock()
		l, up := k.link, k.up
		k.mu.Unlock()
		if l != nil {
			return l, nil
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil, fault.Unavailable.Errorf("MONITOR_GONE", "the monitor is away: %w", ctx.Err())
		}
	}
}

// send does not wait for the answer.
func (k *Keeper) send(ctx context.Context, msg *wire.Message, fds ...int) error {
	l, err := k.current(ctx)
	if err != nil {
		return err
	}
	return l.conn.Send(msg, fds...)
}

// call sends a request and waits for its answer.
func (k *Keeper) call(ctx context.Context, msg *wire.Message, fds ...int) (answer, error) {
	return k.callSeen(ctx, nil, msg, fds...)
}

// callSeen also has the answer seen before any later event.
func (k *Keeper) callSeen(ctx context.Context, seen func(answer), msg *wire.Message, fds ...int) (answer, error) {
	l, err := k.current(ctx)
	if err != nil {
		return answer{}, err
	}
	return k.callOn(ctx, l, seen, msg, fds...)
}

// callOn asks one monitor, and no later one.
func (k *Keeper) callOn(ctx context.Context, l *link, seen func(answer), msg *wire.Message, fds ...int) (answer, error) {
	seq, ch := k.brk.ask(seen)
	msg.Seq = seq
	if err := l.conn.Send(msg, fds...); err != nil {
		k.brk.forget(seq)
		return answer{}, fault.Unavailable.Errorf("MONITOR_GONE", "ask the monitor: %w", err)
	}
	select {
	case a := <-ch:
		if a.err != nil {
			return answer{}, a.err
		}
		if a.msg.Error != nil {
			return answer{}, a.msg.Error
		}
		return a.answer, nil
	case <-ctx.Done():
		k.brk.forget(seq)
		return answer{}, ctx.Err()
	}
}

// Launch starts a container. netns is a descriptor or negative; attach, which
// stays the caller's, is the far end of a stream or nil. A *wire.Error tells
// what the monitor says. ctx does not end a launch that was sent: it is either
// done or not.
func (k *Keeper) Launch(ctx context.Context, req *wire.Launch, netns int, attach *os.File) (*wire.Launched, error) {
	var fds []int
	if req.NetNS = netns >= 0; req.NetNS {
		fds = append(fds, netns)
	}
	if attach != nil {
		fds = append(fds, wire.FD(attach))
	}
	keep := func(a answer) {
		got := a.msg.Launched
		if got == nil {
			return
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		k.held[req.ID] = &second{fds: a.fds, state: wire.State{
			ID: req.ID, Pid: got.Pid, StartedAt: got.StartedAt, Stdio: req.Stdio, Log: req.Log, Dir: req.Dir,
			KillAll: req.KillAll, Parent: req.Parent, Cgroup: got.Cgroup, Cgroups: got.Cgroups, Held: got.Held,
		}}
	}
	a, err := k.callSeen(context.WithoutCancel(ctx), keep, &wire.Message{Op: wire.OpLaunch, Launch: req}, fds...)
	if err != nil {
		return nil, err
	}
	if a.msg.Launched == nil {
		wire.CloseAll(a.fds)
		return nil, errors.New("the monitor's answer to launch is empty")
	}
	return a.msg.Launched, nil
}

// StandBy has a container built ahead of its launch. netns is a descriptor or negative.
func (k *Keeper) StandBy(ctx context.Context, req *wire.Launch, netns int) error {
	var fds []int
	if req.NetNS = netns >= 0; req.NetNS {
		fds = append(fds, netns)
	}
	return k.ask(ctx, &wire.Message{Op: wire.OpStandBy, Launch: req}, fds...)
}

// StandDown undoes it.
func (k *Keeper) StandDown(ctx context.Context, id string) error {
	return k.ask(ctx, &wire.Message{Op: wire.OpStandDown, Target: &wire.Target{ID: id}})
}

// Exec starts a session in a container.
func (k *Keeper) Exec(ctx context.Context, req *wire.Exec, attach *os.File) (*wire.Launched, error) {
	var fds []int
	if attach != nil {
		fds = append(fds, wire.FD(attach))
	}
	a, err := k.call(context.WithoutCancel(ctx), &wire.Message{Op: wire.OpExec, Exec: req}, fds...)
	if err != nil {
		return nil, err
	}
	wire.CloseAll(a.fds)
	if a.msg.Launched == nil {
		return nil, errors.New("the monitor's answer to exec is empty")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.held[req.ID]; s != nil {
		s.state.Execs = append(s.state.Execs, wire.ExecState{Exec: req.Exec, Pid: a.msg.Launched.Pid})
	}
	return a.msg.Launched, nil
}

// Attach connects to a running process. The position is where in the log its
// output begins.
func (k *Keeper) Attach(ctx context.Context, t wire.Target, s wire.Streams) (*wire.Stream, wire.Position, error) {
	stream, far, err := wire.NewStream()
	if err != nil {
		return nil, wire.Position{}, err
	}
	defer far.Close()
	a, err := k.call(ctx, &wire.Message{Op: wire.OpAttach, Attach: &wire.Attach{Target: t, Streams: s}}, wire.FD(far))
	if err != nil {
		stream.Close()
		return nil, wire.Position{}, err
	}
	wire.CloseAll(a.fds)
	var at wire.Position
	if a.msg.Position != nil {
		at = *a.msg.Position
	}
	return stream, at, nil
}

// Resize sets the size of a process's terminal.
func (k *Keeper) Resize(ctx context.Context, t wire.Target, rows, columns uint32) error {
	const limit = 1<<16 - 1
	if rows > limit || columns > limit {
		return fault.InvalidArgument.Errorf("TERMINAL_SIZE", "terminal size %d×%d: at most %d", rows, columns, limit)
	}
	return k.ask(ctx, &wire.Message{Op: wire.OpResize, Resize: &wire.Resize{Target: t, Rows: uint16(rows), Columns: uint16(columns)}})
}

// Signal sends a signal to a process.
func (k *Keeper) Signal(ctx context.Context, t wire.Target, number int) error {
	return k.ask(ctx, &wire.Message{Op: wire.OpSignal, Signal: &wire.Signal{Target: t, Number: number}})
}

// CloseStdin gives a process end-of-file.
func (k *Keeper) CloseStdin(ctx context.Context, t wire.Target) error {
	return k.ask(ctx, &wire.Message{Op: wire.OpCloseStdin, Target: &t})
}

// Forget tells the monitor that a container's exit is recorded.
func (k *Keeper) Forget(ctx context.Context, id string) error {
	return k.send(ctx, &wire.Message{Op: wire.OpForget, Target: &wire.Target{ID: id}, Seq: forgetSeq})
}

func (k *Keeper) ask(ctx context.Context, msg *wire.Message, fds ...int) error {
	a, err := k.call(ctx, msg, fds...)
	wire.CloseAll(a.fds)
	return err
}

// Retire tells the monitor to quit, which it does unless containers run. Only
// Close may follow.
func (k *Keeper) Retire(ctx context.Context) error {
	k.retired.Store(true)
	return k.send(ctx, &wire.Message{Op: wire.OpQuit})
}
