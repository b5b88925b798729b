// Package flags turns Docker's command line words for containers into the API's ContainerSpec.
//
// It checks form (a port number, a size, a KEY=value); what only the engine can know (does the image exist, is the
// port free) is left to the engine. Every error names the flag.
package flags

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"berth/cli/apiv1"
	"berth/cli/wire"
)

// Container holds the flags shared by `run` and `create`.
type Container struct {
	spec *apiv1.ContainerSpec
	set  *pflag.FlagSet

	env, envFiles, labels, labelFiles                 []string
	entrypoint, memory, memorySwap, memoryReservation string
	cpus, shmSize, restart, pull, network             string
	publish, volumes, mounts, tmpfs, ulimits, sysctls []string
	securityOpts, logOpts, annotations, expose        []string
	logDriver                                         string
	stopTimeout, oomScoreAdj                          int
	// Quiet is --quiet: no progress of a pull.
	Quiet bool
}

// AddContainer defines the flags on f.
func AddContainer(f *pflag.FlagSet) *Container {
	s := &apiv1.ContainerSpec{Resources: &apiv1.Resources{}, Security: &apiv1.Security{}, Network: &apiv1.NetworkSpec{}, Log: &apiv1.LogSpec{}}
	c := &Container{spec: s, set: f}
	f.Bool("help", false, "show this help")

	f.StringVar(&s.Name, "name", "", "name of the container")
	f.BoolVarP(&s.Tty, "tty", "t", false, "give the container a terminal")
	f.BoolVarP(&s.OpenStdin, "interactive", "i", false, "keep stdin open")
	Array(f, &c.env, "env", "e", "set environment variable KEY=VALUE, or pass KEY on from here")
	Array(f, &c.envFiles, "env-file", "", "read environment variables from a file")
	Array(f, &c.labels, "label", "l", "set label KEY=VALUE")
	Array(f, &c.labelFiles, "label-file", "", "read labels from a file")
	Array(f, &c.annotations, "annotation", "", "annotation KEY=VALUE for other tools")
	f.StringVarP(&s.WorkingDir, "workdir", "w", "", "working directory inside the container")
	f.StringVarP(&s.User, "user", "u", "", "user[:group], names or ids inside the container")
	Slice(f, &s.GroupAdd, "group-add", "", "further group of the user")
	f.StringVar(&c.entrypoint, "entrypoint", "", "replace the image's entrypoint")
	f.StringVarP(&s.Hostname, "hostname", "h", "", "host name inside the container")
	f.StringVar(&s.Domainname, "domainname", "", "NIS domain name inside the container")
	f.StringVar(&s.Platform, "platform", "", "platform of the image, os/arch[/variant]")
	f.StringVar(&c.pull, "pull", "missing", "pull the image: always, missing or never")
	f.BoolVarP(&c.Quiet, "quiet", "q", false, "do not show the progress of a pull")

	f.StringVarP(&c.memory, "memory", "m", "", "memory limit, such as 512m (at least 6m)")
	f.StringVar(&c.memorySwap, "memory-swap", "", "memory plus swap limit; -1 for unlimited swap")
	f.StringVar(&c.memoryReservation, "memory-reservation", "", "memory kept when the host runs short")
	f.StringVar(&c.cpus, "cpus", "", "number of CPUs, such as 1.5")
	f.Int64VarP(&s.Resources.CpuShares, "cpu-shares", "c", 0, "relative CPU weight (default 1024)")
	f.Int64Var(&s.Resources.CpuQuotaUs, "cpu-quota", 0, "CPU time per period, in microseconds")
	f.Int64Var(&s.Resources.CpuPeriodUs, "cpu-period", 0, "length of a period, in microseconds")
	f.StringVar(&s.Resources.CpusetCpus, "cpuset-cpus", "", "CPUs to run on, such as 0-2,5")
	f.StringVar(&s.Resources.CpusetMems, "cpuset-mems", "", "memory nodes to use")
	f.Int64Var(&s.Resources.PidsLimit, "pids-limit", 0, "limit of processes and threads; -1 for none")
	f.Int32Var(&s.Resources.BlkioWeight, "blkio-weight", 0, "relative block I/O weight, 10 to 1000")
	f.BoolVar(&s.Resources.OomKillDisable, "oom-kill-disable", false, "do not kill when out of memory")
	f.IntVar(&c.oomScoreAdj, "oom-score-adj", 0, "the kernel's preference to kill this container, -1000 to 1000")
	Array(f, &c.ulimits, "ulimit", "", "limit NAME=SOFT[:HARD]")
	f.StringVar(&c.shmSize, "shm-size", "", "size of /dev/shm (default 64m)")
	Array(f, &c.sysctls, "sysctl", "", "namespaced kernel parameter NAME=VALUE")

	Array(f, &c.volumes, "volume", "v", "mount [SOURCE:]TARGET[:OPTIONS]; SOURCE is a path or a volume name")
	Array(f, &c.mounts, "mount", "", "mount type=bind|volume|tmpfs,source=…,target=…[,readonly]")
	Array(f, &c.tmpfs, "tmpfs", "", "mount a tmpfs at TARGET[:size=…,mode=…]")
	f.BoolVar(&s.ReadOnly, "read-only", false, "make the root file system read-only")
	Array(f, &s.Devices, "device", "", "host device HOST[:CONTAINER[:rwm]]")

	f.StringVar(&c.network, "network", "", "network: bridge, host, none, container:NAME or a network's name")
	f.StringVar(&c.network, "net", "", "same as --network")
	_ = f.MarkHidden("net")
	Array(f, &c.publish, "publish", "p", "publish a port: [[IP:]HOST:]CONTAINER[/udp]; ranges too")
	f.BoolVarP(&s.Network.PublishAll, "publish-all", "P", false, "publish all exposed ports on free host ports")
	Array(f, &c.expose, "expose", "", "expose a port")
	Array(f, &s.Network.Dns, "dns", "", "DNS server")
	Array(f, &s.Network.DnsSearch, "dns-search", "", "DNS search domain")
	Array(f, &s.Network.DnsOptions, "dns-option", "", "DNS option")
	Array(f, &s.Network.ExtraHosts, "add-host", "", "line for /etc/hosts, HOST:IP")
	Array(f, &s.Network.Aliases, "network-alias", "", "further name in the network")
	f.StringVar(&s.Network.Ip, "ip", "", "IPv4 address in the network")
	f.StringVar(&s.Network.MacAddress, "mac-address", "", "MAC address")

	f.BoolVar(&s.Security.Privileged, "privileged", false, "all capabilities and devices, no masks, no seccomp")
	Slice(f, &s.Security.CapAdd, "cap-add", "", "add a capability, or ALL")
	Slice(f, &s.Security.CapDrop, "cap-drop", "", "drop a capability, or ALL")
	Array(f, &c.securityOpts, "security-opt", "", "no-new-privileges, seccomp=FILE|unconfined, apparmor=NAME, label=…")
	f.StringVar(&s.PidMode, "pid", "", "PID namespace: host or container:NAME")
	f.StringVar(&s.IpcMode, "ipc", "", "IPC namespace: private, host or container:NAME")
	f.StringVar(&s.UtsMode, "uts", "", "UTS namespace: host")
	f.StringVar(&s.UsernsMode, "userns", "", "user namespace: private or host")
	f.StringVar(&s.CgroupnsMode, "cgroupns", "", "cgroup namespace: private or host")

	f.BoolVar(&s.Init, "init", false, "run a small init as process 1")
	f.StringVar(&s.StopSignal, "stop-signal", "", "signal to stop with (default SIGTERM)")
	f.IntVar(&c.stopTimeout, "stop-timeout", 0, "seconds from the stop signal to SIGKILL (default 10)")
	f.StringVar(&c.restart, "restart", "no", "no, on-failure[:N], always or unless-stopped")
	f.StringVar(&c.logDriver, "log-driver", "", "file or none")
	Array(f, &c.logOpts, "log-opt", "", "max-size=SIZE, max-file=N")
	return c
}

