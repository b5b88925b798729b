package daemon

import (
	"context"
	"os"
	"runtime"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/version"
	apiv1 "berth/proto/berth/api/v1"
)

// RegisterInfo serves the one method of SystemService that every backend
// answers itself, GetDaemonInfo. fill adds the daemon's own facts, counters and
// warnings; its maps are there already.
func RegisterInfo(g *grpc.Server, name string, fill func(*apiv1.DaemonInfo)) {
	apiv1.RegisterSystemServiceServer(g, &infoServer{name: name, began: time.Now(), fill: fill})
}

type infoServer struct {
	apiv1.UnimplementedSystemServiceServer
	name  string
	began time.Time
	fill  func(*apiv1.DaemonInfo)
}

// GetDaemonInfo is SystemService.GetDaemonInfo.
func (s *infoServer) GetDaemonInfo(context.Context, *apiv1.SystemServiceGetDaemonInfoRequest) (*apiv1.SystemServiceGetDaemonInfoResponse, error) {
	info := &apiv1.DaemonInfo{
		Name: s.name, Version: version.Number(), Pid: int32(os.Getpid()), StartedAt: timestamppb.New(s.began),
		Uptime: durationpb.New(time.Since(s.began)), Status: "serving", Uid: uint32(os.Geteuid()),
		Facts: map[string]string{}, Counters: map[string]int64{"goroutines": int64(runtime.NumGoroutine())},
	}
	s.fill(info)
	return &apiv1.SystemServiceGetDaemonInfoResponse{Info: info}, nil
}
