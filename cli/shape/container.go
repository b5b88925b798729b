// Package shape gives API objects the JSON shape that `docker inspect` made a standard, so that scripts and templates
// written for it keep working. Fields Berth has no value for are left out rather than invented.
package shape

import (
	"fmt"
	"path"
	"sort"
	"strings"
	"time"

	"berth/cli/apiv1"
	"berth/cli/stages"
	"berth/cli/wire"
)

type container struct {
	ID              string `json:"Id"`
	Created         string
	Path            string
	Args            []string
	State           state
	Image           string
	ResolvConfPath  string `json:",omitempty"`
	LogPath         string
	Name            string
	RestartCount    int32
	Driver          string
	MountLabel      string `json:",omitempty"`
	AppArmorProfile string
	ExecIDs         []string
	HostConfig      hostConfig
	SizeRw          *int64 `json:",omitempty"`
	Mounts          []mount
	Config          config
	NetworkSettings networkSettings
	Berth           extra
}

// extra is what Berth knows beyond Docker.
type extra struct {
	CreatedBy   string
	CgroupPaths []string
	Warnings    []string
	// Stages are what the last start, and the run if it has ended, spent its
	// time on; Trace has the steps that they are made of.
	Stages []stage
	Trace  []traceStep
}

type stage struct {
	Name   string
	Micros int64
}

type traceStep struct {
	Name           string
	Stage          string
	OffsetMicros   int64
	DurationMicros int64
	CountedMicros  int64
}

type state struct {
	Status     string
	Running    bool
	Paused     bool
	Restarting bool
	OOMKilled  bool
	Dead       bool
	Pid        int32
	ExitCode   int32
	Error      string
	StartedAt  string
	FinishedAt string
}

type config struct {
	Hostname     string
	Domainname   string
	User         string
	AttachStdin  bool
	AttachStdout bool
	AttachStderr bool
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Tty          bool
	OpenStdin    bool
	StdinOnce    bool
	Env          []string
	Cmd          []string
	Image        string
	WorkingDir   string
	Entrypoint   []string
	Labels       map[string]string
	StopSignal   string `json:",omitempty"`
	StopTimeout  *int64 `json:",omitempty"`
}

type hostConfig struct {
	Binds             []string
	LogConfig         logConfig
	NetworkMode       string
	PortBindings      map[string][]binding
	RestartPolicy     restartPolicy
	AutoRemove        bool
	CapAdd            []string
	CapDrop           []string
	CgroupnsMode      string
	DNS               []string `json:"Dns"`
	DNSOptions        []string `json:"DnsOptions"`
	DNSSearch         []string `json:"DnsSearch"`
	ExtraHosts        []string
	GroupAdd          []string
	IpcMode           string
	OomScoreAdj       int32
	PidMode           string
	Privileged        bool
	PublishAllPorts   bool
	ReadonlyRootfs    bool
	SecurityOpt       []string
	Tmpfs             map[string]string `json:",omitempty"`
	UTSMode           string
	UsernsMode        string
	ShmSize           int64
	Sysctls           map[string]string `json:",omitempty"`
	Runtime           string
	CPUShares         int64 `json:"CpuShares"`
	Memory            int64
	NanoCpus          int64
	BlkioWeight       int32
	CPUPeriod         int64 `json:"CpuPeriod"`
	CPUQuota          int64 `json:"CpuQuota"`
	CpusetCpus        string
	CpusetMems        string
	Devices           []device
	MemoryReservation int64
	MemorySwap        int64
	OomKillDisable    bool
	Init              bool
	PidsLimit         int64
	Ulimits           []ulimit
	MaskedPaths       []string `json:",omitempty"`
}

type logConfig struct {
	Type   string
	Config map[string]string
}

type restartPolicy struct {
	Name              string
	MaximumRetryCount int32
}

type binding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

type device struct {
	PathOnHost        string
	PathInContainer   string
	CgroupPermissions string
}

type ulimit struct {
	Name string
	Hard int64
	Soft int64
}

type mount struct {
	Type        string
	Name        string `json:",omitempty"`
	Source      string
	Destination string
	Mode        string
	RW          bool
	Propagation string
}

type networkSettings struct {
	Ports       map[string][]binding
	Gateway     string
	IPAddress   string
	IPPrefixLen int32
	MacAddress  string
	EndpointID  string
	Networks    map[string]endpoint
}

type endpoint struct {
	NetworkID           string
	EndpointID          string
	Gateway             string
	IPAddress           string
	IPPrefixLen         int32
	IPv6Gateway         string
	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int32
	MacAddress          string
	Aliases             []string
}

