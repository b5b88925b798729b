package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"berth/internal/events"
	"berth/internal/fault"
	"berth/internal/faultpoint"
	"berth/libcontainer/cgroup"
	"berth/libcontainer/netns"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	"berth/services/execd/container"
	"berth/services/execd/keeper"
	"berth/services/execd/launch"
	"berth/services/execd/monitor/wire"
	"berth/services/execd/records"
)

var (
	recorded      = faultpoint.Declare("execd.container-recorded", "the record is written, nobody was told")
	planned       = faultpoint.Declare("execd.launch-planned", "the state is starting, the monitor was not asked")
	started       = faultpoint.Declare("execd.started", "the command runs, the record says starting")
	exitSeen      = faultpoint.Declare("execd.exit-seen", "the monitor told of an exit, the record says running")
	recordRemoved = faultpoint.Declare("execd.record-removed", "the record is gone, files and cgroup are not")
	removing      = faultpoint.Declare("execd.removing", "the record says removing, it is still there")
)

// Config is what a Manager is made from.
type Config struct {
	Log      hclog.Logger
	StateDir string // $ROOT/execd
	RunDir   string // $RUN/execd
	Records  *records.Store
	Builder  *launch.Builder
	Events   *events.Ring
	Netns    *netns.Server
	// Monitor is the path of the monitor, Init that of berth-init.
	Monitor, Init string
	// Layers is the folder below which imaged keeps images that the monitor mounts.
	Layers string
}

// Manager is the life of all containers. Its methods may be called from any
// goroutine.
type Manager struct {
	Config
	Containers *container.Store

	keeper   *keeper.Keeper
	parent   *cgroup.Parent
	layout   cgroup.Layout
	janitor  janitor
	sessions sessions
	restarts restarts
	standby  standby
	// recovered is closed when the containers of before are known.
	recovered chan struct{}
	life      context.Context
	end       context.CancelFunc
	exits     sync.WaitGroup
}

// Open finds the containers there are and takes care of them.
func Open(ctx context.Context, cfg Config) (*Manager, error) {
	m := &Manager{Config: cfg, Containers: container.NewStore(), recovered: make(chan struct{})}
	m.life, m.end = context.WithCancel(context.WithoutCancel(ctx))
	var err error
	if m.layout, err = cgroup.Detect(); err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	if m.parent, err = cgroup.OpenParent(m.layout, cfg.Builder.Parent); err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", cfg.Builder.Parent, err)
	}
	m.janitor.start(m.life)
	k, states, err := keeper.Open(ctx, keeper.Config{
		Dir: cfg.RunDir, Monitor: cfg.Monitor, Args: m.monitorArgs(),
		Log: cfg.Log.Named("keeper"), Exited: m.onExit, Lost: m.onLost,
		Gone: m.onMonitorGone,
	})
	if err != nil {
		return nil, err
	}
	m.keeper = k
	if err := m.recover(states); err != nil {
		m.Close()
		return nil, err
	}
	close(m.recovered)
	return m, nil
}

// Close leaves containers alone, and the monitor while there are any.
func (m *Manager) Close() {
	m.standAllDown()
	if m.keeper != nil && !m.active() {
		// What the last containers left must be gone before the monitor can take
		// the control group away that they were in.
		ctx, cancel := context.WithTimeout(context.Background(), retireTime)
		m.janitor.drain(ctx)
		if err := m.keeper.Retire(ctx); err != nil {
			m.Log.Warn("monitor not told to quit", "error", err)
		}
		cancel()
	}
	m.end()
	if m.keeper != nil {
		m.keeper.Close()
	}
	m.exits.Wait()
	m.janitor.wait()
	m.parent.Close()
}

// retireTime is for what the janitor has left to do, and one message.
const retireTime = 3 * time.Second

// active reports whether any container needs the monitor.
func (m *Manager) active() bool {
	return slices.ContainsFunc(m.Containers.All(), func(c *container.Container) bool { return c.Info().State.Active() })
}

