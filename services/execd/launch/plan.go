package launch

import (
	"errors"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/signal"

	"berth/internal/config"
	"berth/internal/fault"
	"berth/libcontainer"
	"berth/libcontainer/caps"
	"berth/libcontainer/mount"
	"berth/libcontainer/seccomp"
	apiv1 "berth/proto/berth/api/v1"
	imagev1 "berth/proto/berth/image/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/execd/monitor/starter"
	"berth/services/execd/monitor/wire"
)

// Builder makes plans with one engine's defaults.
type Builder struct {
	// Parent is the cgroup containers live under.
	Parent string
	// Capabilities of a container that asks for none.
	Capabilities caps.Set
	// Defaults are the engine's.
	Defaults config.Execd

	bounding caps.Set // ours, which is all there is to hand on; asking takes forty system calls
	target   seccomp.Target
	profiles seccomp.Cache
	standard *seccomp.Profile
}

// NewBuilder looks at the host and reads the engine's seccomp profile.
func NewBuilder(parent string, d config.Execd) (*Builder, error) {
	b := &Builder{Parent: parent, Defaults: d, Capabilities: caps.Default, bounding: caps.Bounding()}
	switch d.DefaultCapabilities {
	case "", "berth":
	case "docker":
		b.Capabilities = caps.Docker
	default:
		return nil, fault.InvalidArgument.Errorf("CONFIG", "default_capabilities %q: want berth or docker", d.DefaultCapabilities)
	}
	var err error
	if b.target, err = seccomp.Host(); err != nil {
		return nil, err
	}
	option := d.SeccompProfile
	if path.IsAbs(option) {
		data, err := os.ReadFile(option)
		if err != nil {
			return nil, err
		}
		option = string(data)
	}
	b.standard, err = seccomp.FromOption(option)
	return b, err
}

// Rehearse plans a container that nobody has asked for: what the first of all would wait for, the filter of the usual
// capabilities and what encoding/json finds out about types, is kept.
func (b *Builder) Rehearse() error {
	plan := new(starter.Plan)
	if err := b.Check(&apiv1.ContainerSpec{Args: []string{"/"}}, nil); err != nil {
		return err
	}
	if _, _, err := plan.Encode(); err != nil {
		return err
	}
	_, _, err := plan.EncodeRest()
	return err
}

// seccomp compiles a profile, once for each set of capabilities.
func (b *Builder) seccomp(option string, set caps.Set) ([]byte, error) {
	profile := b.standard
	if option != "" && option != "default" {
		var err error
		if profile, err = seccomp.FromOption(option); err != nil {
			return nil, err
		}
	}
	if profile == nil {
		return nil, nil
	}
	t := b.target
	t.Caps = set
	if profile != b.standard {
		return profile.Compile(t) // a user's own: not worth remembering
	}
	return b.profiles.Compile(profile, t)
}

// passesInit reports whether a container's seccomp profile is the built-in one, of which we know that
// an init can finish under it.
func (b *Builder) passesInit(spec *apiv1.ContainerSpec) bool {
	builtin := func(option string) bool { return option == "" || option == "default" || option == "builtin" }
	return builtin(spec.GetSecurity().GetSeccompProfile()) && builtin(b.Defaults.SeccompProfile)
}

// Input is what a plan is made from.
type Input struct {
	ID string
	// IDBase is the first host id of the container's user namespace; 0: the
	// host's.
	IDBase  uint32
	Spec    *apiv1.ContainerSpec
	Image   *apiv1.ImageConfig
	Recipe  *imagev1.MountRecipe
	Volumes []*imagev1.VolumeMount
	Network *networkv1.AttachResponse
	// Dir is the container's folder for generated files.
	Dir string
	// Etc is what these files hold already, nil for nothing.
	Etc  map[string][]byte
	Peer Peer
}

// Plan is what to launch, and what to tell about it.
type Plan struct {
	Start    starter.Plan
	Stdio    wire.Stdio
	KillAll  bool
	Hostname string
	Command  []string
	Env      []string
	Cwd      string
	Mounts   []*apiv1.MountPoint
	Etc      map[string][]byte // the generated files
	Warnings []string
}

// Check finds what is wrong with a request at creation. It touches nothing.
func (b *Builder) Check(spec *apiv1.ContainerSpec, image *apiv1.ImageConfig) error {
	if _, err := Args(spec, image); err != nil {
		return err
	}
	if _, err := Env(spec, image, ""); err != nil {
		return err
	}
	if _, err := Cwd(spec, image); err != nil {
		return err
	}
	if _, err := Hostname(spec, strings.Repeat("0", 64)); err != nil {
		return err
	}
	if _, err := Resources(spec.Resources, b.Defaults.PidsLimit); err != nil {
		return err
	}
	if _, err := Rlimits(spec.Ulimits); err != nil {
		return err
	}
	if err := b.security(spec.Security, new(libcontainer.Command)); err != nil {
		return err
	}
	if _, err := StopSignal(spec, image); err != nil {
		return err
	}
	if spec.ShmSizeBytes < 0 {
		return refuse("SHM_SIZE", "size of /dev/shm %d is negative", spec.ShmSizeBytes)
	}
	if spec.OomScoreAdj != nil && (*spec.OomScoreAdj < -1000 || *spec.OomScoreAdj > 1000) {
		return refuse("OOM_SCORE_ADJ", "OOM score adjustment %d: want -1000 to 1000", *spec.OomScoreAdj)
	}
	if err := checkModes(spec); err != nil {
		return err
	}
	if _, err := b.PrivateUsers(spec); err != nil {
		return err
	}
	return CheckMounts(spec)
}