// Container gives a container as `docker inspect` prints it; size adds SizeRw.
func Container(c *apiv1.Container, size bool) any {
	s := c.GetSpec()
	out := container{
		ID: c.GetId(), Created: stamp(c.GetCreatedAt()), Image: c.GetImageId(), LogPath: c.GetLogPath(), Name: "/" + c.GetName(),
		RestartCount: c.GetRestartCount(), Driver: "overlay", AppArmorProfile: s.GetSecurity().GetApparmorProfile(),
		State: containerState(c), Mounts: mounts(c.GetMounts()), Config: containerConfig(c), HostConfig: containerHost(c),
		NetworkSettings: containerNetwork(c.GetEndpoints()),
		Args:            []string{},
		Berth:           extra{CreatedBy: c.GetCreatedBy(), CgroupPaths: c.GetCgroupPaths(), Warnings: c.GetWarnings(), Stages: []stage{}, Trace: []traceStep{}},
	}
	if cmd := c.GetCommand(); len(cmd) > 0 {
		out.Path, out.Args = cmd[0], append(out.Args, cmd[1:]...)
	}
	for _, e := range c.GetExecs() {
		out.ExecIDs = append(out.ExecIDs, e.GetId())
	}
	for _, t := range c.GetTrace() {
		out.Berth.Trace = append(out.Berth.Trace, traceStep{
			t.GetName(), stages.Name(t.GetStage()), t.GetOffset().AsDuration().Microseconds(),
			t.GetDuration().AsDuration().Microseconds(), t.GetCounted().AsDuration().Microseconds(),
		})
	}
	for _, r := range stages.Sum(c.GetTrace()) {
		if !r.None {
			out.Berth.Stages = append(out.Berth.Stages, stage{r.Stage, r.Took.Microseconds()})
		}
	}
	if size {
		n := c.GetSizeRwBytes()
		out.SizeRw = &n
	}
	return out
}

func containerState(c *apiv1.Container) state {
	is := func(s apiv1.ContainerState) bool { return c.GetState() == s }
	return state{
		Status:  strings.ToLower(strings.TrimPrefix(c.GetState().String(), "CONTAINER_STATE_")),
		Running: is(apiv1.ContainerState_CONTAINER_STATE_RUNNING) || is(apiv1.ContainerState_CONTAINER_STATE_PAUSED),
		Paused:  is(apiv1.ContainerState_CONTAINER_STATE_PAUSED), Restarting: is(apiv1.ContainerState_CONTAINER_STATE_RESTARTING),
		Dead: is(apiv1.ContainerState_CONTAINER_STATE_DEAD), OOMKilled: c.GetExit().GetOomKilled(), Pid: c.GetPid(),
		ExitCode: c.GetExit().GetCode(), Error: c.GetExit().GetError(),
		StartedAt: stamp(c.GetStartedAt()), FinishedAt: stamp(c.GetExit().GetExitedAt()),
	}
}

