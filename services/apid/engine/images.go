package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/apid/job"
)

// Images is those methods of ImageService that are jobs.
type Images struct {
	apiv1.UnimplementedImageServiceServer
	*Engine
}

// transfer is a message of one of imaged's long streams: progress, or, last, the
// result.
type transfer[R any] interface {
	GetProgress() *apiv1.JobProgress
	GetResult() *R
}

// drain reads such a stream to its end and returns the result.
func drain[M transfer[R], R any](j *job.Job, recv func() (M, error)) (*R, error) {
	var result *R
	for {
		m, err := recv()
		switch {
		case errors.Is(err, io.EOF) && result == nil:
			return nil, fault.Internal.Errorf("STREAM_CUT", "imaged ended the stream without a result")
		case errors.Is(err, io.EOF):
			return result, nil
		case err != nil:
			return nil, err
		}
		if p := m.GetProgress(); p != nil {
			j.Progress(p)
		}
		if r := m.GetResult(); r != nil {
			result = r
		}
	}
}

func (e *Engine) pull(ctx context.Context, j *job.Job, req *apiv1.ImageServicePullRequest) (*apiv1.ImageServicePullResponse_Result, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(e.Config.Apid.PullTimeout))
	defer cancel()
	var result *apiv1.ImageServicePullResponse_Result
	err := j.Step("imaged pull", "imaged", func() error {
		stream, err := e.Backends.Images().Pull(ctx, req)
		if err != nil {
			return err
		}
		result, err = drain(j, stream.Recv)
		return err
	})
	return result, err
}

// Pull is ImageService.Pull. The pull goes on when the client leaves.
func (s *Images) Pull(req *apiv1.ImageServicePullRequest, client grpc.ServerStreamingServer[apiv1.ImageServicePullResponse]) error {
	ctx := client.Context()
	var result *apiv1.ImageServicePullResponse_Result
	j, err := s.Jobs.Go(ctx, spec(ctx, "pull", req.Reference), func(ctx context.Context, j *job.Job) (_ string, err error) {
		result, err = s.pull(ctx, j, req)
		return result.GetDigest(), because(ctx, err)
	})
	if err != nil {
		return err
	}
	client.SetHeader(metadata.Pairs(JobIDHeader, j.ID()))
	err = j.Follow(ctx, func(p *apiv1.JobProgress) error {
		return client.Send(&apiv1.ImageServicePullResponse{Message: &apiv1.ImageServicePullResponse_Progress{Progress: p}})
	})
	if err != nil {
		return err
	}
	return client.Send(&apiv1.ImageServicePullResponse{Message: &apiv1.ImageServicePullResponse_Result_{Result: result}})
}

// Push is ImageService.Push. The push goes on when the client leaves.
func (s *Images) Push(req *apiv1.ImageServicePushRequest, client grpc.ServerStreamingServer[apiv1.ImageServicePushResponse]) error {
	begin := func(ctx context.Context) (grpc.ServerStreamingClient[apiv1.ImageServicePushResponse], error) {
		return s.Backends.Images().Push(ctx, req)
	}
	result, err := transferJob[apiv1.ImageServicePushResponse_Result](s.Engine, client, "push", req.Reference, begin, func(p *apiv1.JobProgress) error {
		return client.Send(&apiv1.ImageServicePushResponse{Message: &apiv1.ImageServicePushResponse_Progress{Progress: p}})
	})
	if err != nil {
		return err
	}
	return client.Send(&apiv1.ImageServicePushResponse{Message: &apiv1.ImageServicePushResponse_Result_{Result: result}})
}

// Import is ImageService.Import. The data comes from the client, so the job
// ends with it.
func (s *Images) Import(client grpc.BidiStreamingServer[apiv1.ImageServiceImportRequest, apiv1.ImageServiceImportResponse]) error {
	first, err := client.Recv()
	if err != nil {
		return err
	}
	if first.GetHeader() == nil {
		return fault.InvalidArgument.Errorf("HEADER_EXPECTED", "the first message of Import must be the header")
	}
	j, ctx, err := s.Jobs.Begin(client.Context(), spec(client.Context(), "import", first.GetHeader().Reference))
	if err != nil {
		return err
	}
	client.SetHeader(metadata.Pairs(JobIDHeader, j.ID()))
	var result *apiv1.ImageServiceImportResponse_Result
	err = j.Step("imaged import", "imaged", func() (err error) {
		result, err = s.relayImport(ctx, first, client)
		return err
	})
	err = because(ctx, err)
	j.End(result.GetImageId(), err)
	return err
}

