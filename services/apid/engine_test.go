package apid

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/fault"
	"berth/internal/journal"
	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/apid/engine"
)

type runStream = grpc.BidiStreamingClient[apiv1.RunRequest, apiv1.RunResponse]

func openRun(ctx context.Context, w *world, open *apiv1.RunRequest_Open) (runStream, error) {
	s, err := w.containers().Run(ctx)
	if err != nil {
		return nil, err
	}
	return s, s.Send(&apiv1.RunRequest{Message: &apiv1.RunRequest_Open_{Open: open}})
}

// runOnce sends open and reads all that comes.
func runOnce(ctx context.Context, w *world, open *apiv1.RunRequest_Open) ([]*apiv1.RunResponse, error) {
	s, err := openRun(ctx, w, open)
	if err != nil {
		return nil, err
	}
	var all []*apiv1.RunResponse
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, m)
	}
}

// until reads up to the first message that is wanted.
func until(t *testing.T, s runStream, wanted func(*apiv1.RunResponse) bool) *apiv1.RunResponse {
	t.Helper()
	for {
		m, err := s.Recv()
		if err != nil {
			t.Fatalf("stream ended early: %v", err)
		}
		if wanted(m) {
			return m
		}
	}
}

func isStarted(m *apiv1.RunResponse) bool  { return m.GetStarted() != nil }
func isProgress(m *apiv1.RunResponse) bool { return m.GetProgress() != nil }

func runSpec(args ...string) *apiv1.ContainerSpec {
	return &apiv1.ContainerSpec{Image: "web", Args: args, Name: strings.Join(args, "") + "-box"}
}

func (w *world) job(id string) *apiv1.Job {
	w.t.Helper()
	resp, err := w.jobs().Get(testContext(w.t), &apiv1.JobServiceGetRequest{Id: id})
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.Job
}

// lastJob is the newest of a kind.
func (w *world) lastJob(kind string) *apiv1.Job {
	w.t.Helper()
	resp, err := w.jobs().List(testContext(w.t), &apiv1.JobServiceListRequest{Filters: []string{"kind=" + kind}, PageSize: 1})
	if err != nil || len(resp.Jobs) == 0 {
		w.t.Fatalf("no %s job: %v", kind, err)
	}
	return resp.Jobs[0]
}

func (w *world) jobEnds(kind string, want apiv1.JobState) *apiv1.Job {
	w.t.Helper()
	w.eventually(want.String(), func() (string, bool) {
		j := w.lastJob(kind)
		return j.State.String() + " " + j.Error, j.State == want
	})
	return w.lastJob(kind)
}

func TestRunAttached(t *testing.T) {
	for _, rm := range []bool{true, false} {
		t.Run(fmt.Sprintf("rm=%v", rm), func(t *testing.T) {
			w := newWorld(t)
			spec := runSpec("echo")
			spec.AutoRemove = rm
			// Without a port the endpoint of a --rm container may go after the reply.
			spec.Network = &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{{HostPort: 8080, ContainerPort: 80}}}
			s, err := openRun(testContext(t), w, &apiv1.RunRequest_Open{Spec: spec, Attach: &apiv1.AttachOptions{Stdin: true, Stdout: true}, Trace: true})
			if err != nil {
				t.Fatal(err)
			}
			created := until(t, s, func(m *apiv1.RunResponse) bool { return m.GetCreated() != nil }).GetCreated()
			if len(created.Id) != 64 || created.Name != "echo-box" || strings.Join(created.Warnings, "") != "from netd" {
				t.Errorf("created = %v", created)
			}
			steps := map[string]bool{}
			for _, step := range until(t, s, isStarted).GetStarted().Trace {
				steps[step.Name] = true
			}
			if !steps["imaged prepare"] || !steps["netd attach"] || !steps["execd run"] {
				t.Errorf("trace has %v", steps)
			}
			for _, text := range []string{"hello", "world"} {
				s.Send(&apiv1.RunRequest{Message: &apiv1.RunRequest_Stdin{Stdin: []byte(text)}})
				if m, err := s.Recv(); err != nil || string(m.GetOutput().GetData()) != text {
					t.Fatalf("output %v, %v", m, err)
				}
			}
			s.Send(&apiv1.RunRequest{Message: &apiv1.RunRequest_Stdin{Stdin: []byte{}}})
			m, err := s.Recv()
			if err != nil || m.GetExited() == nil || m.GetExited().Code != 0 {
				t.Fatalf("exit: %v, %v", m, err)
			}
			// Ports and names are free by now.
			if got := w.counts(); got.endpoints != 0 || rm && got.containers != 0 {
				t.Errorf("when the exit is reported there are %+v", got)
			}
			if _, err := s.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("after exit: %v", err)
			}
			if rm {
				w.expect(counts{})
			} else {
				w.expect(counts{containers: 1, rootfs: 1})
			}
			if j := w.lastJob("run"); j.State != apiv1.JobState_JOB_STATE_SUCCEEDED || j.Result != created.Id || j.Target != "echo-box" {
				t.Errorf("job = %v", j)
			}
			if md, _ := s.Header(); len(md.Get(engine.JobIDHeader)) != 1 || md.Get(engine.JobIDHeader)[0] != w.lastJob("run").Id {
				t.Errorf("header %v", md)
			}
		})
	}
}

