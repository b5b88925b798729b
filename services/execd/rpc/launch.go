package rpc

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	"berth/services/execd/container"
	"berth/services/execd/launch"
	"berth/services/execd/lifecycle"
	"berth/services/execd/monitor/wire"
)

type launchService struct {
	execv1.UnimplementedLaunchServiceServer
	*Server
}

func (s *launchService) Create(_ context.Context, req *execv1.CreateRequest) (*execv1.CreateResponse, error) {
	c, err := s.life.Create(req)
	if err != nil {
		return nil, err
	}
	return &execv1.CreateResponse{Name: c.Info().Name}, nil
}

func (s *launchService) StandBy(ctx context.Context, req *execv1.StandByRequest) (*execv1.StandByResponse, error) {
	stands, err := s.life.StandBy(ctx, req.Create, req.Network)
	return &execv1.StandByResponse{Stands: stands}, err
}

func (s *launchService) StandDown(ctx context.Context, req *execv1.StandDownRequest) (*execv1.StandDownResponse, error) {
	return &execv1.StandDownResponse{}, s.life.StandDown(ctx, req.Id)
}

func (s *launchService) Start(ctx context.Context, req *execv1.StartRequest) (*execv1.StartResponse, error) {
	c, err := s.find(req.Id)
	if err != nil {
		return nil, err
	}
	given := lifecycle.Given{Rootfs: req.Rootfs, Network: req.Network, Timeline: lifecycle.NewTimeline(req.Timeline)}
	e := s.awaiting.take(c.Info().ID)
	if e == nil {
		i, err := s.life.Start(ctx, c, given, nil)
		if err != nil {
			return nil, err
		}
		return startResponse(i, req.Timeline), nil
	}
	i, err := s.life.Start(ctx, c, given, e.client)
	e.client.Far.Close()
	e.started <- i
	if err != nil {
		return nil, err
	}
	return startResponse(i, req.Timeline), nil
}

func (s *launchService) Confirm(_ context.Context, req *execv1.ConfirmRequest) (*execv1.ConfirmResponse, error) {
	c, err := s.find(req.Container)
	if err != nil {
		return nil, err
	}
	timeline := lifecycle.NewTimeline(req.Timeline)
	begin, i := timeline.Now(), c.Info()
	if err := s.life.Confirm(c); err != nil {
		return nil, err
	}
	timeline.Add("confirm", apiv1.Stage_STAGE_RECORD, begin)
	if i.RestartCount == 0 { // it is the start of these steps
		s.life.Note(c, i, timeline)
	}
	return &execv1.ConfirmResponse{}, nil
}

// startResponse has execd's steps, which follow the caller's, if they are wanted.
func startResponse(i *container.Info, t *execv1.Timeline) *execv1.StartResponse {
	r := &execv1.StartResponse{Pid: int32(i.Pid), Warnings: i.Warnings}
	if t.GetWanted() {
		r.Trace = i.Trace[min(len(t.Steps), len(i.Trace)):]
	}
	return r
}

type runStream = grpc.BidiStreamingServer[execv1.RunRequest, execv1.RunResponse]

func (s *launchService) Run(stream runStream) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil {
		return fault.InvalidArgument.Errorf("PROTOCOL", "the first message is not open")
	}
	var ends *wire.Stream
	var client *lifecycle.Client
	if open.Attach != nil {
		if ends, client, err = newClient(open.Attach); err != nil {
			return err
		}
		defer ends.Close()
		defer client.Far.Close()
	}
	timeline := lifecycle.NewTimeline(open.Timeline)
	begin := timeline.Now()
	c, kept, err := s.life.CreateForStart(open.Create)
	if err != nil {
		return err
	}
	timeline.Add("execd create", apiv1.Stage_STAGE_RECORD, begin)
	name := c.Info().Name
	given := lifecycle.Given{Rootfs: open.Create.GetRootfs(), Network: open.Network, Timeline: timeline}
	i, err := s.life.Start(stream.Context(), c, given, client)
	if err == nil && kept != nil {
		after := timeline.After()
		begin := after.Now()
		if err = kept(); err == nil {
			after.Add("record on disk", apiv1.Stage_STAGE_RECORD, begin)
			i = s.life.Note(c, i, after)
		}
	}
	if err == nil {
		err = tellStarted(stream, name, startResponse(i, open.Timeline))
	}
	if err != nil {
		if e := s.life.Remove(context.WithoutCancel(stream.Context()), c, true); e != nil && !errors.Is(e, fault.NotFound) {
			s.log.Error("remove container that did not start", "container", c.Info().ID, "error", e)
		}
		return err
	}
	if ends == nil {
		return nil
	}
	client.Far.Close()
	return s.serveContainer(stream.Context(), c, i, ends, open.Attach, runEnd{stream, open.Timeline.GetWanted()})
}