// Keeper gives access to the monitor, for streams.
func (m *Manager) Keeper() *keeper.Keeper { return m.keeper }

// Layout is the host's cgroups.
func (m *Manager) Layout() cgroup.Layout { return m.layout }

// monitorArgs tells a monitor what to keep ready.
func (m *Manager) monitorArgs() []string {
	d := m.Builder.Defaults
	standard, _ := launch.Resources(nil, d.PidsLimit) // cannot fail: it asks for nothing
	return []string{
		"--dir", m.RunDir, "--init", m.Init, "--parent", m.Builder.Parent, "--layers", m.Layers,
		"--pool", strconv.Itoa(d.PoolSize), "--pids", strconv.FormatInt(standard.Pids, 10),
	}
}

// onMonitorGone ends what only the dead monitor could have told of.
func (m *Manager) onMonitorGone() {
	m.failSessions("the monitor died")
	m.janitor.later(m.sweepGroups)
}

// runDir is the container's folder in the run folder: generated files and exit.
func (m *Manager) runDir(id string) string { return filepath.Join(m.RunDir, "c", id) }

// stateDir is the container's folder with its log.
func (m *Manager) stateDir(id string) string { return filepath.Join(m.StateDir, "containers", id) }

// LogDir is the folder of a container's log, empty when it keeps none.
func (m *Manager) LogDir(i *container.Info) string {
	if i.Spec.GetLog().GetDriver() == "none" {
		return ""
	}
	return m.stateDir(i.ID)
}

// Group opens the cgroup of a running container.
func (m *Manager) Group(i *container.Info) (*cgroup.Group, error) { return m.parent.Open(i.Cgroup) }

// persist records each change; what concerns a run need not wait for the disk.
func (m *Manager) persist(i *container.Info) error {
	if i.AutoRemove() && (i.State == container.Exited || i.State == container.Removing || i.State == container.Gone) {
		return nil // its record is gone already
	}
	if i.State == container.Gone {
		return nil
	}
	return m.Records.Put(i, false)
}

// persistStarted is persist for a container that nobody was told of before it
// runs.
func (m *Manager) persistStarted(i *container.Info) error {
	if i.State == container.Starting && (i.Pending || i.AutoRemove()) {
		return nil
	}
	return m.persist(i)
}

// Create reserves id and name and writes the record.
func (m *Manager) Create(req *execv1.CreateRequest) (*container.Container, error) {
	return m.create(req, m.persist, func(i *container.Info) error { return m.Records.Put(i, true) })
}

// CreateForStart is Create for a container that the caller starts at once. If its record is to be on the disk then, kept
// waits for that; otherwise it is nil.
//
// One that goes with its exit, or is pending, is first recorded when it runs: until then it is nothing that anybody could
// want back, and recovery ends what has no record. Of any other the record is on its way to the disk while it is launched.
func (m *Manager) CreateForStart(req *execv1.CreateRequest) (c *container.Container, kept func() error, err error) {
	later := func(*container.Info) error { return nil }
	if req.GetSpec().GetAutoRemove() || req.Pending {
		c, err = m.create(req, m.persistStarted, later)
		return c, nil, err
	}
	r := &early{manager: m}
	c, err = m.create(req, r.persist, later)
	return c, r.wait, err
}

// early is a record that goes to the disk as soon as there is one, and that one says that the container is starting.
type early struct {
	manager *Manager
	done    chan struct{} // nil before the first record; changes are one at a time, and precede the wait
	err     error
}

func (r *early) persist(i *container.Info) error {
	if err := r.manager.persist(i); err != nil || r.done != nil {
		return err
	}
	r.done = make(chan struct{})
	go func() {
		defer close(r.done)
		r.err = r.manager.Records.Sync(i)
	}()
	return nil
}

// wait is called by who has started the container.
func (r *early) wait() error {
	<-r.done
	return r.err
}

