package apid

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/config"
	"berth/internal/daemon"
	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	imagev1 "berth/proto/berth/image/v1"
	networkv1 "berth/proto/berth/network/v1"
)

// The fakes behave: they keep state across restarts of their servers, refuse
// what the real ones refuse, and undo what a vanished caller did not see begin.

// server is one fake daemon's socket, which can go away and come back.
type server struct {
	t        testing.TB
	path     string
	register func(*grpc.Server)
	cancel   context.CancelFunc
	done     chan error
}

func (s *server) start() {
	s.t.Helper()
	os.Remove(s.path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: s.path})
	if err != nil {
		s.t.Fatal(err)
	}
	gs := daemon.NewServer(daemon.ServerOptions{Log: hclog.NewNullLogger(), Rule: func(daemon.Peer) error { return nil }})
	s.register(gs.GRPC)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan error, 1)
	go func() { s.done <- gs.Serve(ctx, l) }()
}

func (s *server) stop() {
	if s.cancel != nil {
		s.cancel()
		<-s.done
		s.cancel = nil
	}
}

// Each service of a daemon is a type over the daemon's state.
type (
	registryService struct {
		apiv1.UnimplementedRegistryServiceServer
		*fakeImaged
	}
	rootfsService struct {
		imagev1.UnimplementedRootfsServiceServer
		*fakeImaged
	}
	imageService struct {
		apiv1.UnimplementedImageServiceServer
		*fakeImaged
	}
	volumeService struct {
		apiv1.UnimplementedVolumeServiceServer
		*fakeImaged
	}
	storeService struct {
		imagev1.UnimplementedStoreServiceServer
		*fakeImaged
	}
	endpointService struct {
		networkv1.UnimplementedEndpointServiceServer
		*fakeNetd
	}
	networkService struct {
		apiv1.UnimplementedNetworkServiceServer
		*fakeNetd
	}
	launchService struct {
		execv1.UnimplementedLaunchServiceServer
		*fakeExecd
	}
	containerService struct {
		apiv1.UnimplementedContainerServiceServer
		*fakeExecd
	}
	eventService struct {
		apiv1.UnimplementedEventServiceServer
		*fakeExecd
	}
)

type fakeImaged struct {
	server

	mu       sync.Mutex
	images   map[string]bool
	rootfs   map[string]string // container -> image
	prepared map[string]*imagev1.PrepareRequest
	volumes  []string // that images declare
	pulls    int
	pullGate chan struct{} // a pull ends when it is closed; nil: at once
	pullLost chan struct{} // gets one for each pull given up
	syncing  chan error    // what comes out of it a Sync answers; nil: it succeeds at once
}

func (f rootfsService) Prepare(_ context.Context, req *imagev1.PrepareRequest) (*imagev1.PrepareResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.images[req.Image] {
		return nil, fault.NotFound.Errorf("IMAGE_NOT_FOUND", "no such image: %s", req.Image)
	}
	if f.rootfs[req.ContainerId] != "" {
		return nil, fault.AlreadyExists.Errorf("ROOTFS_EXISTS", "exists")
	}
	f.rootfs[req.ContainerId] = req.Image
	f.prepared[req.ContainerId] = req
	return &imagev1.PrepareResponse{Rootfs: f.recipe(req.ContainerId)}, nil
}

func (f *fakeImaged) recipe(id string) *imagev1.Rootfs {
	return &imagev1.Rootfs{ContainerId: id, ImageId: "sha256:1", Config: &apiv1.ImageConfig{ExposedPorts: []string{"80/tcp", "53/udp"}, Volumes: f.volumes}}
}

func (f rootfsService) Get(_ context.Context, req *imagev1.GetRequest) (*imagev1.GetResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rootfs[req.ContainerId] == "" {
		return nil, fault.NotFound.Errorf("ROOTFS_NOT_FOUND", "none")
	}
	return &imagev1.GetResponse{Rootfs: f.recipe(req.ContainerId)}, nil
}

