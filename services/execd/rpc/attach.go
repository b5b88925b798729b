package rpc

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/execd/container"
	"berth/services/execd/launch"
	"berth/services/execd/lifecycle"
	"berth/services/execd/logfile"
	"berth/services/execd/monitor/wire"
)

// input is a message of a client after its first.
type input struct {
	isStdin bool
	stdin   []byte
	resize  *apiv1.TerminalSize
	signal  string
}

// end is the client's end of a call that carries stdio. Run, Attach and Exec
// differ in their messages only.
type end interface {
	recv() (input, error)
	send(*apiv1.OutputChunk) error
	// exited also has the steps since the client attached.
	exited(*apiv1.ExitStatus, []*apiv1.TraceStep) error
}

func streams(o *apiv1.AttachOptions) wire.Streams {
	return wire.Streams{Stdin: o.GetStdin(), Stdout: o.GetStdout(), Stderr: o.GetStderr()}
}

// newClient makes the pair of ends for a process that is yet to start.
func newClient(o *apiv1.AttachOptions) (*wire.Stream, *lifecycle.Client, error) {
	s, far, err := wire.NewStream()
	if err != nil {
		return nil, nil, err
	}
	return s, &lifecycle.Client{Streams: streams(o), Far: far}, nil
}

// serveContainer passes stdio between a client and a container's first process
// until that ends, and then tells how.
func (s *Server) serveContainer(ctx context.Context, c *container.Container, i *container.Info, st *wire.Stream, o *apiv1.AttachOptions, e end) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.Logs.RLock() // --rm: the log must stay until we have read it
	defer c.Logs.RUnlock()
	go s.listen(ctx, cancel, st, wire.Target{ID: i.ID}, o.GetStdin(), e)
	over := func(now *container.Info) bool { return now.Runs != i.Runs || !now.State.Active() }
	switch end, err := s.output(ctx, st, e); {
	case err != nil:
		return err
	case end.lag != nil:
		if err := s.catchUp(ctx, c, i, *end.lag, o, over, e); err != nil {
			return err
		}
	}
	now, err := c.Wait(ctx, over)
	if err != nil {
		return err
	}
	return e.exited(exitStatus(now.Exit), lifecycle.StepsSince(i, now))
}

// listen passes on what the client sends, until it leaves or stops sending.
func (s *Server) listen(ctx context.Context, cancel context.CancelFunc, st *wire.Stream, t wire.Target, stdin bool, e end) {
	for {
		in, err := e.recv()
		if errors.Is(err, io.EOF) {
			return // it only listens from here on
		}
		if err != nil {
			cancel()
			st.Close() // wakes output
			return
		}
		switch {
		case in.isStdin && !stdin:
		case in.isStdin && len(in.stdin) == 0:
			err = st.CloseStdin()
		case in.isStdin:
			err = st.SendStdin(in.stdin)
		case in.resize != nil:
			err = s.life.Resize(ctx, t, in.resize)
		case in.signal != "":
			var sig int
			if sig, err = launch.Signal(in.signal); err == nil {
				err = s.life.Signal(ctx, t, sig)
			}
		}
		if err != nil {
			s.log.Debug("pass on input", "container", t.ID, "exec", t.Exec, "error", err)
		}
	}
}

// ending is how a stream ended.
type ending struct {
	lag  *wire.Position // the client did not keep up, and has to go on from here in the log
	exit *wire.Exit     // of an exec session, if the monitor sent it along
}

// output passes on what the process writes, to its end.
func (s *Server) output(ctx context.Context, st *wire.Stream, e end) (ending, error) {
	stop := context.AfterFunc(ctx, func() { st.Close() })
	defer stop()
	buf := make([]byte, 1+wire.MaxChunk)
	for {
		kind, data, err := st.Recv(buf)
		if ctx.Err() != nil {
			return ending{}, context.Cause(ctx)
		}
		if err != nil {
			return ending{}, fault.Unavailable.Errorf("ATTACH_LOST", "the monitor was restarted; the container goes on").
				Hint("attach again")
		}
		switch kind {
		case wire.KindStdout:
			err = e.send(&apiv1.OutputChunk{Stream: apiv1.OutputChunk_STREAM_STDOUT, Data: data})
		case wire.KindStderr:
			err = e.send(&apiv1.OutputChunk{Stream: apiv1.OutputChunk_STREAM_STDERR, Data: data})
		case wire.KindLagged:
			at, err := wire.DecodePosition(data)
			return ending{lag: &at}, err
		case wire.KindCutOff:
			return ending{}, fault.ResourceExhausted.Errorf("ATTACH_CUT_OFF", "attach was cut off: %s", data)
		case wire.KindEnd:
			if len(data) == 0 {
				return ending{}, nil
			}
			exit, err := wire.DecodeEnding(data)
			return ending{exit: exit}, err
		}
		if err != nil {
			return ending{}, err
		}
	}
}

