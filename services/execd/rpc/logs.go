package rpc

import (
	"os"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/execd/container"
	"berth/services/execd/logfile"
)

func (s *containerService) Logs(req *apiv1.LogsRequest, stream grpc.ServerStreamingServer[apiv1.LogsResponse]) error {
	c, err := s.find(req.Container)
	if err != nil {
		return err
	}
	i := c.Info()
	dir := s.life.LogDir(i)
	if dir == "" {
		return fault.FailedPrecondition.Errorf("NO_LOG", "container %s keeps no log (log driver none)", i.Name)
	}
	c.Logs.RLock()
	defer c.Logs.RUnlock()
	ctx := stream.Context()
	q := logfile.Query{Stdout: req.Stdout, Stderr: req.Stderr, Tail: -1}
	if !req.Stdout && !req.Stderr {
		q.Stdout, q.Stderr = true, true
	}
	if req.Tail != nil && *req.Tail >= 0 {
		q.Tail = *req.Tail
	}
	if req.Since != nil {
		q.Since = req.Since.AsTime()
	}
	if req.Until != nil {
		q.Until = req.Until.AsTime()
	}
	if req.Follow {
		if c.Info().State != container.Gone {
			// The folder of a silent log does not exist yet, and what does not
			// exist cannot be watched. While we hold Logs nobody removes it.
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
		}
		wake, stop := s.watcher.Watch(dir)
		defer stop()
		run := i.Runs
		q.Follow, q.Wake = true, wake
		q.Done = c.Done(ctx, func(i *container.Info) bool {
			// A created container is waited for; one that restarts goes on.
			return i.Runs != run && i.State != container.Restarting && i.State != container.Starting && !i.State.Up() ||
				!i.State.Active() && i.State != container.Created
		})
	}
	return logfile.Read(ctx, dir, q, func(ch logfile.Chunk) error {
		return stream.Send(&apiv1.LogsResponse{
			Stream: apiv1.OutputChunk_Stream(ch.Stream), Time: timestamppb.New(ch.Time), Line: ch.Data, Partial: ch.Partial,
		})
	})
}