// StopSignal is what stop sends first.
func StopSignal(spec *apiv1.ContainerSpec, image *apiv1.ImageConfig) (int, error) {
	for _, name := range []string{spec.StopSignal, image.GetStopSignal()} {
		if name != "" {
			return Signal(name)
		}
	}
	return 15, nil
}

// Signal reads "SIGTERM", "TERM" or a number.
func Signal(name string) (int, error) {
	s, err := signal.ParseSignal(name)
	if err != nil || s <= 0 || s > 64 {
		return 0, refuse("SIGNAL", "signal %q is not known", name)
	}
	return int(s), nil
}

// Build makes a plan and the files it needs in in.Dir, and sources of binds that
// are to be made.
func (b *Builder) Build(in *Input) (*Plan, error) {
	p := &Plan{}
	if err := b.identity(in, p); err != nil {
		return nil, err
	}
	c := &p.Start.Container
	var err error
	if c.Namespaces, err = namespaces(in.Spec, in.Network.GetNamespace(), in.Peer); err != nil {
		return nil, err
	}
	users(in, c)
	p.KillAll = !c.Namespaces.PID.Private
	if c.Namespaces.UTS.Private {
		c.Hostname, c.Domainname = p.Hostname, in.Spec.Domainname
	}
	if c.Root, err = root(in.Recipe, in.Spec); err != nil {
		return nil, err
	}
	c.Root.IDMap = in.IDBase != 0
	p.Start.Parent, p.Start.Name = b.Parent, in.ID
	if p.Start.Resources, err = Resources(in.Spec.Resources, b.Defaults.PidsLimit); err != nil {
		return nil, err
	}
	if c.Devices, p.Start.Resources.Devices, err = nodes(in.Spec); err != nil {
		return nil, err
	}
	if err := b.mounts(in, p); err != nil {
		return nil, err
	}
	if sec := in.Spec.GetSecurity(); !sec.GetPrivileged() && !sec.GetUnmaskSystemPaths() {
		c.Masked, c.ReadOnly = libcontainer.DefaultMasked(), libcontainer.DefaultReadOnly()
	}
	c.Sysctls = sysctls(in)
	if c.Command, err = b.command(in, p); err != nil {
		return nil, err
	}
	c.ConfineEarly = b.passesInit(in.Spec) && len(c.Command.Seccomp) > 0 && !c.Command.NoNewPrivs && !in.Spec.ReadOnly
	return p, nil
}

// identity fills in what the command is and how it is called.
func (b *Builder) identity(in *Input, p *Plan) (err error) {
	if p.Command, err = Args(in.Spec, in.Image); err != nil {
		return err
	}
	if p.Hostname, err = Hostname(in.Spec, in.ID); err != nil {
		return err
	}
	shared := in.Spec.UtsMode == "host" || in.Network.GetNamespace().GetKind() == networkv1.Namespace_KIND_HOST
	if shared && in.Spec.Hostname == "" {
		p.Hostname = hostName()
	}
	if p.Env, err = Env(in.Spec, in.Image, p.Hostname); err != nil {
		return err
	}
	if p.Cwd, err = Cwd(in.Spec, in.Image); err != nil {
		return err
	}
	p.Stdio = wire.Stdio{
		Terminal: in.Spec.Tty, Stdin: in.Spec.OpenStdin, StdinOnce: in.Spec.StdinOnce,
		Rows: uint16(in.Spec.GetTerminalSize().GetRows()), Columns: uint16(in.Spec.GetTerminalSize().GetColumns()),
	}
	return nil
}

