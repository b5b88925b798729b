package engine

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/version"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	imagev1 "berth/proto/berth/image/v1"
	"berth/services/apid/backend"
)

// apiVersion is that of berth.api.v1: its minor number grows with additions.
const apiVersion = "1.0"

// System is SystemService.
type System struct {
	apiv1.UnimplementedSystemServiceServer
	*Engine
}

// Version is SystemService.Version.
func (s *System) Version(ctx context.Context, _ *apiv1.SystemServiceVersionRequest) (*apiv1.SystemServiceVersionResponse, error) {
	return &apiv1.SystemServiceVersionResponse{
		Version:    version.Number(),
		Commit:     version.Commit(),
		GoVersion:  runtime.Version(),
		ApiVersion: apiVersion,
		Os:         runtime.GOOS,
		Arch:       runtime.GOARCH,
		Kernel:     kernel(),
		Daemons:    s.daemons(ctx, known),
	}, nil
}

// GetDaemonInfo is SystemService.GetDaemonInfo, of apid itself.
func (s *System) GetDaemonInfo(context.Context, *apiv1.SystemServiceGetDaemonInfoRequest) (*apiv1.SystemServiceGetDaemonInfoResponse, error) {
	return &apiv1.SystemServiceGetDaemonInfoResponse{Info: s.self()}, nil
}

func (s *System) self() *apiv1.DaemonInfo {
	jobs := s.Jobs.List()
	active := 0
	for _, j := range jobs {
		if j.State == apiv1.JobState_JOB_STATE_RUNNING {
			active++
		}
	}
	return &apiv1.DaemonInfo{
		Name:      "apid",
		Version:   version.Number(),
		Pid:       int32(os.Getpid()),
		StartedAt: timestamppb.New(s.begun),
		Uptime:    durationpb.New(time.Since(s.begun)),
		Status:    "serving",
		Uid:       uint32(os.Geteuid()),
		Counters:  map[string]int64{"jobs": int64(len(jobs)), "active_jobs": int64(active), "goroutines": int64(runtime.NumGoroutine())},
	}
}

// known is what a daemon said of itself when it came up, without what has changed since; nil when it must be asked.
func known(b *backend.Backend) *apiv1.DaemonInfo {
	said := b.Said()
	if said == nil {
		return nil
	}
	return &apiv1.DaemonInfo{
		Name: said.Name, Version: said.Version, Pid: said.Pid, Uid: said.Uid, Status: said.Status,
		StartedAt: said.StartedAt, Uptime: durationpb.New(time.Since(said.StartedAt.AsTime())),
	}
}

// asked is nothing: the daemon must be asked.
func asked(*backend.Backend) *apiv1.DaemonInfo { return nil }

// daemons is each daemon's view: what already knows of it, or else what it answers; one that does not answer says why.
func (s *System) daemons(ctx context.Context, already func(*backend.Backend) *apiv1.DaemonInfo) []*apiv1.DaemonInfo {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	infos := []*apiv1.DaemonInfo{s.self()}
	for _, b := range s.Backends.Each() {
		infos = append(infos, &apiv1.DaemonInfo{Name: b.Name})
	}
	var group sync.WaitGroup
	for i, b := range s.Backends.Each() {
		if info := already(b); info != nil {
			infos[i+1] = info
			continue
		}
		group.Go(func() {
			resp, err := apiv1.NewSystemServiceClient(b.Conn).GetDaemonInfo(ctx, new(apiv1.SystemServiceGetDaemonInfoRequest))
			switch {
			case err != nil:
				infos[i+1].Status = err.Error()
			case resp.Info != nil:
				infos[i+1] = resp.Info
				if infos[i+1].Status == "" {
					infos[i+1].Status = "serving"
				}
			}
		})
	}
	group.Wait()
	return infos
}