// Sync waits for syncing, if there is one, and fails with what comes out of it.
func (f rootfsService) Sync(ctx context.Context, req *imagev1.SyncRequest) (*imagev1.SyncResponse, error) {
	f.mu.Lock()
	there, syncing := f.rootfs[req.ContainerId] != "", f.syncing
	f.mu.Unlock()
	if !there {
		return nil, fault.NotFound.Errorf("ROOTFS_NOT_FOUND", "none")
	}
	if syncing == nil {
		return new(imagev1.SyncResponse), nil
	}
	select {
	case err := <-syncing:
		return new(imagev1.SyncResponse), err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f rootfsService) Release(_ context.Context, req *imagev1.ReleaseRequest) (*imagev1.ReleaseResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.rootfs, req.ContainerId)
	return new(imagev1.ReleaseResponse), nil
}

func (f rootfsService) List(context.Context, *imagev1.ListRequest) (*imagev1.ListResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := new(imagev1.ListResponse)
	for id := range f.rootfs {
		resp.Rootfs = append(resp.Rootfs, &imagev1.RootfsSummary{ContainerId: id})
	}
	return resp, nil
}

func (f imageService) Pull(req *apiv1.ImageServicePullRequest, ss grpc.ServerStreamingServer[apiv1.ImageServicePullResponse]) error {
	f.mu.Lock()
	f.pulls++
	gate := f.pullGate
	f.mu.Unlock()
	for i := range 3 {
		p := &apiv1.JobProgress{Step: "pull", Item: fmt.Sprintf("layer%d", i), Status: "downloading", CurrentBytes: 10, TotalBytes: 100}
		if err := ss.Send(&apiv1.ImageServicePullResponse{Message: &apiv1.ImageServicePullResponse_Progress{Progress: p}}); err != nil {
			f.pullLost <- struct{}{}
			return err
		}
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ss.Context().Done():
			f.pullLost <- struct{}{}
			return ss.Context().Err()
		}
	}
	if strings.Contains(req.Reference, "absent") {
		return fault.NotFound.Errorf("MANIFEST_UNKNOWN", "%s is not in its registry", req.Reference)
	}
	f.mu.Lock()
	f.images[req.Reference] = true
	f.mu.Unlock()
	return ss.Send(&apiv1.ImageServicePullResponse{Message: &apiv1.ImageServicePullResponse_Result_{
		Result: &apiv1.ImageServicePullResponse_Result{Digest: "sha256:d", Reference: req.Reference},
	}})
}

func (f imageService) Import(ss grpc.BidiStreamingServer[apiv1.ImageServiceImportRequest, apiv1.ImageServiceImportResponse]) error {
	var name string
	size := 0
	for {
		m, err := ss.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if h := m.GetHeader(); h != nil {
			name = h.Reference
		}
		size += len(m.GetData())
	}
	f.mu.Lock()
	f.images[name] = true
	f.mu.Unlock()
	return ss.Send(&apiv1.ImageServiceImportResponse{Message: &apiv1.ImageServiceImportResponse_Result_{
		Result: &apiv1.ImageServiceImportResponse_Result{ImageId: fmt.Sprintf("size:%d", size), Reference: name},
	}})
}

func (f imageService) Push(_ *apiv1.ImageServicePushRequest, ss grpc.ServerStreamingServer[apiv1.ImageServicePushResponse]) error {
	return ss.Send(&apiv1.ImageServicePushResponse{Message: &apiv1.ImageServicePushResponse_Result_{
		Result: &apiv1.ImageServicePushResponse_Result{Digest: "sha256:d"},
	}})
}

func (f imageService) Remove(_ context.Context, req *apiv1.ImageServiceRemoveRequest) (*apiv1.ImageServiceRemoveResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, image := range f.rootfs {
		if image == req.Image && req.Force {
			return &apiv1.ImageServiceRemoveResponse{Untagged: []string{req.Image}}, nil
		}
		if image == req.Image {
			return nil, fault.FailedPrecondition.Errorf("IMAGE_IN_USE", "image %s is used", image)
		}
	}
	delete(f.images, req.Image)
	return &apiv1.ImageServiceRemoveResponse{Deleted: []string{req.Image}}, nil
}

func (f imageService) Prune(context.Context, *apiv1.ImageServicePruneRequest) (*apiv1.ImageServicePruneResponse, error) {
	return new(apiv1.ImageServicePruneResponse), nil
}

