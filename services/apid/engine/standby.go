package engine

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	networkv1 "berth/proto/berth/network/v1"
)

// Who has run a container often runs the next one of the same image soon: scripts,
// builds, functions, replicas. So after a run the engine gets root file system and
// endpoint for one more, and the next run asks only execd; and netd, when ports are
// to be published. The root file system of a container that lasts is on the disk by then.
//
// A spare is a container's parts under an id that no container has. It is made
// and released like those of a container whose making was broken off, so a
// crash leaves nothing that the reconciler does not know. It is the same that
// asking now would give: every call that could change what an image's name
// means, or that counts or removes what spares hold, releases them first
// (Calm, HoldStandby). Nobody is told of it: netd lists and announces the endpoint when it is
// used.

// standbyTime is how long spares wait for a run; then the engine is idle and
// holds nothing. The configuration says how many there are at most.
const standbyTime = 10 * time.Second

// alike is how many spares of one shape there are at most: one for the next run,
// and one for who comes while the first is replaced.
const alike = 2

// shape is what spares are made for. What lasts is mounted in another way. A container that was built ahead for one that is alike in too
// little has to be taken down before another is built, so rest tells them apart.
type shape struct {
	image, platform, network, rest string
	lasts                          bool
}

// unbuilt is the rest of containers that execd does not build ahead.
const unbuilt = "unbuilt"

// restOf is of a container what it is built of beside its parts: all but its command, environment,
// user and limits. Empty is the usual.
func restOf(s *apiv1.ContainerSpec) string {
	if s.Tty || s.Init || len(s.Mounts) > 0 || s.UsernsMode != "" {
		return unbuilt
	}
	key := &apiv1.ContainerSpec{
		WorkingDir: s.WorkingDir, Domainname: s.Domainname, ReadOnly: s.ReadOnly, ShmSizeBytes: s.ShmSizeBytes, Security: s.Security,
		Sysctls: s.Sysctls, Devices: s.Devices, PidMode: s.PidMode, IpcMode: s.IpcMode, UtsMode: s.UtsMode, CgroupnsMode: s.CgroupnsMode,
	}
	if proto.Size(key) == 0 {
		return ""
	}
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(key)
	if err != nil {
		return unbuilt
	}
	return string(text)
}

// spare is the parts of a container that nobody has asked for yet.
type spare struct {
	shape     shape
	container container
	parts     parts
	stands    bool   // execd has built it
	settled   func() // takes the id out of making
	epoch     int    // in which it was begun
	used      bool   // it may be a container's by now
	told      bool   // netd has announced its endpoint
}

// standby keeps the spares.
type standby struct {
	mu     sync.Mutex
	spares []*spare // the oldest first
	making []shape
	epoch  int // spares begun in an earlier epoch are not kept
	holds  int // calls that want none to be made meanwhile
	trails map[chan struct{}]bool
	expiry *time.Timer
}

// usualShape tells whether a container is one that spares are kept for: of an image that need not be pulled, with nothing
// of its own from imaged, and from netd at most ports.
func usualShape(s *apiv1.ContainerSpec) (shape, bool) {
	n := s.GetNetwork()
	own := n.GetIp() != "" || n.GetMacAddress() != "" || len(n.GetAliases()) > 0 ||
		len(n.GetDns()) > 0 || len(n.GetDnsSearch()) > 0 || len(n.GetDnsOptions()) > 0 || len(n.GetExtraHosts()) > 0
	volume := func(m *apiv1.MountSpec) bool { return m.Type == apiv1.MountType_MOUNT_TYPE_VOLUME }
	mode := n.GetMode()
	switch mode {
	case "":
		mode = defaultNetwork
	case defaultNetwork:
	case "none", "host":
		own = own || publishes(n) // netd says that it does not
	default:
		return shape{}, false
	}
	usual := s.Hostname == "" && !own && s.Pull != apiv1.PullPolicy_PULL_POLICY_ALWAYS && !slices.ContainsFunc(s.Mounts, volume)
	if !usual {
		return shape{}, false
	}
	return shape{s.Image, s.Platform, mode, restOf(s), !s.AutoRemove}, true
}

func publishes(n *apiv1.NetworkSpec) bool { return len(n.GetPorts()) > 0 || n.GetPublishAll() }

// takeSpare gives the parts of a container of that spec, or nil.
func (e *Engine) takeSpare(s *apiv1.ContainerSpec) *spare {
	want, usual := usualShape(s)
	if !usual || !e.Backends.Execd.Up() {
		return nil
	}
	b := &e.standby
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.spares, func(s *spare) bool { return s.shape == want })
	if i < 0 {
		return nil
	}
	taken := b.spares[i]
	b.spares = slices.Delete(b.spares, i, i+1)
	return taken
}

// putBack keeps a spare that was taken and not used.
func (e *Engine) putBack(ctx context.Context, s *spare) {
	b := &e.standby
	b.mu.Lock()
	keep := s.epoch == b.epoch
	if keep {
		b.spares = append(b.spares, s)
		b.expireLater(e)
	}
	b.mu.Unlock()
	if !keep {
		e.releaseSpares(ctx, []*spare{s})
	}
}