// Spec reads the flags into a specification for image and its arguments.
func (c *Container) Spec(image string, args []string) (*apiv1.ContainerSpec, error) {
	s := c.spec
	s.Image, s.Args = image, args
	if c.set.Changed("entrypoint") {
		s.Entrypoint = []string{c.entrypoint}
	}
	for _, step := range []func() error{c.environment, c.metadata, c.limits, c.storage, c.networking, c.security, c.lifecycle} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (c *Container) environment() (err error) {
	c.spec.Env, err = Env(c.env, c.envFiles)
	return err
}

// Env reads --env-file and then --env; "KEY" alone passes this process's value on, or nothing when it is unset.
func Env(vars, files []string) ([]string, error) {
	var out []string
	add := func(flag, v string) error {
		key, _, hasValue := strings.Cut(v, "=")
		if key == "" || strings.ContainsAny(key, " \t\x00") {
			return fmt.Errorf("%s: %q is not KEY=VALUE", flag, v)
		}
		if hasValue {
			out = append(out, v)
		} else if value, ok := os.LookupEnv(key); ok {
			out = append(out, key+"="+value)
		}
		return nil
	}
	for _, file := range files {
		lines, err := fileLines("--env-file", file)
		if err != nil {
			return nil, err
		}
		for _, l := range lines {
			if err := add("--env-file "+file, l); err != nil {
				return nil, err
			}
		}
	}
	for _, v := range vars {
		if err := add("--env", v); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// fileLines gives the lines of a file of settings without comments and blank lines.
func fileLines(flag, file string) ([]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	var out []string
	for l := range strings.Lines(string(b)) {
		l = strings.TrimRight(l, "\r\n")
		if t := strings.TrimSpace(l); t != "" && !strings.HasPrefix(t, "#") {
			out = append(out, strings.TrimLeft(l, " \t"))
		}
	}
	return out, nil
}

func (c *Container) metadata() error {
	labels := c.labels
	for _, file := range c.labelFiles {
		lines, err := fileLines("--label-file", file)
		if err != nil {
			return err
		}
		labels = append(lines, labels...)
	}
	var err error
	if c.spec.Labels, err = pairs("--label", labels, true); err != nil {
		return err
	}
	if c.spec.Annotations, err = pairs("--annotation", c.annotations, false); err != nil {
		return err
	}
	c.spec.Sysctls, err = pairs("--sysctl", c.sysctls, false)
	return err
}

// pairs reads KEY=VALUE arguments; a bare KEY means an empty value where that is allowed.
func pairs(flag string, list []string, bare bool) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(list))
	for _, l := range list {
		k, v, ok := strings.Cut(l, "=")
		if k == "" || !ok && !bare {
			return nil, fmt.Errorf("%s: %q is not KEY=VALUE", flag, l)
		}
		m[k] = v
	}
	return m, nil
}

func (c *Container) limits() error {
	if err := Limits(c.spec.Resources, c.memory, c.memorySwap, c.memoryReservation, c.cpus); err != nil {
		return err
	}
	if c.shmSize != "" {
		n, err := Size(c.shmSize)
		if err != nil {
			return fmt.Errorf("--shm-size: %w", err)
		}
		c.spec.ShmSizeBytes = n
	}
	if c.set.Changed("oom-score-adj") {
		if c.oomScoreAdj < -1000 || c.oomScoreAdj > 1000 {
			return fmt.Errorf("--oom-score-adj: %d is not within -1000 to 1000", c.oomScoreAdj)
		}
		v := int32(c.oomScoreAdj)
		c.spec.OomScoreAdj = &v
	}
	for _, u := range c.ulimits {
		l, err := Ulimit(u)
		if err != nil {
			return err
		}
		c.spec.Ulimits = append(c.spec.Ulimits, l)
	}
	return nil
}

// Limits reads the limits that people write with units into r; empty ones stay as they are.
func Limits(r *apiv1.Resources, memory, memorySwap, reservation, cpus string) error {
	for _, f := range []struct {
		flag, value string
		to          *int64
	}{
		{"--memory", memory, &r.MemoryBytes},
		{"--memory-swap", memorySwap, &r.MemorySwapBytes},
		{"--memory-reservation", reservation, &r.MemoryReservationBytes},
	} {
		if f.value == "" {
			continue
		}
		if f.flag == "--memory-swap" && f.value == "-1" {
			*f.to = -1
			continue
		}
		n, err := Size(f.value)
		if err != nil {
			return fmt.Errorf("%s: %w", f.flag, err)
		}
		*f.to = n
	}
	if cpus == "" {
		return nil
	}
	n, err := NanoCPUs(cpus)
	r.NanoCpus = n
	return err
}

// NanoCPUs reads "1.5" as 1_500_000_000 exactly, without rounding through a float.
func NanoCPUs(s string) (int64, error) {
	whole, frac, _ := strings.Cut(s, ".")
	if len(frac) > 9 || whole == "" && frac == "" || strings.ContainsAny(s, "+-") {
		return 0, fmt.Errorf("--cpus: %q is not a number of CPUs such as 1.5", s)
	}
	n, err := strconv.ParseInt("0"+whole+frac+strings.Repeat("0", 9-len(frac)), 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("--cpus: %q is not a number of CPUs such as 1.5", s)
	}
	return n, nil
}

// Size reads bytes with a binary unit: "512m", "1.5g", "4096", "64MiB".
func Size(s string) (int64, error) {
	t := strings.ToLower(strings.TrimSpace(s))
	t = strings.TrimSuffix(strings.TrimSuffix(t, "b"), "i")
	shift := 0
	if t != "" {
		if i := strings.IndexByte("kmgtp", t[len(t)-1]); i >= 0 {
			shift, t = 10*(i+1), t[:len(t)-1]
		}
	}
	v, err := strconv.ParseFloat(t, 64)
	if err != nil || v < 0 || strings.ContainsAny(t, "enx_+") || v*float64(int64(1)<<shift) >= 1<<62 {
		return 0, fmt.Errorf("%q is not a size such as 512m", s)
	}
	return int64(v * float64(int64(1)<<shift)), nil
}

// Ulimit reads NAME=SOFT[:HARD]; -1 or "unlimited" means no limit.
func Ulimit(s string) (*apiv1.Ulimit, error) {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return nil, fmt.Errorf("--ulimit: %q is not NAME=SOFT[:HARD]", s)
	}
	soft, hard, two := strings.Cut(value, ":")
	if !two {
		hard = soft
	}
	number := func(t string) (int64, error) {
		if t == "unlimited" {
			return -1, nil
		}
		n, err := strconv.ParseInt(t, 10, 64)
		if err != nil || n < -1 {
			return 0, fmt.Errorf("--ulimit: %q in %q is not a limit", t, s)
		}
		return n, nil
	}
	a, err := number(soft)
	if err != nil {
		return nil, err
	}
	b, err := number(hard)
	if err != nil {
		return nil, err
	}
	if b != -1 && (a == -1 || a > b) {
		return nil, fmt.Errorf("--ulimit: soft limit above hard limit in %q", s)
	}
	return &apiv1.Ulimit{Name: name, Soft: a, Hard: b}, nil
}