// Confirm makes a pending container one that lasts: somebody is about to be told of
// it, and all else that it needs is on the disk.
func (m *Manager) Confirm(c *container.Container) error {
	i, err := c.Edit(func(i *container.Info) error {
		if i.State == container.Removing || i.State == container.Gone {
			return fault.NotFound.Errorf("CONTAINER_NOT_FOUND", "the container is being removed")
		}
		i.Pending = false
		return nil
	})
	if err != nil {
		return err
	}
	// Not written once more: it may have ended meanwhile, which the record then says.
	return m.Records.Sync(i)
}

// create calls record for the new container, and persist for each of its changes.
func (m *Manager) create(req *execv1.CreateRequest, persist, record func(*container.Info) error) (*container.Container, error) {
	spec := req.GetSpec()
	if spec == nil {
		return nil, fault.InvalidArgument.Errorf("SPEC", "the request has no container")
	}
	image := req.GetRootfs().GetConfig()
	if s := m.standby.peek(req.Id); s == nil || !proto.Equal(s.spec, spec) { // else it has passed
		if err := m.check(spec, image); err != nil {
			return nil, err
		}
	}
	name, err := m.Containers.Reserve(req.Id, spec.Name)
	if err != nil {
		return nil, err
	}
	i := newInfo(req, name)
	err = m.reserveIDs(i)
	if err == nil {
		err = record(i)
	}
	if err == nil {
		if err = recorded.Hit(); err != nil {
			m.Records.Delete(i)
		}
	}
	if err != nil {
		m.Containers.Free(i.ID, i.Name)
		m.Containers.FreeIDs(i.ID, i.IDBase)
		return nil, err
	}
	c := container.New(i, persist)
	m.Containers.Add(c)
	m.Events.Emit("container", "create", i.ID, attributes(i))
	return c, nil
}

// check finds what is wrong with a container that is to be. It touches nothing.
func (m *Manager) check(spec *apiv1.ContainerSpec, image *apiv1.ImageConfig) error {
	if err := m.Builder.Check(spec, image); err != nil {
		return err
	}
	if err := checkLog(spec); err != nil {
		return err
	}
	return checkRestart(spec)
}

// reserveIDs is for a container with a user namespace of its own.
func (m *Manager) reserveIDs(i *container.Info) (err error) {
	private, err := m.Builder.PrivateUsers(i.Spec)
	if private && err == nil {
		i.IDBase, err = m.Containers.ReserveIDs(i.ID)
	}
	return err
}

func newInfo(req *execv1.CreateRequest, name string) *container.Info {
	r := req.GetRootfs()
	i := &container.Info{
		ID: req.Id, Name: name, State: container.Created, Spec: req.Spec, ImageID: r.GetImageId(), Image: r.GetConfig(),
		CreatedBy: req.CreatedBy, CreatedAt: time.Now(), Pending: req.Pending,
	}
	i.Volumes = volumePoints(r, req.Spec)
	i.Mounts = i.Volumes
	// What inspect shows before the first start; none of these can fail now.
	i.Command, _ = launch.Args(req.Spec, i.Image)
	i.Hostname, _ = launch.Hostname(req.Spec, req.Id)
	i.Env, _ = launch.Env(req.Spec, i.Image, i.Hostname)
	i.Cwd, _ = launch.Cwd(req.Spec, i.Image)
	return i
}

// attributes are what every event of a container tells.
func attributes(i *container.Info, more ...string) map[string]string {
	a := map[string]string{"name": i.Name, "image": i.Spec.GetImage()}
	for k, v := range i.Spec.GetLabels() {
		if _, taken := a[k]; !taken {
			a[k] = v
		}
	}
	for n := 0; n+1 < len(more); n += 2 {
		a[more[n]] = more[n+1]
	}
	return a
}

// exitAttributes are those of "die".
func exitAttributes(i *container.Info) map[string]string {
	a := attributes(i, "exitCode", strconv.Itoa(int(i.Exit.Code)))
	if i.Exit.OOM {
		a["oom"] = "true"
	}
	if i.Exit.Error != "" {
		a["error"] = i.Exit.Error
	}
	return a
}

