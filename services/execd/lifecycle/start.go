package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	imagev1 "berth/proto/berth/image/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/execd/container"
	"berth/services/execd/launch"
	"berth/services/execd/monitor"
	"berth/services/execd/monitor/wire"
)

// Given is what imaged and netd hand out for a start.
type Given struct {
	Rootfs   *imagev1.Rootfs
	Network  *networkv1.AttachResponse
	Timeline *Timeline
}

// Client is one to be attached before the command runs.
type Client struct {
	Streams wire.Streams
	Far     *os.File
}

// Start runs a container's command. The error has a reason that tells a command
// that is missing from one that cannot be executed.
func (m *Manager) Start(ctx context.Context, c *container.Container, g Given, client *Client) (*container.Info, error) {
	begin := g.Timeline.Now()
	c.Work.Lock()
	defer c.Work.Unlock()
	g.Timeline.Add("container's turn", apiv1.Stage_STAGE_QUEUE, begin)
	m.restarts.cancel(c.Info().ID)
	i, err := c.Move(container.Start, func(i *container.Info) {
		i.Namespace, i.Endpoints, i.Stopped = g.Network.GetNamespace(), g.Network.GetEndpoints(), false
	})
	if err != nil {
		return nil, err
	}
	i, err = m.run(ctx, c, i, g, client)
	if err != nil {
		m.startFailed(c, err)
		return nil, err
	}
	m.Events.Emit("container", "start", i.ID, attributes(i))
	return i, nil
}

// run is Start between the states.
func (m *Manager) run(ctx context.Context, c *container.Container, i *container.Info, g Given, client *Client) (*container.Info, error) {
	begin := g.Timeline.Now()
	stands := m.standby.take(i.ID)
	plan, req, err := m.planAgain(i, g, stands)
	if err != nil {
		return nil, err
	}
	req.Trace = g.Timeline != nil
	if stands == nil || restarting(i.Spec) { // what is started again is built anew
		if req.Config, req.Filter, err = plan.Start.Encode(); err != nil {
			return nil, err
		}
	}
	if err := planned.Hit(); err != nil {
		return nil, err
	}
	if err := m.restarts.keep(m.runDir(i.ID), i, req); err != nil {
		return nil, err
	}
	g.Timeline.Add("execd plan", apiv1.Stage_STAGE_RECORD, begin)
	got, err := m.launchStanding(ctx, stands, plan, req, g, client)
	if got == nil && err == nil {
		got, err = m.launch(ctx, i, plan, req, client)
	}
	if err != nil {
		return nil, err
	}
	if err := started.Hit(); err != nil {
		return nil, err
	}
	return c.Move(container.Started, func(i *container.Info) {
		i.Pid, i.StartedAt, i.Cgroup, i.Cgroups = got.Pid, got.StartedAt, got.Cgroup, got.Cgroups
		i.Command, i.Env, i.Cwd, i.Hostname, i.Mounts = plan.Command, plan.Env, plan.Cwd, plan.Hostname, plan.Mounts
		i.Trace = g.Timeline.launched(got)
		i.Warnings = append(append(plan.Warnings, g.Network.GetWarnings()...), got.Warnings...)
		i.RestartCount = 0
	})
}

// planAgain is plan, unless that has been made already.
func (m *Manager) planAgain(i *container.Info, g Given, ahead *standing) (*launch.Plan, *wire.Launch, error) {
	if ahead.repeats(i.Spec, g.Network) {
		req := *ahead.launch
		req.Stands, req.Config, req.Filter = false, nil, nil
		return ahead.plan, &req, nil
	}
	return m.plan(i, g, ahead)
}

