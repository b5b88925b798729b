// Package rpc answers gRPC for execd: it reads requests, calls package
// lifecycle, and writes answers. Of berth.api.v1 it has exactly the methods that
// apid forwards.
package rpc

import (
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"berth/internal/daemon"
	"berth/internal/events"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	"berth/services/execd/container"
	"berth/services/execd/lifecycle"
	"berth/services/execd/logfile"
)

// Server has execd's services.
type Server struct {
	log      hclog.Logger
	life     *lifecycle.Manager
	events   *events.Ring
	watcher  *logfile.Watcher
	awaiting awaiting
}

// New makes a server over a manager.
func New(life *lifecycle.Manager, ring *events.Ring, log hclog.Logger) (*Server, error) {
	w, err := logfile.NewWatcher()
	if err != nil {
		return nil, err
	}
	return &Server{log: log, life: life, events: ring, watcher: w}, nil
}

// Close ends the watching of logs.
func (s *Server) Close() error { return s.watcher.Close() }

// Register adds the services to a gRPC server.
func (s *Server) Register(g *grpc.Server) {
	execv1.RegisterLaunchServiceServer(g, &launchService{Server: s})
	apiv1.RegisterContainerServiceServer(g, &containerService{Server: s})
	events.Register(g, s.events)
	daemon.RegisterInfo(g, "execd", s.describe)
}

// Timeouts of calls that wait for a container to end.
func Timeouts() map[string]time.Duration {
	return map[string]time.Duration{
		execv1.LaunchService_Stop_FullMethodName:   0,
		execv1.LaunchService_Remove_FullMethodName: 0,
		apiv1.ContainerService_Wait_FullMethodName: 0,
	}
}

func (s *Server) find(ref string) (*container.Container, error) { return s.life.Containers.Find(ref) }

// describe fills in what execd knows of itself.
func (s *Server) describe(info *apiv1.DaemonInfo) {
	counters := info.Counters
	for _, state := range []string{"containers", "running", "paused", "stopped"} {
		counters[state] = 0
	}
	for _, c := range s.life.Containers.All() {
		counters["containers"]++
		switch st := c.Info().State; {
		case st == container.Paused:
			counters["paused"]++
		case st.Active():
			counters["running"]++
		default:
			counters["stopped"]++
		}
	}
	info.Facts["cgroup"] = s.life.Layout().Mode.String()
	// apid compares these with the events it has.
	info.Facts["event_sequence"] = strconv.FormatUint(s.events.Last(), 10)
	info.Facts["monitor_pid"] = strconv.Itoa(s.life.Keeper().MonitorPid())
}