func (f imageService) List(context.Context, *apiv1.ImageServiceListRequest) (*apiv1.ImageServiceListResponse, error) {
	return &apiv1.ImageServiceListResponse{Images: []*apiv1.ImageSummary{{Id: "a", SizeBytes: 10, Containers: 1}, {Id: "b", SizeBytes: 20}}}, nil
}

func (f volumeService) List(context.Context, *apiv1.VolumeServiceListRequest) (*apiv1.VolumeServiceListResponse, error) {
	return &apiv1.VolumeServiceListResponse{Volumes: []*apiv1.Volume{{Name: "v"}}}, nil
}

func (f storeService) Usage(context.Context, *imagev1.UsageRequest) (*imagev1.UsageResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &imagev1.UsageResponse{LayerBytes: 100, Images: 2, Volumes: 1, VolumeBytes: 5, RootfsBytes: int64(len(f.rootfs)) * 1000}, nil
}

type fakeNetd struct {
	server

	mu        sync.Mutex
	endpoints map[string]*networkv1.AttachRequest
	room      int // endpoints there can be; 0: any number
	connected []string
}

func (f endpointService) Attach(_ context.Context, req *networkv1.AttachRequest) (*networkv1.AttachResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.endpoints[req.ContainerId] != nil {
		return nil, fault.AlreadyExists.Errorf("ENDPOINT_EXISTS", "endpoint exists")
	}
	if err := f.free(req.Network.GetPorts()); err != nil {
		return nil, err
	}
	if f.room > 0 && len(f.endpoints) >= f.room {
		return nil, fault.ResourceExhausted.Errorf("NETWORK_FULL", "no address is left")
	}
	f.endpoints[req.ContainerId] = req
	return &networkv1.AttachResponse{
		Namespace: &networkv1.Namespace{Kind: networkv1.Namespace_KIND_HELD, Id: "ns"},
		Warnings:  []string{"from netd"},
	}, nil
}

// free needs mu.
func (f *fakeNetd) free(ports []*apiv1.PortMapping) error {
	for _, other := range f.endpoints {
		for _, p := range other.Network.GetPorts() {
			if slices.ContainsFunc(ports, func(q *apiv1.PortMapping) bool { return q.HostPort != 0 && q.HostPort == p.HostPort }) {
				return fault.AlreadyExists.Errorf("PORT_IN_USE", "port %d is in use", p.HostPort)
			}
		}
	}
	return nil
}

func (f endpointService) Use(_ context.Context, req *networkv1.UseRequest) (*networkv1.UseResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := new(networkv1.UseResponse)
	e := f.endpoints[req.ContainerId]
	if e == nil {
		return resp, nil
	}
	if e.Standby {
		if err := f.free(req.Ports); err != nil {
			return nil, err
		}
		e = proto.CloneOf(e)
		e.Standby, e.Network = false, &apiv1.NetworkSpec{Mode: e.Network.GetMode(), Ports: req.Ports}
		f.endpoints[req.ContainerId] = e
	}
	resp.Endpoints = append(resp.Endpoints, &apiv1.EndpointInfo{Network: "bridge", Ports: e.Network.Ports})
	return resp, nil
}

func (f endpointService) Detach(_ context.Context, req *networkv1.DetachRequest) (*networkv1.DetachResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.endpoints, req.ContainerId)
	return new(networkv1.DetachResponse), nil
}

func (f networkService) Connect(_ context.Context, req *apiv1.NetworkServiceConnectRequest) (*apiv1.NetworkServiceConnectResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.connected = append(f.connected, req.Container)
	return new(apiv1.NetworkServiceConnectResponse), nil
}

func (f endpointService) List(context.Context, *networkv1.ListRequest) (*networkv1.ListResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := new(networkv1.ListResponse)
	for id := range f.endpoints {
		resp.Endpoints = append(resp.Endpoints, &networkv1.Endpoint{ContainerId: id})
	}
	return resp, nil
}