// use gives what stood by for a container to it. A container that goes with its exit and has no ports need not wait for
// netd: see announceLater. After an error that is the asker's own, such as a port in use, the spare is as before.
func (e *Engine) use(ctx context.Context, s *spare, c container) (parts, error) {
	n := c.spec.GetNetwork()
	ports := n.GetPorts()
	if n.GetPublishAll() {
		ports = allPorts(n, s.parts.rootfs.GetConfig().GetExposedPorts())
	}
	if c.spec.AutoRemove && len(ports) == 0 || s.shape.network != defaultNetwork {
		s.used = true
		return s.parts, nil
	}
	var resp *networkv1.UseResponse
	err := c.job.Step("netd use", "netd", func() (err error) {
		ctx, cancel := unbroken(ctx, callTime)
		defer cancel()
		resp, err = e.Backends.Endpoints().Use(ctx, &networkv1.UseRequest{ContainerId: c.id, ContainerName: c.spec.Name, Ports: ports})
		return err
	})
	if err == nil && len(resp.Endpoints) == 0 {
		err = fault.Unavailable.Errorf("ENDPOINT_GONE", "the endpoint that stood by for the container is gone").Hint("try again")
	}
	switch fault.KindOf(err) {
	case fault.AlreadyExists, fault.InvalidArgument, fault.Unimplemented:
		return parts{}, err
	}
	s.used, s.told = true, err == nil
	network := &networkv1.AttachResponse{ // a copy: what execd was told when it built the container stays so
		Namespace: s.parts.network.Namespace, Endpoints: resp.GetEndpoints(), Dns: s.parts.network.Dns,
		Sysctls: s.parts.network.Sysctls, Warnings: s.parts.network.Warnings,
	}
	return parts{s.parts.rootfs, network}, err
}

// announceAfter is how long after its start a container's endpoint is announced,
// if it was a spare's: a command that ends at once needs the processors more.
const announceAfter = 30 * time.Millisecond

// announceLater has netd list and announce the endpoint of a spare that was used,
// soon, or when now is called.
func (e *Engine) announceLater(ctx context.Context, id string) (now func()) {
	var once sync.Once
	announce := func(ctx context.Context) {
		once.Do(func() {
			if _, err := e.Backends.Endpoints().Use(ctx, &networkv1.UseRequest{ContainerId: id}); err != nil {
				e.Log.Debug("endpoint not announced", "container", id, "error", err)
			}
		})
	}
	timer := time.AfterFunc(announceAfter, func() { e.background(ctx, announce) })
	return func() {
		timer.Stop()
		ctx, cancel := lasting(ctx)
		defer cancel()
		announce(ctx)
	}
}

// standBy makes a spare like c, which has just run, unless there are enough. It
// is called in the background of c's end, or of its start if that is what was asked for. The oldest of other shapes give
// way.
func (e *Engine) standBy(ctx context.Context, c container) {
	want, usual := usualShape(c.spec)
	if !usual {
		return
	}
	b := &e.standby
	b.mu.Lock()
	most := e.Config.Apid.Standby
	if b.holds > 0 || b.count(want) >= min(alike, most) {
		b.mu.Unlock()
		return
	}
	var old []*spare
	if len(b.spares)+len(b.making) >= most && len(b.spares) > 0 {
		old, b.spares = b.spares[:1:1], slices.Clone(b.spares[1:])
	}
	b.making = append(b.making, want)
	epoch := b.epoch
	b.mu.Unlock()
	e.releaseSpares(ctx, old)

	made := e.makeSpare(ctx, want, c.spec)

	b.mu.Lock()
	if made != nil {
		made.epoch = epoch
	}
	i := slices.Index(b.making, want)
	b.making = slices.Delete(b.making, i, i+1)
	if made != nil && epoch == b.epoch {
		b.spares = append(b.spares, made)
		made = nil
		b.expireLater(e)
	}
	b.mu.Unlock()
	if made != nil {
		e.releaseSpares(ctx, []*spare{made})
	}
}

// count is the spares of a shape, with those being made. The lock is held.
func (b *standby) count(of shape) (n int) {
	for _, s := range b.spares {
		if s.shape == of {
			n++
		}
	}
	for _, s := range b.making {
		if s == of {
			n++
		}
	}
	return n
}

// makeSpare gives nil if it cannot be made, or should not: an image with volumes
// would get new ones, for all to see. The next container of a shape is probably like the last in
// more, so execd builds it like that one; if it is not, it is built again.
func (e *Engine) makeSpare(ctx context.Context, s shape, last *apiv1.ContainerSpec) *spare {
	c := container{id: newID(), spec: &apiv1.ContainerSpec{Image: s.image, Platform: s.platform, AutoRemove: !s.lasts, Network: &apiv1.NetworkSpec{Mode: s.network}}}
	made := &spare{shape: s, container: c, settled: e.making.add(c.id)}
	rootfs, err := e.Backends.Rootfs().Prepare(ctx, prepareRequest(c))
	if err == nil && len(rootfs.GetRootfs().GetConfig().GetVolumes()) == 0 {
		request := attachRequest(c, c.spec.Network)
		request.Standby = true
		var network *networkv1.AttachResponse
		if network, err = e.Backends.Endpoints().Attach(ctx, request); err == nil {
			made.parts = parts{rootfs: rootfs.Rootfs, network: network}
			if s.rest != unbuilt {
				e.build(ctx, made, last)
			}
			return made
		}
	}
	e.Log.Debug("no standby", "image", s.image, "error", err)
	e.releaseSpares(ctx, []*spare{made})
	return nil
}