// Info is SystemService.Info. What an absent daemon would know stays zero, and a
// warning says so.
func (s *System) Info(ctx context.Context, _ *apiv1.SystemServiceInfoRequest) (*apiv1.SystemServiceInfoResponse, error) {
	info := &apiv1.SystemServiceInfoResponse{
		Id:       s.ID,
		Version:  version.Number(),
		Kernel:   kernel(),
		Os:       osName(),
		Arch:     runtime.GOARCH,
		Cpus:     int32(runtime.NumCPU()),
		Root:     s.Config.Root,
		Run:      s.Config.Run,
		Security: []string{"seccomp"},
	}
	info.Hostname, _ = os.Hostname()
	var memory syscall.Sysinfo_t
	if syscall.Sysinfo(&memory) == nil {
		info.MemoryBytes = int64(memory.Totalram) * int64(memory.Unit)
	}
	info.Daemons = s.daemons(ctx, asked)
	for _, d := range info.Daemons {
		if d.Status != "serving" {
			info.Warnings = append(info.Warnings, d.Name+": "+d.Status)
		}
		for _, w := range d.Warnings {
			info.Warnings = append(info.Warnings, d.Name+": "+w)
		}
		switch d.Name {
		case "imaged":
			info.GraphDriver = d.Facts["driver"]
			info.Images = int32(d.Counters["images"])
		case "execd":
			info.CgroupLayout = d.Facts["cgroup"]
			if v := d.Facts["security"]; v != "" {
				info.Security = strings.Fields(v)
			}
		}
	}
	if known, err := s.Backends.Launch().ListIds(ctx, new(execv1.ListIdsRequest)); err == nil {
		for _, c := range known.Entries {
			info.Containers++
			switch c.State {
			case apiv1.ContainerState_CONTAINER_STATE_RUNNING, apiv1.ContainerState_CONTAINER_STATE_RESTARTING:
				info.ContainersRunning++
			case apiv1.ContainerState_CONTAINER_STATE_PAUSED:
				info.ContainersPaused++
			default:
				info.ContainersStopped++
			}
		}
	}
	return info, nil
}

// DiskUsage is SystemService.DiskUsage.
func (s *System) DiskUsage(ctx context.Context, _ *apiv1.SystemServiceDiskUsageRequest) (*apiv1.SystemServiceDiskUsageResponse, error) {
	usage, err := s.Backends.Store().Usage(ctx, new(imagev1.UsageRequest))
	if err != nil {
		return nil, err
	}
	images := &apiv1.SystemServiceDiskUsageResponse_Item{Kind: "images", Total: usage.Images, SizeBytes: usage.BlobBytes + usage.LayerBytes}
	for token := ""; ; {
		page, err := s.Backends.Images().List(ctx, &apiv1.ImageServiceListRequest{PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, i := range page.Images {
			if i.Containers > 0 {
				images.Active++
			} else {
				images.ReclaimableBytes += i.SizeBytes
			}
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	images.ReclaimableBytes = min(images.ReclaimableBytes, images.SizeBytes) // images share layers

	containers := &apiv1.SystemServiceDiskUsageResponse_Item{Kind: "containers", SizeBytes: usage.RootfsBytes}
	known, err := s.Backends.Launch().ListIds(ctx, new(execv1.ListIdsRequest))
	if err != nil {
		return nil, err
	}
	for _, c := range known.Entries {
		containers.Total++
		if c.Active {
			containers.Active++
		}
	}
	if containers.Active == 0 {
		containers.ReclaimableBytes = containers.SizeBytes
	}

	volumes := &apiv1.SystemServiceDiskUsageResponse_Item{Kind: "volumes", Total: usage.Volumes, SizeBytes: usage.VolumeBytes}
	for token := ""; ; {
		page, err := s.Backends.Volumes().List(ctx, &apiv1.VolumeServiceListRequest{PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, v := range page.Volumes {
			if len(v.Containers) > 0 {
				volumes.Active++
			}
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if volumes.Active == 0 {
		volumes.ReclaimableBytes = volumes.SizeBytes
	}
	return &apiv1.SystemServiceDiskUsageResponse{Items: []*apiv1.SystemServiceDiskUsageResponse_Item{images, containers, volumes}}, nil
}

// kernel is the release of the running kernel. Asked by uname(2): apid's unit hides /proc/sys from it.
func kernel() string {
	var u syscall.Utsname
	if syscall.Uname(&u) != nil {
		return ""
	}
	var release []byte
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	return string(release)
}

// osName is what os-release(5) calls the host.
func osName() string {
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				if unquoted, err := strconv.Unquote(value); err == nil {
					return unquoted
				}
				return value
			}
		}
	}
	return runtime.GOOS
}