func TestRunDetachedThenExit(t *testing.T) {
	w := newWorld(t)
	spec := runSpec("sleep")
	spec.AutoRemove = true
	all, err := runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: spec, Detach: true})
	if err != nil || len(all) != 2 || all[1].GetStarted() == nil {
		t.Fatalf("%v, %v", all, err)
	}
	w.expect(counts{1, 1, 1})
	w.execd.mu.Lock()
	c := w.execd.find("sleep-box")
	w.execd.mu.Unlock()
	w.execd.finish(c, 0) // nobody is attached: the janitor hears of it
	w.expect(counts{})
}

func TestRunFailuresLeaveNothing(t *testing.T) {
	for _, c := range []struct {
		name   string
		spec   func(*apiv1.ContainerSpec)
		kind   fault.Kind
		reason string
	}{
		{"no image given", func(s *apiv1.ContainerSpec) { s.Image = "" }, fault.InvalidArgument, "IMAGE_REQUIRED"},
		{"bad name", func(s *apiv1.ContainerSpec) { s.Name = "../x" }, fault.InvalidArgument, "BAD_NAME"},
		{"image not pulled", func(s *apiv1.ContainerSpec) { s.Image = "other"; s.Pull = apiv1.PullPolicy_PULL_POLICY_NEVER }, fault.NotFound, "IMAGE_NOT_FOUND"},
		{"image not in registry", func(s *apiv1.ContainerSpec) { s.Image = "absent" }, fault.NotFound, "MANIFEST_UNKNOWN"},
		{"port taken", func(s *apiv1.ContainerSpec) {
			s.Network = &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{{HostPort: 8080, ContainerPort: 80}}}
		}, fault.AlreadyExists, "PORT_IN_USE"},
		{"name taken", func(s *apiv1.ContainerSpec) { s.Name = "first" }, fault.AlreadyExists, "NAME_IN_USE"},
		{"no such command", func(s *apiv1.ContainerSpec) { s.Args = []string{"missing"} }, fault.NotFound, "COMMAND_NOT_FOUND"},
		{"no such container to share with", func(s *apiv1.ContainerSpec) { s.Network = &apiv1.NetworkSpec{Mode: "container:gone"} }, fault.NotFound, "CONTAINER_NOT_FOUND"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			first := runSpec("sleep")
			first.Name = "first"
			first.Network = &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{{HostPort: 8080, ContainerPort: 80}}}
			if _, err := runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: first, Detach: true}); err != nil {
				t.Fatal(err)
			}
			spec := runSpec("sleep")
			c.spec(spec)
			_, err := runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: spec, Detach: true})
			if !errors.Is(err, c.kind) || fault.ReasonOf(err) != c.reason {
				t.Errorf("err = %v (%s)", err, fault.ReasonOf(err))
			}
			w.expect(counts{1, 1, 1})
		})
	}
}

func TestRunPullsWhatIsMissing(t *testing.T) {
	for _, c := range []struct {
		policy apiv1.PullPolicy
		image  string
		pulls  int
	}{
		{apiv1.PullPolicy_PULL_POLICY_UNSPECIFIED, "web", 0},
		{apiv1.PullPolicy_PULL_POLICY_UNSPECIFIED, "new", 1},
		{apiv1.PullPolicy_PULL_POLICY_MISSING, "new", 1},
		{apiv1.PullPolicy_PULL_POLICY_ALWAYS, "web", 1},
	} {
		w := newWorld(t)
		spec := runSpec("false")
		spec.Image, spec.Pull = c.image, c.policy
		all, err := runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: spec})
		if err != nil {
			t.Fatalf("%v %s: %v", c.policy, c.image, err)
		}
		if last := all[len(all)-1]; last.GetExited().GetCode() != 1 {
			t.Errorf("last = %v", last)
		}
		if w.imaged.pulls != c.pulls || isProgress(all[0]) != (c.pulls > 0) {
			t.Errorf("%v %s: %d pulls, first message %v", c.policy, c.image, w.imaged.pulls, all[0])
		}
	}
}