func (b *Builder) mounts(in *Input, p *Plan) error {
	shm := in.Spec.ShmSizeBytes
	if shm == 0 {
		shm = int64(b.Defaults.ShmSize)
	}
	if shm <= 0 {
		shm = libcontainer.DefaultShm
	}
	s := &mountSet{list: libcontainer.DefaultMounts(shm)}
	c := &p.Start.Container
	if in.Spec.GetSecurity().GetPrivileged() {
		for i := range s.list {
			s.list[i].Attr &^= mount.ReadOnly
		}
	}
	if in.Spec.IpcMode == "host" {
		for _, dir := range []string{"/dev/shm", "/dev/mqueue"} {
			if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
				continue // not every host mounts message queues; the container then has its own
			}
			s.put(libcontainer.Mount{Type: "bind", Source: dir, Destination: dir,
				Attr: mount.NoSuid | mount.NoDev | mount.NoExec}, nil)
		}
	}
	if err := s.user(in.Spec, in.Volumes); err != nil {
		return err
	}
	p.Etc = etc(p.Hostname, in.Spec, in.Network)
	if err := writeEtc(in.Dir, in.Etc, p.Etc); err != nil {
		return err
	}
	s.mountEtc(in.Dir, in.Spec.ReadOnly)
	if in.IDBase != 0 {
		s.mapUsers()
	}
	// Of what is not the user's, nobody sees that it is there for a moment longer.
	c.KeepMounts = in.Spec.AutoRemove && len(in.Spec.Mounts) == 0 && len(in.Volumes) == 0 && in.IDBase == 0
	c.Mounts, p.Mounts = s.sorted(), s.points
	return nil
}

// command is the process itself.
func (b *Builder) command(in *Input, p *Plan) (libcontainer.Command, error) {
	score := int(in.Spec.GetOomScoreAdj())
	c := libcontainer.Command{
		Args: p.Command, Env: p.Env, Cwd: p.Cwd,
		User:        libcontainer.User{Spec: User(in.Spec, in.Image), Groups: in.Spec.GroupAdd},
		OOMScoreAdj: &score, Init: in.Spec.Init,
	}
	if in.Spec.Tty {
		c.Terminal = &libcontainer.ConsoleSize{Rows: p.Stdio.Rows, Cols: p.Stdio.Columns}
	}
	var err error
	if c.Rlimits, err = Rlimits(in.Spec.Ulimits); err != nil {
		return c, err
	}
	return c, b.security(in.Spec.Security, &c)
}

// sysctls are the user's and netd's. A namespace that netd did not prepare gets
// the defaults that netd's have, where the kernel knows them.
func sysctls(in *Input) map[string]string {
	out := make(map[string]string)
	if in.Network.GetNamespace().GetKind() == networkv1.Namespace_KIND_PRIVATE {
		for name, value := range map[string]string{
			"net.ipv4.ping_group_range":           "0 2147483647",
			"net.ipv4.ip_unprivileged_port_start": "0",
		} {
			if _, err := os.Stat("/proc/sys/" + strings.ReplaceAll(name, ".", "/")); err == nil {
				out[name] = value
			}
		}
	}
	maps.Copy(out, in.Network.GetSysctls())
	if in.IDBase != 0 {
		// A range of group ids that the user namespace does not know: EINVAL.
		delete(out, "net.ipv4.ping_group_range")
	}
	maps.Copy(out, in.Spec.Sysctls)
	return out
}

// Exec makes the plan of a further process in a container that was planned from
// spec, image and the other arguments.
func (b *Builder) Exec(in *ExecInput) (*starter.ExecPlan, error) {
	if len(in.Args) == 0 || in.Args[0] == "" {
		return nil, fault.InvalidArgument.Errorf("NO_COMMAND", "no command to execute")
	}
	env, err := ExecEnv(in.ContainerEnv, in.Env, in.Tty)
	if err != nil {
		return nil, err
	}
	cwd := in.WorkingDir
	if cwd == "" {
		cwd = in.ContainerCwd
	}
	if cwd == "" {
		cwd = "/"
	}
	if !path.IsAbs(cwd) {
		return nil, refuse("WORKING_DIR", "working directory %q is not an absolute path", cwd)
	}
	c := libcontainer.Command{Args: in.Args, Env: env, Cwd: path.Clean(cwd)}
	if c.User.Spec = in.User; in.User == "" {
		c.User.Spec = User(in.Spec, in.Image)
	}
	c.User.Groups = slices.Clone(in.Spec.GroupAdd)
	if in.Tty {
		c.Terminal = &libcontainer.ConsoleSize{Rows: in.Rows, Cols: in.Columns}
	}
	score := int(in.Spec.GetOomScoreAdj())
	c.OOMScoreAdj = &score
	if c.Rlimits, err = Rlimits(in.Spec.Ulimits); err != nil {
		return nil, err
	}
	sec := in.Spec.Security
	if in.Privileged {
		sec = &apiv1.Security{Privileged: true}
	}
	if err := b.security(sec, &c); err != nil {
		return nil, err
	}
	return &starter.ExecPlan{Parent: b.Parent, Name: in.Cgroup, Command: c}, nil
}

// ExecInput is what a further process is made from.
type ExecInput struct {
	Cgroup       string
	Spec         *apiv1.ContainerSpec
	Image        *apiv1.ImageConfig
	ContainerEnv []string
	ContainerCwd string

	Args          []string
	Env           []string
	WorkingDir    string
	User          string
	Tty           bool
	Privileged    bool
	Rows, Columns uint16
}