// fakeContainer runs what its args say: "echo" copies stdin until it ends,
// "flood" writes for ever, "sleep" waits to be stopped, "false" exits with 1;
// "missing" cannot start, "slow-start" does not start until gate is closed.
type fakeContainer struct {
	id       string
	spec     *apiv1.ContainerSpec
	state    apiv1.ContainerState
	exit     *apiv1.ExitStatus
	stop     chan struct{} // closed to end it
	exited   chan struct{}
	restarts int
	pending  bool
	network  *networkv1.AttachResponse
}

type fakeExecd struct {
	server

	mu         sync.Mutex
	containers map[string]*fakeContainer
	gate       chan struct{}
	startLost  chan struct{} // gets one when a slow start was given up
	events     []*apiv1.Event
	eventAdded chan struct{}
	flooded    int // messages "flood" could send
	seen       metadata.MD
	listed     *apiv1.ListRequest
}

func (f *fakeExecd) find(name string) *fakeContainer {
	if c := f.containers[name]; c != nil {
		return c
	}
	for _, c := range f.containers {
		if c.spec.Name == name || len(name) >= 6 && strings.HasPrefix(c.id, name) {
			return c
		}
	}
	return nil
}

func noSuch(name string) error {
	return fault.NotFound.Errorf("CONTAINER_NOT_FOUND", "no such container: %s", name).With("container", name)
}

func (f *fakeExecd) emit(action, id string) { // needs mu
	f.events = append(f.events, &apiv1.Event{
		Sequence: uint64(len(f.events) + 1), Time: timestamppb.Now(), Type: "container", Action: action, Id: id, Daemon: "execd",
	})
	close(f.eventAdded)
	f.eventAdded = make(chan struct{})
}

func (f *fakeExecd) create(req *execv1.CreateRequest) (*fakeContainer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	spec := proto.CloneOf(req.Spec)
	if spec.Name == "" {
		spec.Name = "made_up_" + req.Id[:6]
	}
	if f.find(spec.Name) != nil {
		return nil, fault.AlreadyExists.Errorf("NAME_IN_USE", "name %s is in use", spec.Name)
	}
	if req.Rootfs == nil {
		return nil, fault.InvalidArgument.Errorf("NO_ROOTFS", "no root file system")
	}
	c := &fakeContainer{id: req.Id, spec: spec, state: apiv1.ContainerState_CONTAINER_STATE_CREATED, pending: req.Pending}
	f.containers[c.id] = c
	f.emit("create", c.id)
	return c, nil
}

func (f *fakeExecd) begin(ctx context.Context, c *fakeContainer, network *networkv1.AttachResponse) error {
	if network.GetNamespace() == nil {
		return fault.InvalidArgument.Errorf("NO_NETWORK", "no network")
	}
	switch command(c.spec) {
	case "missing":
		return fault.NotFound.Errorf("COMMAND_NOT_FOUND", "no such command")
	case "slow-start":
		f.mu.Lock()
		gate := f.gate
		f.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
			defer func() { f.startLost <- struct{}{} }()
			return ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c.state, c.network = apiv1.ContainerState_CONTAINER_STATE_RUNNING, network
	c.stop, c.exited = make(chan struct{}), make(chan struct{})
	f.emit("start", c.id)
	return nil
}

func command(s *apiv1.ContainerSpec) string { return strings.Join(s.Args, " ") }

// finish is the exit of a running container.
func (f *fakeExecd) finish(c *fakeContainer, code int32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.state != apiv1.ContainerState_CONTAINER_STATE_RUNNING {
		return
	}
	c.state = apiv1.ContainerState_CONTAINER_STATE_EXITED
	c.exit = &apiv1.ExitStatus{Code: code}
	if c.spec.AutoRemove {
		delete(f.containers, c.id)
	}
	close(c.exited)
	f.emit("die", c.id)
}

func (f *fakeExecd) drop(c *fakeContainer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.containers, c.id)
	f.emit("destroy", c.id)
}

func (f launchService) Create(_ context.Context, req *execv1.CreateRequest) (*execv1.CreateResponse, error) {
	c, err := f.create(req)
	if err != nil {
		return nil, err
	}
	return &execv1.CreateResponse{Name: c.spec.Name}, nil
}

