package engine

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	apiv1 "berth/proto/berth/api/v1"
	imagev1 "berth/proto/berth/image/v1"
	"berth/services/apid/job"
)

// Commit is ContainerService.Commit. Unless asked otherwise a running container
// is paused meanwhile, so that the image has all its files as they were at one
// moment.
func (s *Containers) Commit(req *apiv1.CommitRequest, client grpc.ServerStreamingServer[apiv1.CommitResponse]) error {
	c, err := s.inspect(client.Context(), req.Container)
	if err != nil {
		return err
	}
	j, ctx, err := s.Jobs.Begin(client.Context(), spec(client.Context(), "commit", c.Name))
	if err != nil {
		return err
	}
	client.SetHeader(metadata.Pairs(JobIDHeader, j.ID()))
	defer s.locks.lock(c.Id)()
	result, err := s.commit(ctx, j, c, req, client)
	err = because(ctx, err)
	j.End(result.GetImageId(), err)
	if err != nil {
		return err
	}
	return client.Send(&apiv1.CommitResponse{Message: &apiv1.CommitResponse_Result_{Result: result}})
}

// commit needs the container's lock.
func (e *Engine) commit(ctx context.Context, j *job.Job, c *apiv1.Container, req *apiv1.CommitRequest, client grpc.ServerStreamingServer[apiv1.CommitResponse]) (*apiv1.CommitResponse_Result, error) {
	if c.State == apiv1.ContainerState_CONTAINER_STATE_RUNNING && !req.NoPause {
		unpause, err := e.pause(ctx, j, c.Id)
		if err != nil {
			return nil, err
		}
		defer unpause()
	}
	var result *apiv1.CommitResponse_Result
	err := j.Step("imaged commit", "imaged", func() error {
		stream, err := e.Backends.Store().Commit(ctx, &imagev1.CommitRequest{
			Commit: &apiv1.CommitRequest{Container: c.Id, Reference: req.Reference, Changes: req.Changes, Message: req.Message, Author: req.Author},
			Config: startedWith(c.Spec), CreatedBy: strings.Join(c.Command, " "),
		})
		if err != nil {
			return err
		}
		result, err = drain(j, func() (*imagev1.CommitResponse, error) {
			m, err := stream.Recv()
			if p := m.GetProgress(); p != nil {
				err = errors.Join(err, client.Send(&apiv1.CommitResponse{Message: &apiv1.CommitResponse_Progress{Progress: p}}))
			}
			return m, err
		})
		return err
	})
	return result, err
}

// pause pauses a container; the function it gives ends that.
func (e *Engine) pause(ctx context.Context, j *job.Job, id string) (unpause func(), err error) {
	err = j.Step("execd pause", "execd", func() error {
		ctx, cancel := context.WithTimeout(ctx, callTime)
		defer cancel()
		_, err := e.Backends.Containers().Pause(ctx, &apiv1.PauseRequest{Container: id})
		return err
	})
	return func() {
		ctx, cancel := lasting(ctx)
		defer cancel()
		err := j.Step("execd unpause", "execd", func() error {
			_, err := e.Backends.Containers().Unpause(ctx, &apiv1.UnpauseRequest{Container: id})
			return err
		})
		if err != nil {
			e.Log.Error("unpause a container after a commit", "container", id, "error", err)
		}
	}, err
}

// startedWith is the part of a container's specification that its image could
// have had.
func startedWith(s *apiv1.ContainerSpec) *apiv1.ImageConfig {
	return &apiv1.ImageConfig{
		Entrypoint: s.GetEntrypoint(), Cmd: s.GetArgs(), Env: s.GetEnv(), WorkingDir: s.GetWorkingDir(), User: s.GetUser(),
		Labels: s.GetLabels(), StopSignal: s.GetStopSignal(),
	}
}

// Export is ContainerService.Export.
func (s *Containers) Export(req *apiv1.ExportRequest, client grpc.ServerStreamingServer[apiv1.ExportResponse]) error {
	c, err := s.inspect(client.Context(), req.Container)
	if err != nil {
		return err
	}
	stream, err := s.Backends.Store().Export(client.Context(), &imagev1.ExportRequest{ContainerId: c.Id})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := client.Send(&apiv1.ExportResponse{Data: m.Data}); err != nil {
			return err
		}
	}
}