// relayImport passes the archive on. Until all of it was passed on the end of ctx
// ends the import, and imaged, which has no whole archive, makes nothing. After
// that it makes the image whoever leaves: nobody could say whether it was there.
func (s *Images) relayImport(ctx context.Context, first *apiv1.ImageServiceImportRequest, client grpc.BidiStreamingServer[apiv1.ImageServiceImportRequest, apiv1.ImageServiceImportResponse]) (*apiv1.ImageServiceImportResponse_Result, error) {
	outward, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(s.Config.Apid.PullTimeout))
	defer cancel()
	imaged, err := s.Backends.Images().Import(outward)
	if err != nil {
		return nil, err
	}
	release := context.AfterFunc(ctx, cancel)
	defer release()
	go func() {
		for m := first; ; {
			if imaged.Send(m) != nil {
				return // Recv has the reason
			}
			var err error
			if m, err = client.Recv(); errors.Is(err, io.EOF) && release() {
				imaged.CloseSend()
				return
			} else if err != nil {
				cancel() // half an archive must not become an image
				return
			}
		}
	}()
	var last *apiv1.ImageServiceImportResponse
	for {
		m, err := imaged.Recv()
		switch {
		case errors.Is(err, io.EOF) && last == nil:
			return nil, fault.Internal.Errorf("STREAM_CUT", "imaged ended the stream without a result")
		case errors.Is(err, io.EOF):
			client.Send(last) // who has left meanwhile has imported it all the same
			return last.GetResult(), nil
		case err != nil:
			return nil, err
		case m.GetResult() != nil:
			last = m
		default:
			client.Send(m) // progress is nothing to fail for
		}
	}
}

// releaseGone makes sure that no container that is gone still holds its image: what an
// exit leaves is removed after the client was told of it. What fails here matters only
// to what follows, which will say so.
func (s *Images) releaseGone(ctx context.Context, j *job.Job) {
	j.Step("release", "", func() error {
		if err := s.Reconcile(ctx); err != nil {
			s.Log.Debug("not reconciled", "error", err)
		}
		return nil
	})
}

// Remove is ImageService.Remove.
func (s *Images) Remove(ctx context.Context, req *apiv1.ImageServiceRemoveRequest) (*apiv1.ImageServiceRemoveResponse, error) {
	return detachedJob(ctx, s.Engine, spec(ctx, "rmi", req.Image),
		func(ctx context.Context, j *job.Job) (resp *apiv1.ImageServiceRemoveResponse, result string, err error) {
			remove := func() error {
				ctx, cancel := context.WithTimeout(ctx, launchTime)
				defer cancel()
				resp, err = s.Backends.Images().Remove(ctx, req)
				return err
			}
			if req.Force { // which would take the names and leave the image
				s.releaseGone(ctx, j)
			}
			err = j.Step("imaged remove", "imaged", remove)
			if err != nil && fault.ReasonOf(err) == "IMAGE_IN_USE" && !req.Force {
				s.releaseGone(ctx, j)
				err = j.Step("imaged remove", "imaged", remove)
			}
			return resp, fmt.Sprintf("%d images", len(resp.GetDeleted())), err
		})
}

// Prune is ImageService.Prune.
func (s *Images) Prune(ctx context.Context, req *apiv1.ImageServicePruneRequest) (*apiv1.ImageServicePruneResponse, error) {
	return detachedJob(ctx, s.Engine, spec(ctx, "prune", "images"),
		func(ctx context.Context, j *job.Job) (resp *apiv1.ImageServicePruneResponse, result string, err error) {
			s.releaseGone(ctx, j)
			err = j.Step("imaged prune", "imaged", func() error {
				ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
				defer cancel()
				resp, err = s.Backends.Images().Prune(ctx, req)
				return err
			})
			return resp, fmt.Sprintf("%d images", len(resp.GetDeleted())), err
		})
}