func (f launchService) Confirm(_ context.Context, req *execv1.ConfirmRequest) (*execv1.ConfirmResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.find(req.Container)
	if c == nil {
		return nil, noSuch(req.Container)
	}
	c.pending = false
	return new(execv1.ConfirmResponse), nil
}

func (f launchService) Start(ctx context.Context, req *execv1.StartRequest) (*execv1.StartResponse, error) {
	f.mu.Lock()
	c := f.containers[req.Id]
	f.mu.Unlock()
	if c == nil {
		return nil, noSuch(req.Id)
	}
	if req.Rootfs == nil {
		return nil, fault.InvalidArgument.Errorf("NO_ROOTFS", "no root file system")
	}
	if err := f.begin(ctx, c, req.Network); err != nil {
		return nil, err
	}
	return &execv1.StartResponse{Pid: 1}, nil
}

func (f launchService) Run(ss grpc.BidiStreamingServer[execv1.RunRequest, execv1.RunResponse]) error {
	first, err := ss.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	c, err := f.create(open.Create)
	if err != nil {
		return err
	}
	if err := f.begin(ss.Context(), c, open.Network); err != nil {
		f.drop(c)
		return err
	}
	ss.Send(&execv1.RunResponse{Message: &execv1.RunResponse_Created{Created: &execv1.CreateResponse{Name: c.spec.Name}}})
	if err := ss.Send(&execv1.RunResponse{Message: &execv1.RunResponse_Started{Started: &execv1.StartResponse{Pid: 1}}}); err != nil {
		return err
	}
	if open.Attach == nil {
		return nil
	}
	out := func(data []byte) error {
		return ss.Send(&execv1.RunResponse{Message: &execv1.RunResponse_Output{Output: &apiv1.OutputChunk{Stream: apiv1.OutputChunk_STREAM_STDOUT, Data: data}}})
	}
	switch command(c.spec) {
	case "false":
		f.finish(c, 1)
	case "echo":
		for {
			m, err := ss.Recv()
			if err != nil && !errors.Is(err, io.EOF) {
				return err // the client left, the container stays
			}
			if err != nil || m.GetSignal() == "KILL" || m.GetStdin() != nil && len(m.GetStdin()) == 0 {
				break
			}
			if m.GetStdin() != nil {
				if err := out(m.GetStdin()); err != nil {
					return err
				}
			}
		}
		f.finish(c, 0)
	case "flood":
		chunk := make([]byte, 64<<10)
		for {
			if err := out(chunk); err != nil {
				return err
			}
			f.mu.Lock()
			f.flooded++
			f.mu.Unlock()
		}
	}
	select {
	case <-c.exited:
		return ss.Send(&execv1.RunResponse{Message: &execv1.RunResponse_Exited{Exited: c.exit}})
	case <-ss.Context().Done():
		return ss.Context().Err()
	}
}

func (f launchService) Stop(_ context.Context, req *execv1.StopRequest) (*execv1.StopResponse, error) {
	f.mu.Lock()
	c := f.find(req.Container)
	f.mu.Unlock()
	if c == nil {
		return nil, noSuch(req.Container)
	}
	resp := &execv1.StopResponse{Id: c.id, WasStopped: c.state != apiv1.ContainerState_CONTAINER_STATE_RUNNING}
	f.finish(c, 143)
	return resp, nil
}

func (f launchService) Remove(_ context.Context, req *execv1.RemoveRequest) (*execv1.RemoveResponse, error) {
	f.mu.Lock()
	c := f.find(req.Container)
	f.mu.Unlock()
	if c == nil {
		return nil, noSuch(req.Container)
	}
	if c.state == apiv1.ContainerState_CONTAINER_STATE_RUNNING {
		if !req.Force {
			return nil, fault.FailedPrecondition.Errorf("CONTAINER_RUNNING", "container %s runs", c.spec.Name)
		}
		f.finish(c, 137)
	}
	f.drop(c)
	return &execv1.RemoveResponse{Id: c.id}, nil
}

