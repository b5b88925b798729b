package libcontainer

import (
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup"
	"berth/libcontainer/initproc"
	"berth/libcontainer/ns"
)

// plan is a launch, worked out: what the launching thread does before the
// clone, the clone, and what init is told.
type plan struct {
	launcher *Launcher
	setup    initproc.Setup
	send     []int // descriptors that go with the setup
	sent     bool  // both are on their way
	owned    []int // descriptors that are closed after the launch
	enter    []initproc.Join
	flags    uintptr
	attr     syscall.SysProcAttr
	group    *cgroup.Group
	userns   *Config           // set if there is a user namespace to prepare for
	sysctls  []initproc.Sysctl // that the launching thread writes
	joinUser int               // user namespace init is born into, -1 for the launcher's or a new one
	netOwned bool              // the network namespace is made with the user namespace
	net      <-chan madeNet    // the network namespace that is made beside the clone, nil: none
}

// add makes fd one of the descriptors that go with the setup and returns its
// place.
func (p *plan) add(fd int) int {
	p.send = append(p.send, fd)
	return len(p.send) - 1
}

// own is add for a descriptor that is closed after the launch.
func (p *plan) own(fd int) int {
	p.owned = append(p.owned, fd)
	return p.add(fd)
}

// close closes what the plan opened.
func (p *plan) close() {
	for _, fd := range p.owned {
		unix.Close(fd)
	}
	p.owned = nil
	if p.net != nil {
		if made := <-p.net; made.err == nil {
			made.ns.Close()
		}
		p.net = nil
	}
}

func (l *Launcher) newPlan(io *IO) *plan {
	p := &plan{launcher: l, group: io.Cgroup, joinUser: -1}
	for _, file := range []*os.File{io.Stdin, io.Stdout, io.Stderr} {
		if file == nil {
			file = l.null
		}
		p.add(int(file.Fd()))
	}
	p.setup.RootFD = -1
	p.setup.Force, p.setup.Pinned = l.force, l.pin
	return p
}

// plan turns a Config into a plan, or refuses it.
func (l *Launcher) plan(c *Config, io *IO) (*plan, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	p := l.newPlan(io)
	if err := p.namespaces(c, io); err != nil {
		p.close()
		return nil, err
	}
	sysctls, err := c.sysctls(func(k ns.Kind) bool { return p.has(c, io, k) })
	if err != nil {
		p.close()
		return nil, err
	}
	s := &p.setup
	s.Root, s.Mounts = c.Root, c.Mounts
	s.MountFDs = slices.Repeat([]int{-1}, len(c.Mounts))
	s.Masked, s.ReadOnly, s.Devices = c.Masked, c.ReadOnly, c.Devices
	s.Hostname, s.Domain = c.Hostname, c.Domainname
	for _, v := range sysctls {
		if p.userns != nil && !p.netOwned && strings.HasPrefix(v.Path, "net/") {
			p.sysctls = append(p.sysctls, v)
		} else {
			s.Sysctls = append(s.Sysctls, v)
		}
	}
	s.Command, s.KeepMounts = c.Command, c.KeepMounts
	if err := p.cgroups(c, io.Cgroup); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// has reports whether the container's namespace of a kind is not the host's.
func (p *plan) has(c *Config, io *IO, kind ns.Kind) bool {
	for _, n := range c.Namespaces.kinds() {
		if n.kind == kind {
			_, joined := io.Join[kind]
			return joined || n.from != Namespace{}
		}
	}
	return false
}

// namespaces decides who makes or enters each namespace. Init enters those it
// can. The launching thread does it before the clone for PID, which counts for
// children only, and for all of them when init is born into a user namespace,
// from which it has no rights over namespaces of the host.
func (p *plan) namespaces(c *Config, io *IO) error {
	p.flags = unix.CLONE_NEWNS
	userns := c.Namespaces.User.Private
	for _, n := range c.Namespaces.kinds() {
		fd, joined := io.Join[n.kind]
		if !joined && n.from.Path != "" {
			var err error
			if fd, err = ns.OpenPath(n.from.Path); err != nil {
				return &StepError{"open " + string(n.kind) + " namespace", &os.PathError{Op: "open", Path: n.from.Path, Err: err}}
			}
			p.owned = append(p.owned, fd)
			joined = true
		}
		switch {
		case joined && (n.kind == ns.User || n.kind == ns.Time):
			return &StepError{"join " + string(n.kind) + " namespace", ErrUnsupported}
		case joined && (n.kind == ns.PID || userns):
			p.enter = append(p.enter, initproc.Join{Kind: n.kind, FD: fd})
		case joined:
			p.setup.Joins = append(p.setup.Joins, initproc.Join{Kind: n.kind, FD: p.add(fd)})
		case n.from.Private:
			p.privatize(n.kind)
		}
	}
	p.netOwned = p.flags&unix.CLONE_NEWNET != 0
	p.setup.Loopback = p.netOwned
	if userns {
		p.userns = c
		p.attr.UidMappings, p.attr.GidMappings, p.attr.GidMappingsEnableSetgroups = sysMap(c.UIDMappings), sysMap(c.GIDMappings), true
		// The ids of the launcher are not mapped; without one that is, execve
		// would take all capabilities away.
		p.attr.Credential = &syscall.Credential{}
	}
	return nil
}

// privatize has a new namespace made: by the clone, or, where that would come too
// early or cannot be, by init.
func (p *plan) privatize(kind ns.Kind) {
	if kind == ns.Cgroup || kind == ns.Time {
		p.setup.Unshare |= uint64(kind.Flag())
		return
	}
	p.flags |= kind.Flag()
}

func sysMap(maps []IDMap) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, m := range maps {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.Container), HostID: int(m.Host), Size: int(m.Size)})
	}
	return out
}

// cgroups describes the container's groups to init, if it is to see them.
func (p *plan) cgroups(c *Config, group *cgroup.Group) error {
	if !slices.ContainsFunc(c.Mounts, func(m Mount) bool { return m.Type == "cgroup" }) {
		return nil
	}
	if group == nil {
		return refuse("mount", "a mount of type cgroup needs a control group")
	}
	p.setup.Cgroups = cgroupMounts(group.Paths())
	return nil
}

// cgroupMounts groups controllers by the directory they share. Pure v2, one
// directory with the key "", is mounted as it is; otherwise each hierarchy is
// called after its controllers, as distributions do, and v2 "unified".
func cgroupMounts(paths map[string]string) []initproc.CgroupMount {
	byPath := map[string][]string{}
	for controller, dir := range paths {
		byPath[dir] = append(byPath[dir], strings.TrimPrefix(controller, "name="))
	}
	var list []initproc.CgroupMount
	for dir, names := range byPath {
		slices.Sort(names)
		m := initproc.CgroupMount{Source: dir, Name: strings.Join(names, ",")}
		switch {
		case names[0] == "" && len(byPath) == 1:
			m.Name = ""
		case names[0] == "":
			m.Name = "unified"
		case len(names) > 1:
			m.Links = names
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b initproc.CgroupMount) int { return strings.Compare(a.Name, b.Name) })
	return list
}