func TestF47ClientVanishes(t *testing.T) {
	t.Run("during the pull", func(t *testing.T) {
		w := newWorld(t)
		w.imaged.pullGate = make(chan struct{})
		ctx, leave := context.WithCancel(testContext(t))
		spec := runSpec("sleep")
		spec.Image = "new"
		s, err := openRun(ctx, w, &apiv1.RunRequest_Open{Spec: spec})
		if err != nil {
			t.Fatal(err)
		}
		until(t, s, isProgress)
		leave()
		<-w.imaged.pullLost
		w.expect(counts{})
		w.jobEnds("run", apiv1.JobState_JOB_STATE_CANCELLED)
	})
	t.Run("before the start", func(t *testing.T) {
		w := newWorld(t)
		ctx, leave := context.WithCancel(testContext(t))
		if _, err := openRun(ctx, w, &apiv1.RunRequest_Open{Spec: runSpec("slow-start")}); err != nil {
			t.Fatal(err)
		}
		w.expect(counts{1, 1, 1})
		leave()
		<-w.execd.startLost
		w.expect(counts{})
		w.jobEnds("run", apiv1.JobState_JOB_STATE_CANCELLED)
	})
	t.Run("after the start", func(t *testing.T) {
		w := newWorld(t)
		ctx, leave := context.WithCancel(testContext(t))
		s, err := openRun(ctx, w, &apiv1.RunRequest_Open{Spec: runSpec("echo"), Attach: &apiv1.AttachOptions{Stdin: true}})
		if err != nil {
			t.Fatal(err)
		}
		until(t, s, isStarted)
		leave()
		time.Sleep(100 * time.Millisecond)
		w.expect(counts{1, 1, 1})
		c, err := w.containers().Inspect(testContext(t), &apiv1.InspectRequest{Container: "echo-box"})
		if err != nil || c.Container.State != apiv1.ContainerState_CONTAINER_STATE_RUNNING {
			t.Errorf("container: %v, %v", c, err)
		}
	})
}