func (f launchService) ListIds(context.Context, *execv1.ListIdsRequest) (*execv1.ListIdsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := new(execv1.ListIdsResponse)
	for id, c := range f.containers {
		resp.Entries = append(resp.Entries, &execv1.ListIdsResponse_Entry{
			Id: id, State: c.state, AutoRemove: c.spec.AutoRemove,
			Active: c.state == apiv1.ContainerState_CONTAINER_STATE_RUNNING, Name: c.spec.Name,
		})
	}
	return resp, nil
}

func (f containerService) Inspect(_ context.Context, req *apiv1.InspectRequest) (*apiv1.InspectResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.find(req.Container)
	if c == nil {
		return nil, noSuch(req.Container)
	}
	return &apiv1.InspectResponse{Container: &apiv1.Container{Id: c.id, Name: c.spec.Name, Spec: c.spec, State: c.state}}, nil
}

func (f containerService) List(ctx context.Context, req *apiv1.ListRequest) (*apiv1.ListResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen, _ = metadata.FromIncomingContext(ctx)
	f.listed = req
	resp := new(apiv1.ListResponse)
	for id, c := range f.containers {
		if c.state != apiv1.ContainerState_CONTAINER_STATE_RUNNING {
			resp.Containers = append(resp.Containers, &apiv1.ContainerSummary{Id: id, Name: c.spec.Name, State: c.state, CreatedAt: timestamppb.Now()})
		}
	}
	return resp, nil
}

// Exec echoes each message's stdin in upper case.
func (f containerService) Exec(ss grpc.BidiStreamingServer[apiv1.ExecRequest, apiv1.ExecResponse]) error {
	for {
		m, err := ss.Recv()
		if errors.Is(err, io.EOF) {
			return ss.Send(&apiv1.ExecResponse{Message: &apiv1.ExecResponse_Exited{Exited: &apiv1.ExitStatus{Code: 7}}})
		}
		if err != nil {
			return err
		}
		data := []byte(strings.ToUpper(string(m.GetStdin())))
		if err := ss.Send(&apiv1.ExecResponse{Message: &apiv1.ExecResponse_Output{Output: &apiv1.OutputChunk{Data: data}}}); err != nil {
			return err
		}
	}
}

func (f eventService) Watch(req *apiv1.EventServiceWatchRequest, ss grpc.ServerStreamingServer[apiv1.EventServiceWatchResponse]) error {
	f.mu.Lock()
	next := 0
	if req.Since == nil {
		next = len(f.events)
	}
	f.mu.Unlock()
	for {
		f.mu.Lock()
		fresh, added := f.events[next:], f.eventAdded
		f.mu.Unlock()
		for _, e := range fresh {
			next++
			if req.Since != nil && e.Time.AsTime().Before(req.Since.AsTime()) || slices.Contains(req.Filters, "event=die") && e.Action != "die" {
				continue
			}
			if err := ss.Send(&apiv1.EventServiceWatchResponse{Event: e}); err != nil {
				return err
			}
		}
		if req.Until != nil && req.Until.AsTime().Before(time.Now()) {
			return nil
		}
		select {
		case <-added:
		case <-ss.Context().Done():
			return ss.Context().Err()
		}
	}
}

// world is an apid with fakes behind it.
type world struct {
	t      testing.TB
	dir    string
	imaged *fakeImaged
	netd   *fakeNetd
	execd  *fakeExecd
	conn   *grpc.ClientConn
	stop   func()
}

// newWorld starts the fakes and an apid.
func newWorld(t testing.TB) *world {
	w := newFakes(t)
	w.imaged.start()
	w.netd.start()
	w.execd.start()
	w.startApid()
	return w
}

