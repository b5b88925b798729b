package libcontainer

import (
	"os"

	"berth/libcontainer/caps"
	"berth/libcontainer/cgroup"
	"berth/libcontainer/initproc"
	"berth/libcontainer/mount"
	"berth/libcontainer/ns"
)

// The parts of a Config that init works on are defined where init can see them.
type (
	// Command is the program to run, and as whom.
	Command = initproc.Command
	// User says as whom a command runs.
	User = initproc.User
	// Rlimit is a resource limit.
	Rlimit = initproc.Rlimit
	// ConsoleSize is the size of a terminal in characters.
	ConsoleSize = initproc.ConsoleSize
	// Mount is one mount of a container.
	Mount = mount.Mount
	// Root is its root file system.
	Root = mount.Root
	// Device is a device node.
	Device = mount.Device
)

// AllCaps stands for every capability the launching process can hand on.
const AllCaps = ^caps.Set(0)

// Config describes a container. It holds no descriptors and no pointers to live
// things: it can be written as JSON and read back.
type Config struct {
	Root       Root
	Namespaces Namespaces
	// UIDMappings and GIDMappings are for a private user namespace: at least
	// one of each, and id 0 must be mapped.
	UIDMappings []IDMap           `json:",omitempty"`
	GIDMappings []IDMap           `json:",omitempty"`
	Hostname    string            `json:",omitempty"`
	Domainname  string            `json:",omitempty"`
	Mounts      []Mount           `json:",omitempty"` // made in this order
	Masked      []string          `json:",omitempty"` // paths to hide; missing ones are skipped
	ReadOnly    []string          `json:",omitempty"` // paths that cannot be written; missing ones are skipped
	Devices     []Device          `json:",omitempty"`
	Sysctls     map[string]string `json:",omitempty"` // "net.ipv4.ip_forward": "1"; only what belongs to a namespace of the container
	Command     Command
	// KeepMounts hands the container's mount namespace to the caller
	// (Process.Mounts). While that is open its mounts stay, and the end of its last
	// process, which would otherwise take them down, is seen that much earlier:
	// some tenths of a millisecond of waiting for other processors.
	KeepMounts bool `json:",omitempty"`
	// ConfineEarly is for [Waiting.Build]: the seccomp filter is loaded there and the bounding set
	// lowered, and a command with another filter, with other Caps or with NoNewPrivs cannot be had.
	// The filter has to let init finish; the built-in profile does, unless the root is to become
	// read-only.
	ConfineEarly bool `json:",omitempty"`
}

// Namespaces says of each kind where a container gets it from. The zero value
// shares all with the caller, except the mount namespace, which is always
// private.
type Namespaces struct {
	PID, IPC, UTS, Net, Cgroup, Time, User Namespace
}

// Namespace is where one namespace comes from.
type Namespace struct {
	// Private makes a new one.
	Private bool `json:",omitempty"`
	// Path joins an existing one: /proc/PID/ns/KIND or a bind mount of it. A
	// descriptor in IO.Join comes before it.
	Path string `json:",omitempty"`
}

// DecodeCommand reads what Command.AppendBinary of the same build wrote. Its filter shares b's memory.
func DecodeCommand(b []byte) (Command, error) { return initproc.DecodeCommand(b) }

// PrivateNamespaces is a new namespace of each kind but User, those that the
// kernel has.
func PrivateNamespaces() Namespaces {
	private := Namespace{Private: true}
	n := Namespaces{PID: private, IPC: private, UTS: private, Net: private}
	n.Cgroup.Private = ns.Cgroup.Supported()
	n.Time.Private = ns.Time.Supported()
	return n
}

// IDMap maps Size ids from Host on to those from Container on
// (user_namespaces(7)).
type IDMap struct {
	Container, Host, Size uint32
}

// IO is what a launch needs besides data. The launcher borrows everything in it
// until Start or Exec returns; the caller closes it.
type IO struct {
	// Stdin, Stdout and Stderr become descriptors 0 to 2; nil is /dev/null.
	// With Command.Terminal they are not used.
	Stdin, Stdout, Stderr *os.File
	// Cgroup is the group the process is born in; nil is the caller's.
	Cgroup *cgroup.Group
	// Join holds descriptors of namespaces to enter (package ns).
	Join map[ns.Kind]int
}

// kinds pairs the fields of n with their kinds, in the order of ns.Kinds.
func (n *Namespaces) kinds() []struct {
	kind ns.Kind
	from Namespace
} {
	return []struct {
		kind ns.Kind
		from Namespace
	}{
		{ns.User, n.User},
		{ns.Cgroup, n.Cgroup},
		{ns.IPC, n.IPC},
		{ns.UTS, n.UTS},
		{ns.Net, n.Net},
		{ns.PID, n.PID},
		{ns.Time, n.Time},
	}
}