// Remove removes a container that does not run, or kills it first by force.
func (m *Manager) Remove(ctx context.Context, c *container.Container, force bool) error {
	if force && c.Info().State.Active() {
		if _, _, err := m.Stop(ctx, c, time.Nanosecond, 0); err != nil {
			return err
		}
	}
	c.Work.Lock()
	defer c.Work.Unlock()
	if c.Info().State == container.Gone {
		return nil // it went by itself with its exit
	}
	i, err := c.Move(container.Remove, nil)
	if err != nil {
		return err
	}
	if err := removing.Hit(); err != nil {
		return err
	}
	return m.removeRecord(c, i)
}

// removeRecord ends the container; its state is Removing.
func (m *Manager) removeRecord(c *container.Container, i *container.Info) error {
	if err := m.Records.Delete(i); err != nil {
		c.Move(container.Break, nil)
		return err
	}
	if err := recordRemoved.Hit(); err != nil {
		return err
	}
	m.Containers.Drop(c)
	c.Move(container.Removed, nil)
	m.Events.Emit("container", "destroy", i.ID, attributes(i))
	m.sweepLater(c, true)
	return nil
}

// sweepLater removes what a run, or with all the whole container, left behind.
func (m *Manager) sweepLater(c *container.Container, all bool) {
	id, group := c.Info().ID, c.Info().Cgroup
	if group == "" {
		group = id // a monitor that died in the start may have made it
	}
	m.janitor.later(func() {
		if !all {
			// A start that begins between the look and the deletion would lose the
			// group it has just made.
			c.Work.Lock()
			defer c.Work.Unlock()
		}
		if now := c.Info(); !all && now.State.Active() && (now.Cgroup == group || now.State == container.Starting) {
			return // started again
		}
		if err := m.deleteGroup(group); err != nil {
			m.Log.Warn("delete cgroup", "container", id, "error", err)
		}
		if !all {
			return
		}
		if err := removeFolder(m.runDir(id)); err != nil {
			m.Log.Warn("delete run folder", "container", id, "error", err)
		}
		c.Logs.Lock()
		defer c.Logs.Unlock()
		if err := os.RemoveAll(m.stateDir(id)); err != nil {
			m.Log.Warn("delete log", "container", id, "error", err)
		}
	})
}

// removeFolder deletes a container's run folder. On a busy machine the monitor may
// not have heard that we know of the exit and writes it down there just then: a
// file that appears after the look at the folder keeps it from going.
func removeFolder(dir string) (err error) {
	const most = 10 // the monitor writes once
	for range most {
		if err = os.RemoveAll(dir); !errors.Is(err, syscall.ENOTEMPTY) {
			break
		}
	}
	return err
}

// deleteGroup ends everything in a container's cgroup and removes it.
func (m *Manager) deleteGroup(name string) error {
	if name == "" {
		return nil // it never had one
	}
	g, err := m.parent.Open(name)
	if errors.Is(err, cgroup.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer g.Close()
	if procs, err := g.Procs(); err != nil || len(procs) > 0 {
		if err := g.Kill(); err != nil && !errors.Is(err, cgroup.ErrNotFound) {
			return err
		}
	}
	return g.Delete()
}

// Rename gives a container another name.
func (m *Manager) Rename(c *container.Container, name string) error {
	old := c.Info().Name
	err := m.Containers.Rename(c, name, func() error {
		i, err := c.Edit(func(i *container.Info) error {
			if i.State == container.Removing || i.State == container.Gone {
				return fault.NotFound.Errorf("CONTAINER_NOT_FOUND", "the container is being removed")
			}
			i.Name = name
			return nil
		})
		if err == nil {
			err = m.Records.Put(i, true)
		}
		return err
	})
	if err == nil {
		m.Events.Emit("container", "rename", c.Info().ID, attributes(c.Info(), "oldName", old))
	}
	return err
}

// target is a container's first process.
func target(i *container.Info) wire.Target { return wire.Target{ID: i.ID} }