// plan makes the container's folders, and the request to the monitor but for the
// configuration. What was built ahead has files already.
func (m *Manager) plan(i *container.Info, g Given, ahead *standing) (*launch.Plan, *wire.Launch, error) {
	dir, err := m.makeRunDir(i.ID)
	if err != nil {
		return nil, nil, err
	}
	var etc map[string][]byte
	if ahead != nil {
		etc = ahead.plan.Etc
	}
	plan, err := m.Builder.Build(&launch.Input{
		Etc: etc,
		ID:  i.ID, IDBase: i.IDBase, Spec: i.Spec, Image: i.Image, Recipe: g.Rootfs.GetRecipe(), Volumes: g.Rootfs.GetVolumes(),
		Network: g.Network, Dir: dir, Peer: m.peer,
	})
	if err != nil {
		return nil, nil, err
	}
	req := &wire.Launch{
		ID: i.ID, Stdio: plan.Stdio, Dir: dir, KillAll: plan.KillAll,
		Parent: plan.Start.Parent,
	}
	if logDir := m.LogDir(i); logDir != "" {
		req.Log = m.logLimits(i.Spec.GetLog(), logDir)
	}
	return plan, req, nil
}

// makeRunDir makes the container's folder in the run folder, or rids it of what
// tells of the run before.
func (m *Manager) makeRunDir(id string) (string, error) {
	dir := m.runDir(id)
	err := os.Mkdir(dir, 0o700)
	switch {
	case errors.Is(err, os.ErrNotExist): // the first container of all
		err = os.MkdirAll(dir, 0o700)
	case errors.Is(err, os.ErrExist):
		if err = os.Remove(filepath.Join(dir, monitor.ExitFile)); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	return dir, err
}

func (m *Manager) logLimits(l *apiv1.LogSpec, dir string) wire.Log {
	out := wire.Log{Dir: dir, MaxBytes: l.GetMaxSizeBytes(), MaxFiles: int(l.GetMaxFiles())}
	if out.MaxBytes == 0 {
		out.MaxBytes = int64(m.Builder.Defaults.LogMaxSize)
	}
	if out.MaxFiles == 0 {
		out.MaxFiles = m.Builder.Defaults.LogMaxFiles
	}
	return out
}

// launch has the monitor build the container and start its command.
func (m *Manager) launch(ctx context.Context, i *container.Info, plan *launch.Plan, req *wire.Launch, client *Client) (got *wire.Launched, err error) {
	if req.Config == nil {
		if req.Config, req.Filter, err = plan.Start.Encode(); err != nil {
			return nil, err
		}
	}
	err = m.withNamespace(i.Namespace, func(netns int) error {
		got, err = m.ask(ctx, req, netns, client)
		return err
	})
	return got, commandError(err)
}

// withNamespace calls do with a descriptor of a network namespace that we hold, negative for
// any other.
func (m *Manager) withNamespace(ns *networkv1.Namespace, do func(netns int) error) error {
	if ns.GetKind() != networkv1.Namespace_KIND_HELD {
		return do(-1)
	}
	f, err := m.Netns.Get(ns.Id)
	if err != nil {
		return fault.Unavailable.Errorf("NAMESPACE_GONE", "network namespace: %w", err).
			Hint("try again")
	}
	defer f.Close()
	return do(wire.FD(f))
}

// ask sends the monitor a launch.
func (m *Manager) ask(ctx context.Context, req *wire.Launch, netns int, client *Client) (*wire.Launched, error) {
	var far *os.File
	if client != nil {
		req.Attach, far = &client.Streams, client.Far
	}
	return m.keeper.Launch(ctx, req, netns, far)
}

// commandError turns what the monitor says into what clients know.
func commandError(err error) error {
	var w *wire.Error
	if !errors.As(err, &w) {
		return err
	}
	switch w.Code {
	case wire.CodeNoCommand:
		return fault.NotFound.Errorf("COMMAND_NOT_FOUND", "%w", w)
	case wire.CodeNotExecutable:
		return fault.PermissionDenied.Errorf("COMMAND_NOT_EXECUTABLE", "%w", w)
	case wire.CodeInvalid:
		return fault.InvalidArgument.Errorf("LAUNCH_REFUSED", "%w", w)
	case wire.CodeUnsupported:
		return fault.Unimplemented.Errorf("HOST_CANNOT", "%w", w)
	case wire.CodeNoMemory:
		return fault.ResourceExhausted.Errorf("HOST_EXHAUSTED", "%w", w)
	case wire.CodeBusy:
		return fault.FailedPrecondition.Errorf("CONTAINER_RUNNING", "%w", w)
	case wire.CodeNotFound:
		return fault.FailedPrecondition.Errorf("CONTAINER_NOT_RUNNING", "%w", w)
	}
	return fault.Internal.Errorf("LAUNCH_FAILED", "%w", w)
}

// startFailed puts the container back, with what a shell would say as status.
// What a killed monitor may have left is ended.
func (m *Manager) startFailed(c *container.Container, cause error) {
	code := int32(125)
	switch {
	case errors.Is(cause, fault.NotFound):
		code = 127
	case errors.Is(cause, fault.PermissionDenied):
		code = 126
	}
	_, err := c.Must(container.StartFailed, func(i *container.Info) {
		i.Exit = &container.ExitStatus{Code: code, Error: cause.Error(), At: time.Now()}
		i.Pid, i.Endpoints, i.Namespace = 0, nil, nil
	})
	if err != nil {
		m.Log.Error("note failed start", "container", c.Info().ID, "error", err)
	}
	m.sweepLater(c, false)
}

// peer finds the first process of a running container whose namespaces are to
// be shared.
func (m *Manager) peer(ref string) (int, error) {
	c, err := m.Containers.Find(ref)
	if err != nil {
		return 0, err
	}
	i := c.Info()
	if !i.State.Up() {
		return 0, fault.FailedPrecondition.Errorf("CONTAINER_NOT_RUNNING", "container %s does not run", i.Name)
	}
	return i.Pid, nil
}

// volumePoints are the volumes as the record keeps them: where they are on the
// host is imaged's to know.
func volumePoints(r *imagev1.Rootfs, spec *apiv1.ContainerSpec) []*apiv1.MountPoint {
	var out []*apiv1.MountPoint
	for _, v := range r.GetVolumes() {
		p := &apiv1.MountPoint{Type: apiv1.MountType_MOUNT_TYPE_VOLUME, Name: v.Name, Target: v.Target}
		for _, m := range spec.Mounts {
			if m.Target == v.Target {
				p.ReadOnly = m.ReadOnly
			}
		}
		out = append(out, p)
	}
	return out
}

func checkLog(spec *apiv1.ContainerSpec) error {
	l := spec.GetLog()
	switch l.GetDriver() {
	case "", "file", "none":
	default:
		return fault.InvalidArgument.Errorf("LOG_DRIVER", "log driver %q: want file or none", l.Driver)
	}
	const minSize = 64 << 10
	if s := l.GetMaxSizeBytes(); s != 0 && s < minSize {
		return fault.InvalidArgument.Errorf("LOG_SIZE", "log size %d bytes: the minimum is 64 KiB", s)
	}
	if n := l.GetMaxFiles(); n < 0 || n > 1000 {
		return fault.InvalidArgument.Errorf("LOG_FILES", "%d log files: want 1 to 1000", n)
	}
	return nil
}

// stopSignal cannot fail for a container that was created.
func stopSignal(i *container.Info) int {
	n, err := launch.StopSignal(i.Spec, i.Image)
	if err != nil {
		return 15
	}
	return n
}

var errStopTimeout = errors.New("some process did not end by SIGKILL")

func stopTimeoutError(i *container.Info) error {
	return fault.DeadlineExceeded.Errorf("STOP_TIMEOUT", "container %s: %w", i.Name, errStopTimeout).
		Hint("a process waits in the kernel (state D); the container ends when that does")
}

func notRunning(i *container.Info) error {
	return fault.FailedPrecondition.Errorf("CONTAINER_NOT_RUNNING", "container %s does not run, it is %s", i.Name, i.State).
		With("container", i.Name)
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
