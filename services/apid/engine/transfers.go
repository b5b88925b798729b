package engine

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	apiv1 "berth/proto/berth/api/v1"
	"berth/services/apid/job"
)

// Registries is those methods of RegistryService that are jobs.
type Registries struct {
	apiv1.UnimplementedRegistryServiceServer
	*Engine
}

// Copy is RegistryService.Copy. The copying goes on when the client leaves.
func (s *Registries) Copy(req *apiv1.RegistryServiceCopyRequest, client grpc.ServerStreamingServer[apiv1.RegistryServiceCopyResponse]) error {
	begin := func(ctx context.Context) (grpc.ServerStreamingClient[apiv1.RegistryServiceCopyResponse], error) {
		return s.Backends.Registries().Copy(ctx, req)
	}
	result, err := transferJob[apiv1.RegistryServiceCopyResponse_Result](s.Engine, client, "copy", req.Source+" to "+req.Target, begin, func(p *apiv1.JobProgress) error {
		return client.Send(&apiv1.RegistryServiceCopyResponse{Message: &apiv1.RegistryServiceCopyResponse_Progress{Progress: p}})
	})
	if err != nil {
		return err
	}
	return client.Send(&apiv1.RegistryServiceCopyResponse{Message: &apiv1.RegistryServiceCopyResponse_Result_{Result: result}})
}

// transferJob runs one of imaged's long streams, which begin opens, as a job that outlives its client. tell passes
// progress on to the client. The digest in the result is kept with the job.
func transferJob[Result, Response any, M interface {
	*Response
	transfer[Result]
}](e *Engine, client grpc.ServerStream, kind, subject string, begin func(context.Context) (grpc.ServerStreamingClient[Response], error), tell func(*apiv1.JobProgress) error) (*Result, error) {
	ctx := client.Context()
	var result *Result
	j, err := e.Jobs.Go(ctx, spec(ctx, kind, subject), func(ctx context.Context, j *job.Job) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Duration(e.Config.Apid.PullTimeout))
		defer cancel()
		err := j.Step("imaged "+kind, "imaged", func() error {
			stream, err := begin(ctx)
			if err != nil {
				return err
			}
			result, err = drain(j, func() (M, error) { return stream.Recv() })
			return err
		})
		digest := ""
		if r, ok := any(result).(interface{ GetDigest() string }); ok {
			digest = r.GetDigest()
		}
		return digest, because(ctx, err)
	})
	if err != nil {
		return nil, err
	}
	client.SetHeader(metadata.Pairs(JobIDHeader, j.ID()))
	err = j.Follow(ctx, tell)
	return result, err
}