func containerConfig(c *apiv1.Container) config {
	s := c.GetSpec()
	out := config{
		Hostname: c.GetHostname(), Domainname: s.GetDomainname(), User: c.GetUser(), Tty: s.GetTty(), OpenStdin: s.GetOpenStdin(),
		StdinOnce: s.GetStdinOnce(), Env: c.GetEnv(), Cmd: s.GetArgs(), Image: s.GetImage(), WorkingDir: c.GetWorkingDir(),
		Entrypoint: s.GetEntrypoint(), Labels: c.GetLabels(), StopSignal: s.GetStopSignal(),
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if len(out.Entrypoint)+len(out.Cmd) == 0 {
		out.Cmd = c.GetCommand()
	}
	if s.GetStopTimeout() != nil {
		n := int64(s.GetStopTimeout().AsDuration() / time.Second)
		out.StopTimeout = &n
	}
	for _, p := range s.GetNetwork().GetExpose() {
		if out.ExposedPorts == nil {
			out.ExposedPorts = map[string]struct{}{}
		}
		out.ExposedPorts[p] = struct{}{}
	}
	return out
}

func containerHost(c *apiv1.Container) hostConfig {
	s := c.GetSpec()
	r, n, sec := s.GetResources(), s.GetNetwork(), s.GetSecurity()
	out := hostConfig{
		LogConfig:   logConfig{Type: orDefault(s.GetLog().GetDriver(), "file"), Config: map[string]string{}},
		NetworkMode: orDefault(n.GetMode(), "bridge"), PortBindings: bindings(n.GetPorts()), AutoRemove: s.GetAutoRemove(),
		RestartPolicy: restartPolicy{orDefault(s.GetRestart().GetName(), "no"), s.GetRestart().GetMaxRetries()},
		CapAdd:        sec.GetCapAdd(), CapDrop: sec.GetCapDrop(), CgroupnsMode: orDefault(s.GetCgroupnsMode(), "private"),
		DNS: n.GetDns(), DNSOptions: n.GetDnsOptions(), DNSSearch: n.GetDnsSearch(), ExtraHosts: n.GetExtraHosts(), GroupAdd: s.GetGroupAdd(),
		IpcMode: orDefault(s.GetIpcMode(), "private"), OomScoreAdj: s.GetOomScoreAdj(), PidMode: s.GetPidMode(), Privileged: sec.GetPrivileged(),
		PublishAllPorts: n.GetPublishAll(), ReadonlyRootfs: s.GetReadOnly(), UTSMode: s.GetUtsMode(), UsernsMode: s.GetUsernsMode(),
		ShmSize: s.GetShmSizeBytes(), Sysctls: s.GetSysctls(), Runtime: "berth", CPUShares: r.GetCpuShares(), Memory: r.GetMemoryBytes(),
		NanoCpus: r.GetNanoCpus(), BlkioWeight: r.GetBlkioWeight(), CPUPeriod: r.GetCpuPeriodUs(), CPUQuota: r.GetCpuQuotaUs(),
		CpusetCpus: r.GetCpusetCpus(), CpusetMems: r.GetCpusetMems(), MemoryReservation: r.GetMemoryReservationBytes(),
		MemorySwap: r.GetMemorySwapBytes(), OomKillDisable: r.GetOomKillDisable(), Init: s.GetInit(), PidsLimit: r.GetPidsLimit(),
	}
	if sec.GetNoNewPrivileges() {
		out.SecurityOpt = append(out.SecurityOpt, "no-new-privileges")
	}
	if p := sec.GetSeccompProfile(); p != "" {
		out.SecurityOpt = append(out.SecurityOpt, "seccomp="+p)
	}
	for _, u := range s.GetUlimits() {
		out.Ulimits = append(out.Ulimits, ulimit{u.GetName(), u.GetHard(), u.GetSoft()})
	}
	for _, d := range s.GetDevices() {
		p := append(strings.Split(d, ":"), "", "")
		out.Devices = append(out.Devices, device{p[0], orDefault(p[1], p[0]), orDefault(p[2], "rwm")})
	}
	for _, m := range s.GetMounts() {
		switch m.GetType() {
		case apiv1.MountType_MOUNT_TYPE_TMPFS:
			if out.Tmpfs == nil {
				out.Tmpfs = map[string]string{}
			}
			out.Tmpfs[m.GetTarget()] = ""
		case apiv1.MountType_MOUNT_TYPE_BIND, apiv1.MountType_MOUNT_TYPE_VOLUME:
			if m.GetSource() != "" {
				b := m.GetSource() + ":" + m.GetTarget()
				if m.GetReadOnly() {
					b += ":ro"
				}
				out.Binds = append(out.Binds, b)
			}
		}
	}
	return out
}

func containerNetwork(list []*apiv1.EndpointInfo) networkSettings {
	out := networkSettings{Ports: map[string][]binding{}, Networks: map[string]endpoint{}}
	for i, e := range list {
		if i == 0 {
			out.Gateway, out.IPAddress, out.IPPrefixLen = e.GetGateway(), e.GetIpAddress(), e.GetPrefixLength()
			out.MacAddress, out.EndpointID = e.GetMacAddress(), e.GetEndpointId()
		}
		for k, v := range bindings(e.GetPorts()) {
			out.Ports[k] = append(out.Ports[k], v...)
		}
		out.Networks[e.GetNetwork()] = endpoint{
			NetworkID: e.GetNetworkId(), EndpointID: e.GetEndpointId(), Gateway: e.GetGateway(), IPAddress: e.GetIpAddress(),
			IPPrefixLen: e.GetPrefixLength(), IPv6Gateway: e.GetIpv6Gateway(), GlobalIPv6Address: e.GetIpv6Address(),
			GlobalIPv6PrefixLen: e.GetIpv6PrefixLength(), MacAddress: e.GetMacAddress(), Aliases: e.GetAliases(),
		}
	}
	return out
}

func bindings(ports []*apiv1.PortMapping) map[string][]binding {
	out := map[string][]binding{}
	for _, p := range ports {
		key := fmt.Sprintf("%d/%s", p.GetContainerPort(), orDefault(p.GetProtocol(), "tcp"))
		out[key] = append(out[key], binding{p.GetHostIp(), fmt.Sprint(p.GetHostPort())})
	}
	return out
}

func mounts(list []*apiv1.MountPoint) []mount {
	out := []mount{}
	for _, m := range list {
		mode := ""
		if m.GetReadOnly() {
			mode = "ro"
		}
		out = append(out, mount{
			Type: strings.ToLower(strings.TrimPrefix(m.GetType().String(), "MOUNT_TYPE_")), Name: m.GetName(), Source: m.GetSource(),
			Destination: path.Clean(m.GetTarget()), Mode: mode, RW: !m.GetReadOnly(), Propagation: m.GetPropagation(),
		})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Destination < out[j].Destination })
	return out
}

// stamp is RFC 3339 with nanoseconds; Docker's zero time when there is none.
func stamp(t *wire.Timestamp) string {
	if t == nil {
		return "0001-01-01T00:00:00Z"
	}
	return t.AsTime().Format(time.RFC3339Nano)
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