func (c *Container) security() error {
	s := c.spec.Security
	for _, o := range c.securityOpts {
		key, value, ok := strings.Cut(o, "=")
		if !ok {
			key, value, ok = strings.Cut(o, ":")
		}
		switch key {
		case "no-new-privileges":
			s.NoNewPrivileges = !ok || value == "true"
			if ok && value != "true" && value != "false" {
				return fmt.Errorf("--security-opt: %q: want true or false", o)
			}
		case "seccomp":
			if value == "unconfined" || value == "" || value == "builtin" {
				s.SeccompProfile = strings.TrimPrefix(value, "builtin")
				break
			}
			b, err := os.ReadFile(value)
			if err != nil {
				return fmt.Errorf("--security-opt seccomp: %w", err)
			}
			s.SeccompProfile = string(b)
		case "apparmor":
			s.ApparmorProfile = value
		case "label":
			s.SelinuxLabel = append(s.SelinuxLabel, value)
		case "systempaths":
			if value != "unconfined" {
				return fmt.Errorf("--security-opt: %q: want systempaths=unconfined", o)
			}
			s.UnmaskSystemPaths = true
		default:
			return fmt.Errorf("--security-opt: unknown option %q", o)
		}
	}
	return nil
}

func (c *Container) lifecycle() error {
	if c.set.Changed("stop-timeout") {
		c.spec.StopTimeout = wire.NewDuration(time.Duration(c.stopTimeout) * time.Second)
	}
	name, n, has := strings.Cut(c.restart, ":")
	switch name {
	case "", "no":
	case "always", "unless-stopped", "on-failure":
		c.spec.Restart = &apiv1.RestartPolicy{Name: name}
		if has {
			max, err := strconv.ParseInt(n, 10, 32)
			if err != nil || max < 0 || name != "on-failure" {
				return fmt.Errorf("--restart: %q is not no, on-failure[:N], always or unless-stopped", c.restart)
			}
			c.spec.Restart.MaxRetries = int32(max)
		}
		if c.spec.AutoRemove {
			return fmt.Errorf("--restart and --rm do not go together")
		}
	default:
		return fmt.Errorf("--restart: %q is not no, on-failure[:N], always or unless-stopped", c.restart)
	}
	switch c.pull {
	case "missing":
		c.spec.Pull = apiv1.PullPolicy_PULL_POLICY_MISSING
	case "always":
		c.spec.Pull = apiv1.PullPolicy_PULL_POLICY_ALWAYS
	case "never":
		c.spec.Pull = apiv1.PullPolicy_PULL_POLICY_NEVER
	default:
		return fmt.Errorf("--pull: %q is not always, missing or never", c.pull)
	}
	return c.logging()
}

func (c *Container) logging() error {
	switch c.logDriver {
	case "", "file", "json-file", "local": // Docker's file drivers all mean our one
	case "none":
		c.spec.Log.Driver = "none"
	default:
		return fmt.Errorf("--log-driver: %q is not file or none", c.logDriver)
	}
	for _, o := range c.logOpts {
		k, v, _ := strings.Cut(o, "=")
		switch k {
		case "max-size":
			n, err := Size(v)
			if err != nil {
				return fmt.Errorf("--log-opt max-size: %w", err)
			}
			c.spec.Log.MaxSizeBytes = n
		case "max-file":
			n, err := strconv.ParseInt(v, 10, 32)
			if err != nil || n < 1 {
				return fmt.Errorf("--log-opt max-file: %q is not a number of files", v)
			}
			c.spec.Log.MaxFiles = int32(n)
		default:
			return fmt.Errorf("--log-opt: unknown option %q (max-size, max-file)", k)
		}
	}
	return nil
}
