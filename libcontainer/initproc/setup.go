package initproc

import (
	"berth/libcontainer/caps"
	"berth/libcontainer/internal/wire"
	"berth/libcontainer/mount"
	"berth/libcontainer/ns"
)

// version stands first in every message. Launcher and init come from one
// build; the number catches an installation that mixed two.
const version = 4

// Force makes init take the way of older kernels although this one knows a
// newer. It exists for tests.
type Force uint64

// What can be forced.
const (
	ForceMount      Force = 1 << iota // mount(2) in place of fsopen and its kin (5.12)
	ForceCloseRange                   // /proc/self/fd in place of close_range(2) (5.11)
	ForcePtsPath                      // opening /dev/pts/N in place of TIOCGPTPEER (4.13)
	ForceBindNodes                    // bind mounts in place of mknod(2), as in user namespaces
	ForceLoop                         // the launcher: images on loop devices in place of mounts of the files (6.12)
	ForceStaged                       // the launcher: layers at paths in place of detached mounts (6.15)
)

// Setup is all that init needs to know. Descriptors travel beside the message and
// are named by their place in the list that arrives; -1 is none. The first three
// are the command's stdin, stdout and stderr.
type Setup struct {
	Force    Force
	Ahead    bool   // not the container yet: what to make ahead of it; of the rest only Unshare and what is mounted count
	Pinned   bool   // init was started on one processor; the command may run on all
	Exec     bool   // run Command in an existing container; only Joins and Command count then
	Hold     bool   // build the container, say so, and wait for a second setup, of which only Command and the first descriptors count
	Joins    []Join // namespaces init enters itself, in this order
	Unshare  uint64 // CLONE_NEWCGROUP, CLONE_NEWTIME: namespaces that a clone cannot make in the right place
	Loopback bool   // the network namespace is new: lo is to be brought up
	LateNet  bool   // the network namespace is still being made: its descriptor comes in a message of its own
	Root     mount.Root
	RootFD   int // a detached mount to use as the root, made by the launcher
	Mounts   []mount.Mount
	MountFDs []int // for each of Mounts, a detached mount made by the launcher
	Cgroups  []CgroupMount
	Masked   []string
	ReadOnly []string
	Devices  []mount.Device
	Hostname string
	Domain   string
	Sysctls  []Sysctl
	Command  Command
	// KeepMounts has the mount namespace sent along with the report.
	KeepMounts bool
	// ConfineEarly, with Hold, has the filter loaded and the bounding set lowered before the second
	// setup is waited for.
	ConfineEarly bool
}

// Join is a namespace to enter.
type Join struct {
	Kind ns.Kind
	FD   int
}

// A CgroupMount is one directory that a mount of type "cgroup" shows.
type CgroupMount struct {
	Name   string   // directory below the mountpoint; "" is the mountpoint itself (pure v2)
	Source string   // the container's own group on the host
	Links  []string // more names for it, of controllers mounted together
}

// Sysctl is a value to write; Path is below /proc/sys and has been checked
// against the list of those that belong to a namespace.
type Sysctl struct{ Path, Value string }

// Command is the program to run, and as whom.
type Command struct {
	Args        []string // Args[0] without a slash is looked up in the PATH of Env, inside the container
	Env         []string // "NAME=value"; HOME is added for the user if missing
	Cwd         string   // "" is "/"; made, owned by root, if missing
	User        User
	Caps        caps.Set     // what the bounding set is, and what root holds; others begin with nothing
	NoNewPrivs  bool         `json:",omitempty"`
	Seccomp     []byte       `json:",omitempty"` // array of struct sock_filter in host byte order
	Rlimits     []Rlimit     `json:",omitempty"`
	Terminal    *ConsoleSize `json:",omitempty"` // give it a terminal of this size
	OOMScoreAdj *int         `json:",omitempty"` // -1000 to 1000 (proc_pid_oom_score_adj(5))
	Umask       uint32       `json:",omitempty"` // 0 is 0022
	AppArmor    string       `json:",omitempty"` // profile to change to at exec
	SELinux     string       `json:",omitempty"` // context to change to at exec
	Init        bool         `json:",omitempty"` // keep init as the first process, above the command; not in an exec
}

// User says as whom a command runs. Spec is "user[:group]", names or numbers,
// looked up in /etc/passwd and /etc/group of the container (package user); ""
// is root.
type User struct {
	Spec   string   `json:",omitempty"`
	Groups []string `json:",omitempty"` // more supplementary groups, by name or number
}

// Rlimit is a resource limit (getrlimit(2)). Resource is a unix.RLIMIT_…
// constant; ^uint64(0) is no limit.
type Rlimit struct {
	Resource int
	Soft     uint64
	Hard     uint64
}

// ConsoleSize is the size of a terminal in characters.
type ConsoleSize struct{ Rows, Cols uint16 }