// catchUp gives a slow client its output from the log.
func (s *Server) catchUp(ctx context.Context, c *container.Container, i *container.Info, at wire.Position, o *apiv1.AttachOptions, over func(*container.Info) bool, e end) error {
	dir := s.life.LogDir(i)
	wake, stop := s.watcher.Watch(dir)
	defer stop()
	from := logfile.Position(at)
	q := logfile.Query{
		Stdout: o.GetStdout(), Stderr: o.GetStderr(), From: &from,
		Follow: true, Wake: wake, Done: c.Done(ctx, over),
	}
	err := readLog(ctx, dir, q, e)
	if errors.Is(err, logfile.ErrGone) {
		return fault.ResourceExhausted.Errorf("ATTACH_CUT_OFF", "attach was cut off: the reader did not keep up with the log")
	}
	return err
}

// readLog sends a log as the bytes that the process wrote, many lines in one
// message.
func readLog(ctx context.Context, dir string, q logfile.Query, e end) error {
	var held apiv1.OutputChunk
	flush := func() error {
		if len(held.Data) == 0 {
			return nil
		}
		err := e.send(&held)
		held.Data = held.Data[:0]
		return err
	}
	q.Pause = flush
	err := logfile.Read(ctx, dir, q, func(ch logfile.Chunk) error {
		if s := apiv1.OutputChunk_Stream(ch.Stream); s != held.Stream || len(held.Data)+len(ch.Data) >= wire.MaxChunk {
			if err := flush(); err != nil {
				return err
			}
			held.Stream = s
		}
		held.Data = append(held.Data, ch.Data...)
		if !ch.Partial {
			held.Data = append(held.Data, '\n')
		}
		return nil
	})
	return errors.Join(err, flush())
}

type attachStream = grpc.BidiStreamingServer[apiv1.AttachRequest, apiv1.AttachResponse]

func (s *containerService) Attach(stream attachStream) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil {
		return fault.InvalidArgument.Errorf("PROTOCOL", "the first message is not open")
	}
	c, err := s.find(open.Container)
	if err != nil {
		return err
	}
	i := c.Info()
	if open.Attach.GetStdin() && !i.Spec.GetOpenStdin() && !i.Spec.GetTty() {
		open.Attach.Stdin = false // it has none; as in Docker that is no error
	}
	if !i.State.Active() && open.AwaitStart {
		return s.attachFirst(stream, c, open)
	}
	if !i.State.Up() {
		return fault.FailedPrecondition.Errorf("CONTAINER_NOT_RUNNING", "container %s does not run", i.Name).
			Hint("start it, or read its logs")
	}
	ctx := stream.Context()
	t := wire.Target{ID: i.ID}
	st, at, err := s.life.Keeper().Attach(ctx, t, streams(open.Attach))
	if err != nil {
		return attachError(err)
	}
	defer st.Close()
	e := attachEnd{stream}
	if open.TerminalSize != nil && i.Spec.GetTty() {
		if err := s.life.Resize(ctx, t, open.TerminalSize); err != nil {
			s.log.Debug("resize terminal", "container", i.ID, "error", err)
		}
	}
	if err := stream.Send(&apiv1.AttachResponse{Message: &apiv1.AttachResponse_Attached{Attached: true}}); err != nil {
		return err
	}
	if open.Attach.GetLogs() {
		if err := s.replay(ctx, i, at, open.Attach, e); err != nil {
			return err
		}
	}
	return s.serveContainer(ctx, c, i, st, open.Attach, e)
}

// replay gives what was logged before the client's own output begins.
func (s *Server) replay(ctx context.Context, i *container.Info, until wire.Position, o *apiv1.AttachOptions, e end) error {
	dir := s.life.LogDir(i)
	if dir == "" {
		return nil
	}
	to := logfile.Position(until)
	q := logfile.Query{Stdout: o.GetStdout(), Stderr: o.GetStderr(), Tail: -1, To: &to}
	return readLog(ctx, dir, q, e)
}

func attachError(err error) error {
	var w *wire.Error
	if errors.As(err, &w) && w.Code == wire.CodeNotFound {
		return fault.FailedPrecondition.Errorf("CONTAINER_NOT_RUNNING", "%w", w)
	}
	return err
}

type attachEnd struct{ stream attachStream }

func (a attachEnd) send(o *apiv1.OutputChunk) error {
	return a.stream.Send(&apiv1.AttachResponse{Message: &apiv1.AttachResponse_Output{Output: o}})
}

func (a attachEnd) exited(e *apiv1.ExitStatus, _ []*apiv1.TraceStep) error {
	return a.stream.Send(&apiv1.AttachResponse{Message: &apiv1.AttachResponse_Exited{Exited: e}})
}

func (a attachEnd) recv() (input, error) {
	m, err := a.stream.Recv()
	if err != nil {
		return input{}, err
	}
	switch m := m.Message.(type) {
	case *apiv1.AttachRequest_Stdin:
		return input{stdin: m.Stdin, isStdin: true}, nil
	case *apiv1.AttachRequest_Resize:
		return input{resize: m.Resize}, nil
	case *apiv1.AttachRequest_Signal:
		return input{signal: m.Signal}, nil
	}
	return input{}, nil
}