func newFakes(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"run/engine", "root/apid"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{
		t: t, dir: dir,
		imaged: &fakeImaged{images: map[string]bool{"web": true}, rootfs: map[string]string{}, prepared: map[string]*imagev1.PrepareRequest{}, pullLost: make(chan struct{}, 8)},
		netd:   &fakeNetd{endpoints: map[string]*networkv1.AttachRequest{}},
		execd: &fakeExecd{containers: map[string]*fakeContainer{}, gate: make(chan struct{}), startLost: make(chan struct{}, 8),
			eventAdded: make(chan struct{})},
	}
	w.imaged.server = server{t: t, path: filepath.Join(dir, "run", daemon.ImagedSocket), register: func(s *grpc.Server) {
		imagev1.RegisterRootfsServiceServer(s, rootfsService{fakeImaged: w.imaged})
		imagev1.RegisterStoreServiceServer(s, storeService{fakeImaged: w.imaged})
		apiv1.RegisterImageServiceServer(s, imageService{fakeImaged: w.imaged})
		apiv1.RegisterRegistryServiceServer(s, registryService{fakeImaged: w.imaged})
		apiv1.RegisterVolumeServiceServer(s, volumeService{fakeImaged: w.imaged})
	}}
	w.netd.server = server{t: t, path: filepath.Join(dir, "run", daemon.NetdSocket), register: func(s *grpc.Server) {
		networkv1.RegisterEndpointServiceServer(s, endpointService{fakeNetd: w.netd})
		apiv1.RegisterNetworkServiceServer(s, networkService{fakeNetd: w.netd})
	}}
	w.execd.server = server{t: t, path: filepath.Join(dir, "run", daemon.ExecdSocket), register: func(s *grpc.Server) {
		execv1.RegisterLaunchServiceServer(s, launchService{fakeExecd: w.execd})
		apiv1.RegisterContainerServiceServer(s, containerService{fakeExecd: w.execd})
		apiv1.RegisterEventServiceServer(s, eventService{fakeExecd: w.execd})
	}}
	t.Cleanup(func() {
		w.imaged.stop()
		w.netd.stop()
		w.execd.stop()
	})
	return w
}

// startApid runs apid's own run function.
func (w *world) startApid() {
	w.t.Helper()
	path := filepath.Join(w.dir, "run", daemon.ApidSocket)
	os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		w.t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	cfg := config.Default()
	cfg.Root, cfg.Run = filepath.Join(w.dir, "root"), filepath.Join(w.dir, "run")
	env := &daemon.Env{
		Name: "apid", Log: hclog.NewNullLogger(), Config: cfg,
		StateDir: filepath.Join(cfg.Root, "apid"), Listeners: map[string]*net.UnixListener{daemon.ApidSocket: l},
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, env) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("apid: %v", err)
		}
	})
	w.t.Cleanup(w.stop)
	if w.conn, err = daemon.Dial(path); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.conn.Close() })
}

func (w *world) containers() apiv1.ContainerServiceClient {
	return apiv1.NewContainerServiceClient(w.conn)
}
func (w *world) images() apiv1.ImageServiceClient { return apiv1.NewImageServiceClient(w.conn) }
func (w *world) jobs() apiv1.JobServiceClient     { return apiv1.NewJobServiceClient(w.conn) }

// counts is what the daemons hold.
type counts struct{ containers, rootfs, endpoints int }

// held is all, and how much of it are spares' parts.
func (w *world) held() (all counts, spares int) {
	w.execd.mu.Lock()
	defer w.execd.mu.Unlock()
	w.imaged.mu.Lock()
	defer w.imaged.mu.Unlock()
	w.netd.mu.Lock()
	defer w.netd.mu.Unlock()
	return counts{len(w.execd.containers), len(w.imaged.rootfs), len(w.netd.endpoints)}, len(w.spareIDs())
}

// counts is what the daemons hold for containers.
func (w *world) counts() counts {
	c, spares := w.held()
	c.rootfs -= spares
	c.endpoints -= spares
	return c
}

// expect waits until the daemons hold exactly want for containers.
func (w *world) expect(want counts) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%+v", want), func() (string, bool) {
		got := w.counts()
		return fmt.Sprintf("%+v", got), got == want
	})
}

func (w *world) eventually(what string, check func() (string, bool)) {
	w.t.Helper()
	var got string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		var ok bool
		if got, ok = check(); ok {
			return
		}
	}
	w.t.Fatalf("got %s, want %s", got, what)
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (registryService) Copy(_ *apiv1.RegistryServiceCopyRequest, stream apiv1.RegistryService_CopyServer) error {
	return stream.Send(&apiv1.RegistryServiceCopyResponse{Message: &apiv1.RegistryServiceCopyResponse_Result_{
		Result: &apiv1.RegistryServiceCopyResponse_Result{Digest: "sha256:copied"},
	}})
}