func TestCancelMidPull(t *testing.T) {
	w := newWorld(t)
	w.imaged.pullGate = make(chan struct{})
	spec := runSpec("sleep")
	spec.Image = "new"
	s, err := openRun(testContext(t), w, &apiv1.RunRequest_Open{Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	until(t, s, isProgress)
	md, _ := s.Header()
	resp, err := w.jobs().Cancel(testContext(t), &apiv1.JobServiceCancelRequest{Id: md.Get(engine.JobIDHeader)[0]})
	if err != nil || resp.Job.State != apiv1.JobState_JOB_STATE_CANCELLED {
		t.Fatalf("cancel: %v, %v", resp, err)
	}
	<-w.imaged.pullLost
	for err == nil {
		_, err = s.Recv()
	}
	if !errors.Is(err, fault.Cancelled) || fault.ReasonOf(err) != "JOB_CANCELLED" {
		t.Errorf("the client hears %v", err)
	}
	w.expect(counts{})
	if _, err := w.jobs().Cancel(testContext(t), &apiv1.JobServiceCancelRequest{Id: resp.Job.Id}); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("second cancel: %v", err)
	}
}

func TestJobSurvivesItsClient(t *testing.T) {
	w := newWorld(t)
	w.imaged.pullGate = make(chan struct{})
	ctx, leave := context.WithCancel(testContext(t))
	s, err := w.images().Pull(ctx, &apiv1.ImageServicePullRequest{Reference: "new"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	leave()
	watch, err := w.jobs().Watch(testContext(t), &apiv1.JobServiceWatchRequest{Id: w.lastJob("pull").Id})
	if err != nil {
		t.Fatal(err)
	}
	first, err := watch.Recv()
	if err != nil || first.Job.State != apiv1.JobState_JOB_STATE_RUNNING || first.Job.Caller == nil {
		t.Fatalf("watch: %v, %v", first, err)
	}
	close(w.imaged.pullGate)
	var last *apiv1.Job
	for {
		m, err := watch.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		last = m.Job
	}
	if last.GetState() != apiv1.JobState_JOB_STATE_SUCCEEDED || last.Result != "sha256:d" || len(last.Steps) != 1 || !last.Steps[0].Done {
		t.Errorf("last = %v", last)
	}
}

func TestPullProgressOfEachItemArrives(t *testing.T) {
	w := newWorld(t)
	s, err := w.images().Pull(testContext(t), &apiv1.ImageServicePullRequest{Reference: "new"})
	if err != nil {
		t.Fatal(err)
	}
	items := map[string]bool{}
	for {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetResult() != nil {
			break
		}
		items[m.GetProgress().Item] = true
	}
	if len(items) != 3 {
		t.Errorf("items = %v", items)
	}
}

func TestCreateStartStopRestartRemove(t *testing.T) {
	w := newWorld(t)
	ctx := testContext(t)
	s, err := w.containers().Create(ctx, &apiv1.CreateRequest{Spec: runSpec("sleep")})
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Recv()
	if err != nil || m.GetResult().GetName() != "sleep-box" {
		t.Fatalf("create: %v, %v", m, err)
	}
	w.expect(counts{containers: 1, rootfs: 1})
	for range 2 { // the second changes nothing
		if _, err := w.containers().Start(ctx, &apiv1.StartRequest{Container: "sleep-box"}); err != nil {
			t.Fatal(err)
		}
		w.expect(counts{1, 1, 1})
	}
	// The janitor must not take the stop of a restart for an exit.
	if _, err := w.containers().Restart(ctx, &apiv1.RestartRequest{Container: "sleep-box"}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // for the janitor to be wrong
	w.expect(counts{1, 1, 1})
	if _, err := w.containers().Remove(ctx, &apiv1.RemoveRequest{Container: "sleep-box"}); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("removing a running one: %v", err)
	}
	if _, err := w.containers().Stop(ctx, &apiv1.StopRequest{Container: "sleep-box"}); err != nil {
		t.Fatal(err)
	}
	if got := w.counts(); got != (counts{containers: 1, rootfs: 1}) {
		t.Errorf("after stop: %+v", got)
	}
	if _, err := w.containers().Stop(ctx, &apiv1.StopRequest{Container: "sleep-box"}); err != nil {
		t.Errorf("stopping a stopped one: %v", err)
	}
	if _, err := w.containers().Remove(ctx, &apiv1.RemoveRequest{Container: "sleep-box"}); err != nil {
		t.Fatal(err)
	}
	if got := w.counts(); got != (counts{}) {
		t.Errorf("after rm: %+v", got)
	}
	if _, err := w.containers().Remove(ctx, &apiv1.RemoveRequest{Container: "sleep-box"}); !errors.Is(err, fault.NotFound) {
		t.Errorf("removing what is gone: %v", err)
	}
}

func TestStopOfOneToRemoveOnExit(t *testing.T) {
	w := newWorld(t)
	ctx := testContext(t)
	spec := runSpec("sleep")
	spec.AutoRemove = true
	if _, err := runOnce(ctx, w, &apiv1.RunRequest_Open{Spec: spec, Detach: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.containers().Restart(ctx, &apiv1.RestartRequest{Container: "sleep-box"}); fault.ReasonOf(err) != "REMOVED_ON_EXIT" {
		t.Errorf("restart: %v", err)
	}
	w.expect(counts{1, 1, 1})
	if _, err := w.containers().Stop(ctx, &apiv1.StopRequest{Container: "sleep-box"}); err != nil {
		t.Fatal(err)
	}
	if got := w.counts(); got != (counts{}) {
		t.Errorf("after stop: %+v", got)
	}
	if _, err := w.containers().Stop(ctx, &apiv1.StopRequest{Container: "sleep-box"}); !errors.Is(err, fault.NotFound) {
		t.Errorf("stopping what is gone: %v", err)
	}
}

func TestStartFailureTakesTheNetworkBack(t *testing.T) {
	w := newWorld(t)
	s, err := w.containers().Create(testContext(t), &apiv1.CreateRequest{Spec: runSpec("missing")})
	if err == nil {
		_, err = s.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.containers().Start(testContext(t), &apiv1.StartRequest{Container: "missing-box"}); fault.ReasonOf(err) != "COMMAND_NOT_FOUND" {
		t.Errorf("start: %v", err)
	}
	if got := w.counts(); got != (counts{containers: 1, rootfs: 1}) {
		t.Errorf("left: %+v", got)
	}
}

func TestForceRemoveAndPrune(t *testing.T) {
	w := newWorld(t)
	ctx := testContext(t)
	if _, err := runOnce(ctx, w, &apiv1.RunRequest_Open{Spec: runSpec("sleep"), Detach: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := runOnce(ctx, w, &apiv1.RunRequest_Open{Spec: runSpec("false")}); err != nil {
		t.Fatal(err)
	}
	resp, err := w.containers().Prune(ctx, new(apiv1.PruneRequest))
	if err != nil || len(resp.Ids) != 1 || resp.ReclaimedBytes != 1000 {
		t.Fatalf("prune: %v, %v", resp, err)
	}
	w.expect(counts{1, 1, 1})
	if _, err := w.containers().Remove(ctx, &apiv1.RemoveRequest{Container: "sleep-box", Force: true}); err != nil {
		t.Fatal(err)
	}
	w.expect(counts{})
}

// TestRemoveImageOfAContainerThatIsGone: what its exit left, which is removed in the
// background, is in nobody's way. A container that is there is.
func TestRemoveImageOfAContainerThatIsGone(t *testing.T) {
	for _, force := range []bool{false, true} {
		w := newWorld(t)
		ctx := testContext(t)
		w.imaged.mu.Lock()
		w.imaged.rootfs[strings.Repeat("a", 64)] = "web" // execd knows no such container
		w.imaged.mu.Unlock()
		resp, err := w.images().Remove(ctx, &apiv1.ImageServiceRemoveRequest{Image: "web", Force: force})
		if err != nil || len(resp.Deleted) != 1 {
			t.Errorf("force %v: %v, %v; want it deleted", force, resp, err)
		}
	}
	w := newWorld(t)
	ctx := testContext(t)
	if _, err := runOnce(ctx, w, &apiv1.RunRequest_Open{Spec: runSpec("sleep"), Detach: true}); err != nil {
		t.Fatal(err)
	}
	_, err := w.images().Remove(ctx, &apiv1.ImageServiceRemoveRequest{Image: "web"})
	if fault.ReasonOf(err) != "IMAGE_IN_USE" {
		t.Errorf("image of a running container: %v", err)
	}
	w.expect(counts{1, 1, 1})
}

func TestPublishAllUsesTheImagesPorts(t *testing.T) {
	w := newWorld(t)
	spec := runSpec("sleep")
	spec.Network = &apiv1.NetworkSpec{
		PublishAll: true,
		Ports:      []*apiv1.PortMapping{{HostPort: 8080, ContainerPort: 80}},
		Expose:     []string{"9000"},
	}
	if _, err := runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: spec, Detach: true}); err != nil {
		t.Fatal(err)
	}
	w.netd.mu.Lock()
	defer w.netd.mu.Unlock()
	for _, req := range w.netd.endpoints {
		var got []string
		for _, p := range req.Network.Ports {
			got = append(got, fmt.Sprintf("%d:%d/%s", p.HostPort, p.ContainerPort, p.Protocol))
		}
		if s := strings.Join(got, " "); s != "8080:80/ 0:53/udp 0:9000/tcp" {
			t.Errorf("ports = %s", s)
		}
	}
}

func TestContainerNetworkModeIsResolved(t *testing.T) {
	w := newWorld(t)
	if _, err := runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: runSpec("sleep"), Detach: true}); err != nil {
		t.Fatal(err)
	}
	spec := runSpec("echo")
	spec.Network = &apiv1.NetworkSpec{Mode: "container:sleep-box"}
	if _, err := runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: spec, Detach: true}); err != nil {
		t.Fatal(err)
	}
	w.execd.mu.Lock()
	first, second := w.execd.find("sleep-box"), w.execd.find("echo-box")
	w.execd.mu.Unlock()
	w.netd.mu.Lock()
	defer w.netd.mu.Unlock()
	if got := w.netd.endpoints[second.id].Network.Mode; got != "container:"+first.id {
		t.Errorf("mode = %s", got)
	}
	if second.spec.Network.Mode != "container:sleep-box" {
		t.Errorf("the record has %s", second.spec.Network.Mode)
	}
}

func TestImportIsRelayed(t *testing.T) {
	w := newWorld(t)
	s, err := w.images().Import(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	s.Send(&apiv1.ImageServiceImportRequest{Message: &apiv1.ImageServiceImportRequest_Header_{Header: &apiv1.ImageServiceImportRequest_Header{Reference: "tar"}}})
	for range 10 {
		s.Send(&apiv1.ImageServiceImportRequest{Message: &apiv1.ImageServiceImportRequest_Data{Data: make([]byte, 100_000)}})
	}
	s.CloseSend()
	m, err := s.Recv()
	if err != nil || m.GetResult().GetImageId() != "size:1000000" {
		t.Errorf("%v, %v", m, err)
	}
	// A client that dies in the middle makes no image.
	ctx, die := context.WithCancel(testContext(t))
	s, err = w.images().Import(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s.Send(&apiv1.ImageServiceImportRequest{Message: &apiv1.ImageServiceImportRequest_Header_{Header: &apiv1.ImageServiceImportRequest_Header{Reference: "half"}}})
	s.Send(&apiv1.ImageServiceImportRequest{Message: &apiv1.ImageServiceImportRequest_Data{Data: make([]byte, 1000)}})
	time.Sleep(50 * time.Millisecond)
	die()
	w.jobEnds("import", apiv1.JobState_JOB_STATE_CANCELLED)
	w.imaged.mu.Lock()
	defer w.imaged.mu.Unlock()
	if w.imaged.images["half"] {
		t.Error("half an archive became an image")
	}
}

func TestF28ReaderThatNeverReads(t *testing.T) {
	w := newWorld(t)
	s, err := openRun(testContext(t), w, &apiv1.RunRequest_Open{Spec: runSpec("flood"), Attach: &apiv1.AttachOptions{Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	until(t, s, isStarted)
	var before int
	w.eventually("a standstill", func() (string, bool) {
		time.Sleep(100 * time.Millisecond)
		w.execd.mu.Lock()
		now := w.execd.flooded
		w.execd.mu.Unlock()
		still := now == before && now > 0
		before = now
		return fmt.Sprint(now), still
	})
	if before > 200 { // × 64 KiB
		t.Errorf("%d KiB are buffered for a reader that does not read", before*64)
	}
	if _, err := w.containers().List(testContext(t), new(apiv1.ListRequest)); err != nil {
		t.Errorf("another call: %v", err)
	}
}

func TestReconcile(t *testing.T) {
	w := newFakes(t)
	w.imaged.rootfs["orphan"] = "web"
	w.netd.endpoints["orphan"] = &networkv1.AttachRequest{Network: new(apiv1.NetworkSpec)}
	w.imaged.rootfs["exited"], w.imaged.rootfs["exited-rm"], w.imaged.rootfs["running"] = "web", "web", "web"
	for id, c := range map[string]*fakeContainer{
		"exited":    {spec: &apiv1.ContainerSpec{Name: "a"}, state: apiv1.ContainerState_CONTAINER_STATE_EXITED},
		"exited-rm": {spec: &apiv1.ContainerSpec{Name: "b", AutoRemove: true}, state: apiv1.ContainerState_CONTAINER_STATE_EXITED},
		"running":   {spec: &apiv1.ContainerSpec{Name: "c"}, state: apiv1.ContainerState_CONTAINER_STATE_RUNNING},
	} {
		c.id = id
		w.execd.containers[id] = c
		w.netd.endpoints[id] = &networkv1.AttachRequest{Network: new(apiv1.NetworkSpec)}
	}
	w.imaged.start()
	w.netd.start()
	w.startApid()
	time.Sleep(300 * time.Millisecond)
	if got := w.counts(); got != (counts{3, 4, 4}) {
		t.Fatalf("something was taken although execd could not be asked: %+v", got)
	}
	w.execd.start()
	w.expect(counts{containers: 2, rootfs: 2, endpoints: 1})
	w.netd.mu.Lock()
	defer w.netd.mu.Unlock()
	if w.netd.endpoints["running"] == nil {
		t.Error("the running container lost its network")
	}
}

func TestReconcilerSparesWhatIsBeingMade(t *testing.T) {
	w := newWorld(t)
	w.imaged.pullGate = make(chan struct{})
	spec := runSpec("sleep")
	spec.Image = "new" // its endpoint is there while the image is pulled
	s, err := openRun(testContext(t), w, &apiv1.RunRequest_Open{Spec: spec, Detach: true})
	if err != nil {
		t.Fatal(err)
	}
	until(t, s, isProgress)
	w.expect(counts{endpoints: 1})
	w.execd.stop()
	w.execd.start() // wakes the reconciler
	time.Sleep(800 * time.Millisecond)
	w.expect(counts{endpoints: 1})
	close(w.imaged.pullGate)
	until(t, s, isStarted)
	w.expect(counts{1, 1, 1})
}

func TestF01ApidRestart(t *testing.T) {
	w := newWorld(t)
	ctx := testContext(t)
	spec := runSpec("sleep")
	spec.AutoRemove = true
	if _, err := runOnce(ctx, w, &apiv1.RunRequest_Open{Spec: spec, Detach: true}); err != nil {
		t.Fatal(err)
	}
	w.stop()
	// What a killed apid would have left in its journal.
	records, err := journal.Open(filepath.Join(w.dir, "root/apid/jobs"), journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	left, _ := proto.Marshal(&apiv1.Job{Id: "0123456789ab", Kind: "run", State: apiv1.JobState_JOB_STATE_RUNNING, CreatedAt: timestamppb.Now()})
	records.Put("job/0123456789ab", left, true)
	records.Close()
	// Meanwhile the container exits.
	w.execd.mu.Lock()
	c := w.execd.find("sleep-box")
	w.execd.mu.Unlock()
	w.execd.finish(c, 0)

	w.startApid()
	w.expect(counts{})
	if j := w.job("0123456789ab"); j.State != apiv1.JobState_JOB_STATE_FAILED || j.Error != "apid was restarted" || j.EndedAt == nil {
		t.Errorf("interrupted job: %v", j)
	}
	if j := w.job(w.jobEnds("run", apiv1.JobState_JOB_STATE_FAILED).Id[:8]); j.Id != "0123456789ab" {
		t.Errorf("by prefix: %v", j)
	}
}

func TestStoppingApidUndoesWhatHasNotStarted(t *testing.T) {
	w := newWorld(t)
	s, err := openRun(testContext(t), w, &apiv1.RunRequest_Open{Spec: runSpec("slow-start")})
	if err != nil {
		t.Fatal(err)
	}
	w.expect(counts{1, 1, 1})
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if _, err := s.Recv(); !errors.Is(err, fault.Unavailable) {
		t.Errorf("the client hears %v", err)
	}
	w.expect(counts{})
}

func TestEventsAreMerged(t *testing.T) {
	w := newWorld(t)
	stream, err := apiv1.NewEventServiceClient(w.conn).Watch(testContext(t), &apiv1.EventServiceWatchRequest{Since: timestamppb.Now()})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	see := func(want ...string) {
		t.Helper()
		for _, key := range want {
			for !seen[key] {
				m, err := stream.Recv()
				if err != nil {
					t.Fatalf("waiting for %s: %v", key, err)
				}
				seen[m.Event.Daemon+" "+m.Event.Type+" "+m.Event.Action] = true
			}
		}
	}
	if _, err := runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: runSpec("false")}); err != nil {
		t.Fatal(err)
	}
	see("execd container create", "execd container start", "execd container die", "apid job begin", "apid job succeeded")
	// Across a restart of execd.
	w.execd.stop()
	w.execd.start()
	w.execd.mu.Lock()
	w.execd.emit("oom", "x")
	w.execd.mu.Unlock()
	see("execd container oom")
}

func TestEventsOfThePastEnd(t *testing.T) {
	w := newWorld(t)
	since := timestamppb.Now()
	if _, err := runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: runSpec("false")}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	stream, err := apiv1.NewEventServiceClient(w.conn).Watch(testContext(t), &apiv1.EventServiceWatchRequest{Since: since, Until: timestamppb.Now()})
	if err != nil {
		t.Fatal(err)
	}
	var last time.Time
	n := 0
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if at := m.Event.Time.AsTime(); at.Before(last) {
			t.Error("not in order of time")
		} else {
			last = at
		}
		n++
	}
	if n < 5 {
		t.Errorf("%d events", n)
	}
}

func TestF28SlowEventReaderIsCutOff(t *testing.T) {
	w := newWorld(t)
	stream, err := apiv1.NewEventServiceClient(w.conn).Watch(testContext(t), &apiv1.EventServiceWatchRequest{Since: timestamppb.Now()})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	long := strings.Repeat("x", 1000)
	for range 6000 {
		w.execd.mu.Lock()
		w.execd.emit("exec_start", long)
		w.execd.mu.Unlock()
	}
	time.Sleep(300 * time.Millisecond)
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, fault.ResourceExhausted) {
		t.Errorf("err = %v", err)
	}
}

func TestInfoSaysWhoIsAway(t *testing.T) {
	w := newWorld(t)
	w.netd.stop()
	info, err := apiv1.NewSystemServiceClient(w.conn).Info(testContext(t), new(apiv1.SystemServiceInfoRequest))
	if err != nil || info.Id == "" || info.Cpus == 0 || info.MemoryBytes == 0 || info.Kernel == "" {
		t.Fatalf("%v, %v", info, err)
	}
	if !strings.Contains(strings.Join(info.Warnings, "\n"), "netd: netd does not answer") {
		t.Errorf("warnings = %q", info.Warnings)
	}
}

func TestDiskUsage(t *testing.T) {
	w := newWorld(t)
	usage, err := apiv1.NewSystemServiceClient(w.conn).DiskUsage(testContext(t), new(apiv1.SystemServiceDiskUsageRequest))
	if err != nil || len(usage.Items) != 3 {
		t.Fatalf("%v, %v", usage, err)
	}
	want := &apiv1.SystemServiceDiskUsageResponse_Item{Kind: "images", Total: 2, Active: 1, SizeBytes: 100, ReclaimableBytes: 20}
	if !proto.Equal(usage.Items[0], want) {
		t.Errorf("images: %v, want %v", usage.Items[0], want)
	}
}

func TestConnectResolvesTheContainer(t *testing.T) {
	w := newWorld(t)
	if _, err := runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: runSpec("sleep"), Detach: true}); err != nil {
		t.Fatal(err)
	}
	_, err := apiv1.NewNetworkServiceClient(w.conn).Connect(testContext(t), &apiv1.NetworkServiceConnectRequest{Network: "n", Container: "sleep-box"})
	if err != nil || len(w.netd.connected) != 1 || len(w.netd.connected[0]) != 64 {
		t.Errorf("%v, %v", w.netd.connected, err)
	}
}

// The cost of apid's part of `berth run --rm true`, daemons faked.
func BenchmarkRun(b *testing.B) {
	w := newWorld(b)
	ctx := metadata.NewOutgoingContext(context.Background(), nil)
	for i := 0; b.Loop(); i++ {
		spec := &apiv1.ContainerSpec{Image: "web", Args: []string{"false"}, AutoRemove: true}
		all, err := runOnce(ctx, w, &apiv1.RunRequest_Open{Spec: spec})
		if err != nil || all[len(all)-1].GetExited() == nil {
			b.Fatal(err)
		}
	}
}

// Clients that leave at any moment cost nothing afterwards.
func TestS28NothingStaysOfClientsThatLeft(t *testing.T) {
	w := newWorld(t)
	system := apiv1.NewSystemServiceClient(w.conn)
	goroutines := func() int64 {
		resp, err := system.GetDaemonInfo(testContext(t), new(apiv1.SystemServiceGetDaemonInfoRequest))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Info.Counters["goroutines"]
	}
	round := func(n int) {
		for i := range n {
			ctx, leave := context.WithTimeout(context.Background(), time.Duration(i%12)*time.Millisecond)
			spec := runSpec([]string{"echo", "false", "flood", "missing"}[i%4])
			spec.Name, spec.AutoRemove = "", true
			if s, err := openRun(ctx, w, &apiv1.RunRequest_Open{Spec: spec, Attach: &apiv1.AttachOptions{Stdin: true}}); err == nil {
				s.Recv()
				s.Recv()
			}
			w.containers().Inspect(ctx, &apiv1.InspectRequest{Container: "nope"})
			if s, err := w.containers().Exec(ctx); err == nil {
				s.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Stdin{Stdin: []byte("x")}})
				s.Recv()
			}
			if s, err := apiv1.NewEventServiceClient(w.conn).Watch(ctx, new(apiv1.EventServiceWatchRequest)); err == nil && i%8 == 0 {
				s.Recv()
			}
			leave()
		}
	}
	round(20)
	time.Sleep(300 * time.Millisecond)
	base := goroutines()
	round(120)
	w.eventually(fmt.Sprintf("about %d goroutines", base), func() (string, bool) {
		now := goroutines()
		return fmt.Sprint(now), now < base+20
	})
	// Those that had started go on; when they end nothing is left.
	w.execd.mu.Lock()
	var running []*fakeContainer
	for _, c := range w.execd.containers {
		running = append(running, c)
	}
	w.execd.mu.Unlock()
	for _, c := range running {
		w.execd.finish(c, 0)
	}
	w.expect(counts{})
}