// Encode is the message that carries s.
func (s *Setup) Encode() []byte {
	e := &wire.Encoder{Bytes: make([]byte, 0, 8<<10)}
	e.Uint(version)
	e.Uint(uint64(s.Force))
	e.Bool(s.Ahead)
	e.Bool(s.Pinned)
	e.Bool(s.Exec)
	e.Bool(s.Hold)
	e.Uint(uint64(len(s.Joins)))
	for _, j := range s.Joins {
		e.String(string(j.Kind))
		e.Int(j.FD)
	}
	e.Uint(s.Unshare)
	e.Bool(s.Loopback)
	e.Bool(s.LateNet)
	s.Root.Encode(e)
	e.Int(s.RootFD)
	e.Uint(uint64(len(s.Mounts)))
	for i := range s.Mounts {
		s.Mounts[i].Encode(e)
	}
	encodeInts(e, s.MountFDs)
	e.Uint(uint64(len(s.Cgroups)))
	for _, c := range s.Cgroups {
		e.String(c.Name)
		e.String(c.Source)
		e.Strings(c.Links)
	}
	e.Strings(s.Masked)
	e.Strings(s.ReadOnly)
	e.Uint(uint64(len(s.Devices)))
	for i := range s.Devices {
		s.Devices[i].Encode(e)
	}
	e.String(s.Hostname)
	e.String(s.Domain)
	e.Uint(uint64(len(s.Sysctls)))
	for _, c := range s.Sysctls {
		e.String(c.Path)
		e.String(c.Value)
	}
	s.Command.encode(e)
	e.Bool(s.KeepMounts)
	e.Bool(s.ConfineEarly)
	return e.Bytes
}

// DecodeSetup reads what Encode wrote.
func DecodeSetup(b []byte) (*Setup, error) {
	d := wire.NewDecoder(b)
	if d.Uint() != version {
		return nil, wire.ErrMalformed
	}
	s := &Setup{
		Force:    Force(d.Uint()),
		Ahead:    d.Bool(),
		Pinned:   d.Bool(),
		Exec:     d.Bool(),
		Hold:     d.Bool(),
		Joins:    wire.List(d, func(d *wire.Decoder) Join { return Join{ns.Kind(d.String()), d.Int()} }),
		Unshare:  d.Uint(),
		Loopback: d.Bool(),
		LateNet:  d.Bool(),
		Root:     mount.DecodeRoot(d),
		RootFD:   d.Int(),
		Mounts:   wire.List(d, mount.DecodeMount),
		MountFDs: wire.List(d, (*wire.Decoder).Int),
		Cgroups: wire.List(d, func(d *wire.Decoder) CgroupMount {
			return CgroupMount{d.String(), d.String(), d.Strings()}
		}),
		Masked:   d.Strings(),
		ReadOnly: d.Strings(),
		Devices:  wire.List(d, mount.DecodeDevice),
		Hostname: d.String(),
		Domain:   d.String(),
		Sysctls:  wire.List(d, func(d *wire.Decoder) Sysctl { return Sysctl{d.String(), d.String()} }),
		Command:  decodeCommand(d),

		KeepMounts:   d.Bool(),
		ConfineEarly: d.Bool(),
	}
	if len(s.MountFDs) != len(s.Mounts) {
		return nil, wire.ErrMalformed
	}
	return s, d.Err()
}

// AppendBinary appends c in the form that DecodeCommand reads, of the same build.
func (c *Command) AppendBinary(b []byte) ([]byte, error) {
	e := &wire.Encoder{Bytes: b}
	c.encode(e)
	return e.Bytes, nil
}

// DecodeCommand reads what AppendBinary wrote. The filter shares b's memory.
func DecodeCommand(b []byte) (Command, error) {
	d := wire.NewDecoder(b)
	c := decodeCommand(d)
	return c, d.Err()
}

func (c *Command) encode(e *wire.Encoder) {
	e.Strings(c.Args)
	e.Strings(c.Env)
	e.String(c.Cwd)
	e.String(c.User.Spec)
	e.Strings(c.User.Groups)
	e.Uint(uint64(c.Caps))
	e.Bool(c.NoNewPrivs)
	e.Blob(c.Seccomp)
	e.Uint(uint64(len(c.Rlimits)))
	for _, r := range c.Rlimits {
		e.Int(r.Resource)
		e.Uint(r.Soft)
		e.Uint(r.Hard)
	}
	e.Bool(c.Terminal != nil)
	if c.Terminal != nil {
		e.Uint(uint64(c.Terminal.Rows))
		e.Uint(uint64(c.Terminal.Cols))
	}
	e.Bool(c.OOMScoreAdj != nil)
	if c.OOMScoreAdj != nil {
		e.Int(*c.OOMScoreAdj)
	}
	e.Uint(uint64(c.Umask))
	e.String(c.AppArmor)
	e.String(c.SELinux)
	e.Bool(c.Init)
}

func decodeCommand(d *wire.Decoder) Command {
	c := Command{
		Args: d.Strings(),
		Env:  d.Strings(),
		Cwd:  d.String(),
		User: User{Spec: d.String(), Groups: d.Strings()},
	}
	c.Caps = caps.Set(d.Uint())
	c.NoNewPrivs = d.Bool()
	c.Seccomp = d.Blob()
	c.Rlimits = wire.List(d, func(d *wire.Decoder) Rlimit { return Rlimit{d.Int(), d.Uint(), d.Uint()} })
	if d.Bool() {
		c.Terminal = &ConsoleSize{uint16(d.Uint()), uint16(d.Uint())}
	}
	if d.Bool() {
		adj := d.Int()
		c.OOMScoreAdj = &adj
	}
	c.Umask = uint32(d.Uint())
	c.AppArmor = d.String()
	c.SELinux = d.String()
	c.Init = d.Bool()
	return c
}

func encodeInts(e *wire.Encoder, list []int) {
	e.Uint(uint64(len(list)))
	for _, v := range list {
		e.Int(v)
	}
}