// tellStarted fails when the client left while the container was starting: it
// will never know of it.
func tellStarted(stream runStream, name string, started *execv1.StartResponse) error {
	if err := stream.Context().Err(); err != nil {
		return err
	}
	created := &execv1.RunResponse{Message: &execv1.RunResponse_Created{Created: &execv1.CreateResponse{Name: name}}}
	if err := stream.Send(created); err != nil {
		return err
	}
	return stream.Send(&execv1.RunResponse{Message: &execv1.RunResponse_Started{Started: started}})
}

// runEnd is the client's end of Run.
type runEnd struct {
	stream runStream
	steps  bool // the client wants them
}

func (r runEnd) send(o *apiv1.OutputChunk) error {
	return r.stream.Send(&execv1.RunResponse{Message: &execv1.RunResponse_Output{Output: o}})
}

func (r runEnd) exited(e *apiv1.ExitStatus, since []*apiv1.TraceStep) error {
	m := &execv1.RunResponse{Message: &execv1.RunResponse_Exited{Exited: e}}
	if r.steps {
		m.Trace = since
	}
	return r.stream.Send(m)
}

func (r runEnd) recv() (input, error) {
	m, err := r.stream.Recv()
	if err != nil {
		return input{}, err
	}
	switch m := m.Message.(type) {
	case *execv1.RunRequest_Stdin:
		return input{stdin: m.Stdin, isStdin: true}, nil
	case *execv1.RunRequest_Resize:
		return input{resize: m.Resize}, nil
	case *execv1.RunRequest_Signal:
		return input{signal: m.Signal}, nil
	}
	return input{}, nil
}

func (s *launchService) Stop(ctx context.Context, req *execv1.StopRequest) (*execv1.StopResponse, error) {
	c, err := s.find(req.Container)
	if err != nil {
		return nil, err
	}
	sig := 0
	if req.Signal != "" {
		if sig, err = launch.Signal(req.Signal); err != nil {
			return nil, err
		}
	}
	var timeout time.Duration // 0: the container's own
	if req.Timeout != nil {
		if timeout = req.Timeout.AsDuration(); timeout == 0 {
			timeout = time.Nanosecond
		}
	}
	i, was, err := s.life.Stop(ctx, c, timeout, sig)
	if err != nil {
		return nil, err
	}
	return &execv1.StopResponse{Id: i.ID, Exit: exitStatus(i.Exit), WasStopped: was}, nil
}

func (s *launchService) Remove(ctx context.Context, req *execv1.RemoveRequest) (*execv1.RemoveResponse, error) {
	c, err := s.find(req.Container)
	if err != nil {
		return nil, err
	}
	id := c.Info().ID
	if err := s.life.Remove(ctx, c, req.Force); err != nil {
		return nil, err
	}
	return &execv1.RemoveResponse{Id: id}, nil
}

func (s *launchService) ListIds(context.Context, *execv1.ListIdsRequest) (*execv1.ListIdsResponse, error) {
	var out execv1.ListIdsResponse
	for _, c := range s.life.Containers.All() {
		i := c.Info()
		out.Entries = append(out.Entries, &execv1.ListIdsResponse_Entry{
			Id: i.ID, Name: i.Name, State: i.State.API(), AutoRemove: i.AutoRemove(), Active: i.State.Active(),
		})
	}
	return &out, nil
}

// exitStatus is nil for a container that has not ended yet.
func exitStatus(e *container.ExitStatus) *apiv1.ExitStatus {
	if e == nil {
		return nil
	}
	return &apiv1.ExitStatus{Code: e.Code, OomKilled: e.OOM, Error: e.Error, ExitedAt: timestamppb.New(e.At)}
}