// build has execd build a spare's container.
func (e *Engine) build(ctx context.Context, s *spare, like *apiv1.ContainerSpec) {
	resp, err := e.Backends.Launch().StandBy(ctx, &execv1.StandByRequest{
		Create:  &execv1.CreateRequest{Id: s.container.id, Spec: like, Rootfs: s.parts.rootfs},
		Network: s.parts.network,
	})
	s.stands = resp.GetStands()
	if err != nil {
		e.Log.Debug("not built ahead", "image", s.shape.image, "error", err)
	}
}

// HoldStandby releases all spares, returns when they are gone, and keeps new ones
// from being made until resume is called. What is still being given back of
// containers whose exit was told before is waited for as well: to their users
// they are gone.
func (e *Engine) HoldStandby(ctx context.Context) (resume func()) {
	b := &e.standby
	b.mu.Lock()
	b.holds++
	var trails []chan struct{}
	for done := range b.trails {
		trails = append(trails, done)
	}
	b.mu.Unlock()
	wait, cancel := context.WithTimeout(ctx, undoTime)
	defer cancel()
	for _, done := range trails {
		select {
		case <-done:
		case <-wait.Done():
		}
	}
	e.DropStandby(ctx)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.holds--
	}
}

// trail notes that work after a reply begins; done that it has ended.
func (b *standby) trail() (done func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.trails == nil {
		b.trails = map[chan struct{}]bool{}
	}
	ended := make(chan struct{})
	b.trails[ended] = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.trails, ended)
		close(ended)
	}
}

// DropStandby releases all spares and returns when they are gone.
func (e *Engine) DropStandby(ctx context.Context) {
	e.standby.mu.Lock()
	old := e.standby.clear()
	e.standby.mu.Unlock()
	e.releaseSpares(ctx, old)
}

// clear forgets the spares and those being made. The lock is held.
func (b *standby) clear() []*spare {
	old := b.spares
	b.spares = nil
	b.epoch++
	if b.expiry != nil {
		b.expiry.Stop()
		b.expiry = nil
	}
	return old
}

// expireLater is called with the lock, for each new spare.
func (b *standby) expireLater(e *Engine) {
	if b.expiry != nil {
		b.expiry.Reset(standbyTime)
		return
	}
	b.expiry = time.AfterFunc(standbyTime, func() {
		e.background(context.Background(), e.DropStandby)
	})
}

func (e *Engine) releaseSpares(ctx context.Context, old []*spare) {
	if len(old) == 0 {
		return
	}
	ctx, cancel := lasting(ctx)
	defer cancel()
	var all sync.WaitGroup
	for _, s := range old {
		all.Go(func() {
			e.gone.add(s.container.id)
			if s.stands {
				if _, err := e.Backends.Launch().StandDown(ctx, &execv1.StandDownRequest{Id: s.container.id}); err != nil {
					e.Log.Debug("built ahead, and left to end by itself", "container", s.container.id, "error", err)
				}
			}
			if err := e.release(ctx, s.container.id, true); err != nil {
				e.wakeLater() // the reconciler finds it when it is no longer in making
			}
			s.settled()
		})
	}
	all.Wait()
}

// calm are the methods that neither change what a name means nor count or remove
// what spares hold. What is not here, such as a method of tomorrow, drops them.
var calm = func() map[string]bool {
	all := map[string]bool{}
	for service, methods := range map[string][]string{
		"ContainerService": {"Run", "Create", "Start", "Stop", "Restart", "Remove", "Diff", "Kill", "Pause", "Unpause", "Rename",
			"Update", "List", "Inspect", "Wait", "Logs", "Stats", "Top", "Attach", "Exec"},
		"ImageService":   {"List", "Inspect", "History", "Login", "Save", "Push"},
		"NetworkService": {"List", "Inspect", "Create", "Connect", "Disconnect"},
		"VolumeService":  {"List", "Inspect", "Create"},
		"JobService":     {"List", "Get", "Watch", "Cancel"},
		"EventService":   {"Watch"},
		"SystemService":  {"Version", "Info", "GetDaemonInfo"},
	} {
		for _, m := range methods {
			all["/berth.api.v1."+service+"/"+m] = true
		}
	}
	return all
}()

// Calm reports whether a call of that method can be answered with spares around.
func Calm(method string) bool {
	return calm[method] || !strings.HasPrefix(method, "/berth.api.v1.")
}

// CalmMethods is how many methods are named as calm, for tests.
func CalmMethods() int { return len(calm) }
