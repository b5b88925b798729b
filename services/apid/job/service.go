package job

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
)

// Service is berth.api.v1.JobService over a Table.
type Service struct {
	apiv1.UnimplementedJobServiceServer
	Table *Table
}

const (
	defaultPage = 100
	largestPage = 1000
)

// List pages by the id of the last job of the page before.
func (s *Service) List(_ context.Context, req *apiv1.JobServiceListRequest) (*apiv1.JobServiceListResponse, error) {
	match, err := filter(req.Filters)
	if err != nil {
		return nil, err
	}
	size := int(req.PageSize)
	if size <= 0 {
		size = defaultPage
	}
	size = min(size, largestPage)
	resp := new(apiv1.JobServiceListResponse)
	started := req.PageToken == ""
	for _, j := range s.Table.List() {
		switch {
		case !started:
			started = j.Id == req.PageToken
		case req.Active && Ended(j) || !match(j):
		case len(resp.Jobs) == size:
			resp.NextPageToken = resp.Jobs[size-1].Id
			return resp, nil
		default:
			resp.Jobs = append(resp.Jobs, j)
		}
	}
	if !started {
		return nil, fault.InvalidArgument.Errorf("BAD_PAGE_TOKEN", "page token %q is no longer valid", req.PageToken)
	}
	return resp, nil
}

// filter understands "kind=", "state=" and "target="; values of one key are
// alternatives, different keys must all match.
func filter(filters []string) (func(*apiv1.Job) bool, error) {
	want := map[string][]string{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok || key != "kind" && key != "state" && key != "target" {
			return nil, fault.InvalidArgument.Errorf("BAD_FILTER", "filter %q is none of kind=, state=, target=", f)
		}
		want[key] = append(want[key], value)
	}
	return func(j *apiv1.Job) bool {
		for key, values := range want {
			var have string
			switch key {
			case "kind":
				have = j.Kind
			case "state":
				have = StateName(j.State)
			case "target":
				have = j.Target
			}
			if !slices.Contains(values, have) {
				return false
			}
		}
		return true
	}, nil
}

// StateName is a state in a word: "running".
func StateName(s apiv1.JobState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "JOB_STATE_"))
}

// Get answers with one job.
func (s *Service) Get(_ context.Context, req *apiv1.JobServiceGetRequest) (*apiv1.JobServiceGetResponse, error) {
	j, err := s.Table.Get(req.Id)
	if err != nil {
		return nil, err
	}
	return &apiv1.JobServiceGetResponse{Job: j.Snapshot()}, nil
}

// Watch sends the job at each change; a slow watcher misses states in between,
// never the last.
func (s *Service) Watch(req *apiv1.JobServiceWatchRequest, stream grpc.ServerStreamingServer[apiv1.JobServiceWatchResponse]) error {
	j, err := s.Table.Get(req.Id)
	if err != nil {
		return err
	}
	for {
		j.mu.Lock()
		changed := j.changed
		j.mu.Unlock()
		now := j.Snapshot()
		if err := stream.Send(&apiv1.JobServiceWatchResponse{Job: now}); err != nil {
			return err
		}
		if Ended(now) {
			return nil
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// Cancel cancels a job and answers when it has ended.
func (s *Service) Cancel(ctx context.Context, req *apiv1.JobServiceCancelRequest) (*apiv1.JobServiceCancelResponse, error) {
	j, err := s.Table.Get(req.Id)
	if err != nil {
		return nil, err
	}
	if err := j.Cancel(); err != nil {
		return nil, err
	}
	select {
	case <-j.Done():
		return &apiv1.JobServiceCancelResponse{Job: j.Snapshot()}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
