package rpc

import (
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/libcontainer/cgroup"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/execd/container"
	"berth/services/execd/stats"
)

// statsInterval is between two samples.
const statsInterval = time.Second

func (s *containerService) Stats(req *apiv1.StatsRequest, stream grpc.ServerStreamingServer[apiv1.StatsResponse]) error {
	var named []*container.Container
	for _, ref := range req.Containers {
		c, err := s.find(ref)
		if err != nil {
			return err
		}
		named = append(named, c)
	}
	sampler := stats.New()
	defer sampler.Close()
	ctx := stream.Context()
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	// The first sample has nothing to compare with: its processor percentage
	// would be 0. One that is asked for once waits for the second.
	s.sample(sampler, named, req)
	for first := true; ; first = false {
		if first && req.Stream {
			// Show something at once.
		} else {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		list := s.sample(sampler, named, req)
		if err := stream.Send(&apiv1.StatsResponse{Stats: list}); err != nil {
			return err
		}
		if !req.Stream || len(named) > 0 && allEnded(named) {
			return nil
		}
	}
}

func allEnded(list []*container.Container) bool {
	for _, c := range list {
		if c.Info().State.Active() {
			return false
		}
	}
	return true
}

func (s *containerService) sample(sampler *stats.Sampler, named []*container.Container, req *apiv1.StatsRequest) []*apiv1.ContainerStats {
	list := named
	if len(named) == 0 {
		list = s.life.Containers.All()
	}
	var out []*apiv1.ContainerStats
	for _, c := range list {
		i := c.Info()
		if !i.State.Up() {
			if len(named) > 0 || req.All {
				out = append(out, &apiv1.ContainerStats{Id: i.ID, Name: i.Name, Time: timestamppb.Now()})
			}
			continue
		}
		got, err := sampler.Sample(i.Cgroup, i.Pid, func() (*cgroup.Group, error) { return s.life.Group(i) })
		if err != nil {
			if !errors.Is(err, cgroup.ErrNotFound) {
				s.log.Debug("read statistics", "container", i.ID, "error", err)
			}
			continue
		}
		out = append(out, statsMessage(i, got))
	}
	return out
}

func statsMessage(i *container.Info, s *stats.Sample) *apiv1.ContainerStats {
	return &apiv1.ContainerStats{
		Id: i.ID, Name: i.Name, Time: timestamppb.New(s.At),
		CpuPercent: s.CPUPercent, CpuTime: durationpb.New(s.Group.CPU.Usage), CpuThrottledTime: durationpb.New(s.Group.CPU.ThrottledTime),
		MemoryBytes: int64(s.Group.Memory.WorkingSet), MemoryLimitBytes: int64(s.MemoryLimit), MemoryCacheBytes: int64(s.Group.Memory.Cache),
		NetRxBytes: int64(s.RxBytes), NetTxBytes: int64(s.TxBytes),
		BlockReadBytes: int64(s.Group.IO.ReadBytes), BlockWriteBytes: int64(s.Group.IO.WriteBytes),
		Pids: int64(s.Group.Pids.Current), PidsLimit: int64(s.Group.Pids.Limit), OomKills: int64(s.OOMKills),
	}
}
