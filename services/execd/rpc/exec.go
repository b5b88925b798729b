package rpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/execd/lifecycle"
	"berth/services/execd/monitor/wire"
)

type execStream = grpc.BidiStreamingServer[apiv1.ExecRequest, apiv1.ExecResponse]

func (s *containerService) Exec(stream execStream) error {
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
	var st *wire.Stream
	var client *lifecycle.Client
	if !open.Detach {
		if st, client, err = newClient(open.Attach); err != nil {
			return err
		}
		defer st.Close()
		defer client.Far.Close()
	}
	session, err := s.life.Exec(stream.Context(), c, open, client)
	if err != nil {
		return err
	}
	e := execEnd{stream}
	if err := e.started(session); err != nil {
		// The client left while the process was starting, and knows nothing of it.
		s.life.Signal(context.WithoutCancel(stream.Context()), session.Target(), 9)
		return err
	}
	if st == nil {
		return nil
	}
	client.Far.Close()
	return s.serveExec(stream.Context(), session, st, open.Attach.GetStdin(), e)
}

// serveExec passes stdio until the session ends. A client that leaves leaves the
// process to itself.
func (s *Server) serveExec(ctx context.Context, session *lifecycle.Session, st *wire.Stream, stdin bool, e execEnd) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go s.listen(ctx, cancel, st, session.Target(), stdin, e)
	end, err := s.output(ctx, st, e)
	if err != nil {
		return err
	}
	if end.exit != nil {
		s.life.SessionEnded(session, end.exit)
	}
	exit, err := session.Wait(ctx)
	if err != nil {
		return err
	}
	return e.exited(&apiv1.ExitStatus{Code: int32(exit.Code), Error: exit.Error, ExitedAt: timestamppb.New(exit.At)}, nil)
}

type execEnd struct{ stream execStream }

func (x execEnd) started(s *lifecycle.Session) error {
	if err := x.stream.Context().Err(); err != nil {
		return err
	}
	return x.stream.Send(&apiv1.ExecResponse{Message: &apiv1.ExecResponse_Started_{Started: &apiv1.ExecResponse_Started{
		ExecId: s.ID, Pid: int32(s.Started.Pid), Trace: lifecycle.Steps(s.Started.Trace, 0),
	}}})
}

func (x execEnd) send(o *apiv1.OutputChunk) error {
	return x.stream.Send(&apiv1.ExecResponse{Message: &apiv1.ExecResponse_Output{Output: o}})
}

func (x execEnd) exited(e *apiv1.ExitStatus, _ []*apiv1.TraceStep) error {
	return x.stream.Send(&apiv1.ExecResponse{Message: &apiv1.ExecResponse_Exited{Exited: e}})
}

func (x execEnd) recv() (input, error) {
	m, err := x.stream.Recv()
	if err != nil {
		return input{}, err
	}
	switch m := m.Message.(type) {
	case *apiv1.ExecRequest_Stdin:
		return input{stdin: m.Stdin, isStdin: true}, nil
	case *apiv1.ExecRequest_Resize:
		return input{resize: m.Resize}, nil
	case *apiv1.ExecRequest_Signal:
		return input{signal: m.Signal}, nil
	}
	return input{}, nil
}
