package rpc

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/fault"
	"berth/internal/trace"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/execd/container"
	"berth/services/execd/launch"
	"berth/services/execd/logfile"
)

type containerService struct {
	apiv1.UnimplementedContainerServiceServer
	*Server
}

func (s *containerService) Kill(ctx context.Context, req *apiv1.KillRequest) (*apiv1.KillResponse, error) {
	c, err := s.find(req.Container)
	if err != nil {
		return nil, err
	}
	sig := 9
	if req.Signal != "" {
		if sig, err = launch.Signal(req.Signal); err != nil {
			return nil, err
		}
	}
	return &apiv1.KillResponse{}, s.life.Kill(ctx, c, sig)
}

func (s *containerService) Pause(_ context.Context, req *apiv1.PauseRequest) (*apiv1.PauseResponse, error) {
	c, err := s.find(req.Container)
	if err != nil {
		return nil, err
	}
	return &apiv1.PauseResponse{}, s.life.Pause(c)
}

func (s *containerService) Unpause(_ context.Context, req *apiv1.UnpauseRequest) (*apiv1.UnpauseResponse, error) {
	c, err := s.find(req.Container)
	if err != nil {
		return nil, err
	}
	return &apiv1.UnpauseResponse{}, s.life.Unpause(c)
}

func (s *containerService) Rename(_ context.Context, req *apiv1.RenameRequest) (*apiv1.RenameResponse, error) {
	c, err := s.find(req.Container)
	if err != nil {
		return nil, err
	}
	return &apiv1.RenameResponse{}, s.life.Rename(c, req.Name)
}

func (s *containerService) Update(_ context.Context, req *apiv1.UpdateRequest) (*apiv1.UpdateResponse, error) {
	c, err := s.find(req.Container)
	if err != nil {
		return nil, err
	}
	return &apiv1.UpdateResponse{}, s.life.Update(c, req.Resources, req.Restart)
}

// Wait blocks until the condition holds.
func (s *containerService) Wait(ctx context.Context, req *apiv1.WaitRequest) (*apiv1.WaitResponse, error) {
	c, err := s.find(req.Container)
	if err != nil {
		return nil, err
	}
	run := c.Info().Runs
	var holds func(*container.Info) bool
	switch req.Condition {
	case apiv1.WaitCondition_WAIT_CONDITION_UNSPECIFIED:
		holds = func(i *container.Info) bool { return !i.State.Active() || i.Runs != run }
	case apiv1.WaitCondition_WAIT_CONDITION_NEXT_EXIT:
		holds = func(i *container.Info) bool { return i.Runs != run || i.State == container.Gone }
	case apiv1.WaitCondition_WAIT_CONDITION_REMOVED:
		holds = func(i *container.Info) bool { return i.State == container.Gone }
	default:
		return nil, fault.InvalidArgument.Errorf("WAIT_CONDITION", "wait condition %d is not known", req.Condition)
	}
	i, err := c.Wait(ctx, holds)
	if err != nil {
		return nil, err
	}
	e := exitStatus(i.Exit)
	if e == nil {
		e = new(apiv1.ExitStatus)
	}
	return &apiv1.WaitResponse{Exit: e}, nil
}

func (s *containerService) Inspect(_ context.Context, req *apiv1.InspectRequest) (*apiv1.InspectResponse, error) {
	c, err := s.find(req.Container)
	if err != nil {
		return nil, err
	}
	i := c.Info()
	out := &apiv1.Container{
		Id: i.ID, Spec: i.Spec, Name: i.Name, ImageId: i.ImageID, Command: i.Command, Env: i.Env, WorkingDir: i.Cwd,
		User: launch.User(i.Spec, i.Image), CreatedAt: timestamppb.New(i.CreatedAt), State: i.State.API(), Pid: int32(i.Pid),
		Exit: exitStatus(i.Exit), RestartCount: i.RestartCount, Mounts: i.Mounts, Hostname: i.Hostname, Warnings: i.Warnings,
		Trace: trace.Settle(i.Trace, trace.End(i.Trace)), Labels: labels(i), CreatedBy: i.CreatedBy,
	}
	if !i.StartedAt.IsZero() {
		out.StartedAt = timestamppb.New(i.StartedAt)
	}
	if i.State.Active() {
		out.Endpoints, out.CgroupPaths, out.Execs = i.Endpoints, i.Cgroups, s.life.Execs(i.ID)
	}
	if dir := s.life.LogDir(i); dir != "" {
		out.LogPath = logfile.Current(dir)
	}
	return &apiv1.InspectResponse{Container: out}, nil
}

// labels are the image's with the user's on top.
func labels(i *container.Info) map[string]string {
	out := make(map[string]string, len(i.Spec.GetLabels()))
	for k, v := range i.Image.GetLabels() {
		out[k] = v
	}
	for k, v := range i.Spec.GetLabels() {
		out[k] = v
	}
	return out
}
