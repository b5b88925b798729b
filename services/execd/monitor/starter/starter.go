// Package starter is how the monitor starts processes: by libcontainer, in a
// cgroup it makes for each container.
package starter

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/faultpoint"
	"berth/libcontainer"
	"berth/libcontainer/cgroup"
	"berth/libcontainer/clock"
	"berth/libcontainer/ns"
	"berth/services/execd/monitor"
	"berth/services/execd/monitor/wire"
)

var (
	cgroupMade    = faultpoint.Declare("monitor.cgroup-made", "the container's cgroup exists, nothing runs in it")
	processCloned = faultpoint.Declare("monitor.process-started", "the command runs, execd does not know yet")
)

// Plan is the configuration of a container's first process.
type Plan struct {
	// Parent is the cgroup below which the container's own is made, Name its
	// name there.
	Parent    string
	Name      string
	Resources cgroup.Resources
	Container libcontainer.Config

	trace bool // the caller wants to know the steps
}

// ExecPlan is the configuration of a further process.
type ExecPlan struct {
	Parent  string
	Name    string
	Command libcontainer.Command
}

// Encode splits the plan for a wire.Launch.
func (p *Plan) Encode() (config json.RawMessage, filter []byte, err error) {
	text := *p
	filter, text.Container.Command.Seccomp = p.Container.Command.Seccomp, nil
	config, err = json.Marshal(&text)
	return config, filter, err
}

// rest is what is left to do of a plan that was built ahead.
type rest struct {
	Command   libcontainer.Command
	Resources cgroup.Resources
}

// EncodeRest is Encode for a container that was built ahead, from this plan or one that differs in
// its command and limits.
func (p *Plan) EncodeRest() (config json.RawMessage, filter []byte, err error) {
	r := rest{Command: p.Container.Command, Resources: p.Resources}
	filter, r.Command.Seccomp = r.Command.Seccomp, nil
	config, err = json.Marshal(&r)
	return config, filter, err
}

// binaryPlan begins an exec plan that is not JSON.
const binaryPlan = 0

// Encode splits the plan for a wire.Exec. The monitor may be of another build, which may know more or less of a command:
// it gets JSON.
func (p *ExecPlan) Encode(sameBuild bool) (config, filter []byte, err error) {
	rest := *p
	filter, rest.Command.Seccomp = p.Command.Seccomp, nil
	if !sameBuild {
		config, err = json.Marshal(&rest)
		return config, filter, err
	}
	config = append(make([]byte, 0, 1<<10), binaryPlan)
	for _, name := range []string{p.Parent, p.Name} {
		config = binary.AppendUvarint(config, uint64(len(name)))
		config = append(config, name...)
	}
	config, err = rest.Command.AppendBinary(config)
	return config, filter, err
}

var errPlan = errors.New("malformed")

func decodeExecPlan(config, filter []byte) (*ExecPlan, error) {
	p := new(ExecPlan)
	var err error
	if len(config) == 0 || config[0] != binaryPlan {
		err = json.Unmarshal(config, p)
	} else {
		config = config[1:]
		for _, name := range []*string{&p.Parent, &p.Name} {
			n, used := binary.Uvarint(config)
			if used <= 0 || n > uint64(len(config)-used) {
				return nil, errPlan
			}
			*name, config = string(config[used:used+int(n)]), config[used+int(n):]
		}
		p.Command, err = libcontainer.DecodeCommand(config)
	}
	p.Command.Seccomp = filter
	return p, err
}

// Starter implements monitor.Launcher.
type Starter struct {
	launcher *libcontainer.Launcher
	layout   cgroup.Layout

	mu      sync.Mutex
	parents map[string]*cgroup.Parent
	pool    *libcontainer.Pool // nil: none
	pooled  string             // the cgroup that its groups are below
	net     spareNet
	entered entries
}

// New loads the init binary and looks at the host's cgroups.
func New(initPath string) (*Starter, error) {
	layout, err := cgroup.Detect()
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	l, err := libcontainer.New(initPath)
	if err != nil {
		return nil, err
	}
	return &Starter{launcher: l, layout: layout, parents: make(map[string]*cgroup.Parent)}, nil
}

// parent is opened once and kept.
func (s *Starter) parent(name string) (*cgroup.Parent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.parents[name]; p != nil {
		return p, nil
	}
	p, err := cgroup.OpenParent(s.layout, name)
	if err == nil {
		s.parents[name] = p
	}
	return p, err
}

// group opens a container's cgroup; one made anew when it is not there.
func (s *Starter) group(parent, name string, r *cgroup.Resources) (*cgroup.Group, error) {
	p, err := s.parent(parent)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return p.Open(name)
	}
	g, err := p.Create(name, *r)
	if errors.Is(err, cgroup.ErrExists) {
		// Left by an earlier run of the same container, whose deletion is
		// still under way: processes it may hold are dead or to be.
		if err := s.clear(p, name); err != nil {
			return nil, err
		}
		g, err = p.Create(name, *r)
	}
	return g, err
}

// newGroup makes a container's cgroup, or takes one of the pool, whose name is another.
func (s *Starter) newGroup(plan *Plan) (*cgroup.Group, error) {
	if s.pool != nil && plan.Parent == s.pooled {
		return s.pool.Group(plan.Resources)
	}
	return s.group(plan.Parent, plan.Name, &plan.Resources)
}

func (s *Starter) clear(p *cgroup.Parent, name string) error {
	g, err := p.Open(name)
	if errors.Is(err, cgroup.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer g.Close()
	if err := g.Kill(); err != nil && !errors.Is(err, cgroup.ErrNotFound) {
		return err
	}
	return g.Delete()
}

// Start implements monitor.Launcher.
func (s *Starter) Start(req *wire.Launch, f monitor.Files, netns *os.File) (*monitor.Process, error) {
	var plan Plan
	if err := json.Unmarshal(req.Config, &plan); err != nil {
		return nil, fmt.Errorf("read launch plan: %w", err)
	}
	plan.Container.Command.Seccomp = req.Filter
	plan.trace = req.Trace
	own, err := s.ownNet(&plan.Container)
	if err != nil {
		return nil, explain(fmt.Errorf("open network namespace: %w", err))
	}
	if own != nil {
		defer own.Close()
		netns = own
	}
	if p, err := s.startReady(&plan, f, netns); p != nil || err != nil {
		return p, explain(err)
	}
	group := span{name: "make cgroup", begin: clock.Now()}
	g, err := s.newGroup(&plan)
	if err != nil {
		return nil, explain(err)
	}
	defer g.Close()
	group.end = clock.Now()
	if err := cgroupMade.Hit(); err != nil {
		return nil, errors.Join(err, g.Delete())
	}
	lio := ends(f, netns)
	lio.Cgroup = g
	p, err := s.launcher.Start(context.Background(), &plan.Container, lio)
	if err != nil {
		g.Delete()
		return nil, explain(err)
	}
	if err := processCloned.Hit(); err != nil {
		return nil, err
	}
	return process(p, g, plan.trace, group), nil
}

func ends(f monitor.Files, netns *os.File) libcontainer.IO {
	io := libcontainer.IO{Stdin: f.Stdin, Stdout: f.Stdout, Stderr: f.Stderr}
	if netns != nil {
		io.Join = map[ns.Kind]int{ns.Net: wire.FD(netns)}
	}
	return io
}

// startReady starts a container in an init that waits, if there is one of its
// shape. Neither process nor error: there is none.
func (s *Starter) startReady(plan *Plan, f monitor.Files, netns *os.File) (*monitor.Process, error) {
	r := s.take(plan)
	if r == nil {
		return nil, nil
	}
	group, err := limit(r, plan.Resources)
	if err != nil {
		r.Discard()
		return nil, err
	}
	p, err := r.Start(context.Background(), &plan.Container, ends(f, netns))
	if errors.Is(err, libcontainer.ErrShape) {
		r.Discard()
		return nil, nil
	}
	if err != nil {
		r.Discard()
		return nil, err
	}
	defer r.Group.Close()
	if err := processCloned.Hit(); err != nil {
		return nil, err
	}
	return process(p, r.Group, plan.trace, group), nil
}

// limit gives a waiting init's cgroup its limits.
func limit(r *libcontainer.Ready, limits cgroup.Resources) (span, error) {
	begin := clock.Now()
	err := r.Limit(limits)
	return span{name: "limit cgroup", begin: begin, end: clock.Now()}, err
}

// standing is a container that was built ahead, in an init of the pool.
type standing struct {
	*libcontainer.Ready
	used bool
}

var errNoneWaits = errors.New("no init of the container's shape waits")

// StandBy implements monitor.Launcher.
func (s *Starter) StandBy(req *wire.Launch, netns *os.File) (monitor.Standing, error) {
	var plan Plan
	if err := json.Unmarshal(req.Config, &plan); err != nil {
		return nil, fmt.Errorf("read launch plan: %w", err)
	}
	plan.Container.Command.Seccomp = req.Filter
	own, err := s.ownNet(&plan.Container)
	if err != nil {
		return nil, explain(fmt.Errorf("open network namespace: %w", err))
	}
	if own != nil {
		defer own.Close()
		netns = own
	}
	r := s.take(&plan)
	if r == nil {
		return nil, explain(errNoneWaits)
	}
	// Its limits stay those of the pool until it starts: then it may be to have others.
	if err := r.Build(context.Background(), &plan.Container, ends(monitor.Files{}, netns)); err != nil {
		r.Discard()
		return nil, explain(err)
	}
	return &standing{Ready: r}, nil
}

// Start implements monitor.Standing.
func (s *standing) Start(req *wire.Launch, f monitor.Files) (*monitor.Process, error) {
	var left rest
	if err := json.Unmarshal(req.Config, &left); err != nil {
		return nil, fmt.Errorf("read what is left of the plan: %w", err)
	}
	left.Command.Seccomp = req.Filter
	group, err := limit(s.Ready, left.Resources)
	if err != nil {
		return nil, explain(err)
	}
	p, err := s.Run(context.Background(), &left.Command, ends(f, nil))
	if err != nil {
		return nil, explain(err) // Discard is to follow
	}
	s.used = true
	defer s.Group.Close()
	if err := processCloned.Hit(); err != nil {
		return nil, err
	}
	return process(p, s.Group, req.Trace, group), nil
}

// Discard implements monitor.Standing.
func (s *standing) Discard() {
	if !s.used {
		s.used = true
		s.Ready.Discard()
	}
}

// Exec implements monitor.Launcher.
func (s *Starter) Exec(req *wire.Exec, f monitor.Files, pid int, pidfd *os.File) (*monitor.Process, error) {
	plan, err := decodeExecPlan(req.Config, req.Filter)
	if err != nil {
		return nil, fmt.Errorf("read exec plan: %w", err)
	}
	target := libcontainer.Target{Pid: pid, PidFD: wire.FD(pidfd)}
	e := s.entered.take(plan.Name, pid)
	if e == nil {
		g, err := s.group(plan.Parent, plan.Name, nil)
		if err != nil {
			return nil, explain(err)
		}
		e = &entry{pid: pid, group: g}
	}
	target.Known = &e.known
	p, err := s.launcher.Exec(context.Background(), target, &plan.Command,
		libcontainer.IO{Stdin: f.Stdin, Stdout: f.Stdout, Stderr: f.Stderr, Cgroup: e.group})
	if err != nil {
		e.group.Close()
		return nil, explain(err)
	}
	s.entered.put(plan.Name, e, target.PidFD)
	return describe(p, true, span{begin: p.Begun}), nil
}

// span is a step of this package's; without a name: none.
type span struct {
	name       string
	begin, end int64 // clock.Now
}

// process describes p, the first of a container.
func process(p *libcontainer.Process, g *cgroup.Group, trace bool, group span) *monitor.Process {
	out := describe(p, trace, group)
	out.Cgroup = g.Name()
	for _, dir := range g.Paths() {
		if !slices.Contains(out.Cgroups, dir) {
			out.Cgroups = append(out.Cgroups, dir)
		}
	}
	slices.Sort(out.Cgroups)
	return out
}

// describe describes p, whose trace, if wanted, begins with what was done to its
// cgroup.
func describe(p *libcontainer.Process, trace bool, group span) *monitor.Process {
	out := &monitor.Process{Pid: p.Pid, PidFD: p.PidFD, Terminal: p.Console, Mounts: p.Mounts, Warnings: p.Warnings}
	if trace {
		out.Begun, out.Trace = group.begin, make([]wire.Step, 0, 1+len(p.Trace))
		if group.name != "" {
			out.Trace = append(out.Trace, wire.Step{Name: group.name, Duration: time.Duration(group.end - group.begin)})
		}
		for _, s := range p.Trace {
			out.Trace = append(out.Trace, wire.Step{Name: s.Name, Offset: time.Duration(p.Begun-group.begin) + s.Start, Duration: s.Duration})
		}
	}
	return out
}

// Kill implements monitor.Launcher.
func (s *Starter) Kill(parent, name string) error {
	g, err := s.group(parent, name, nil)
	if errors.Is(err, cgroup.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer g.Close()
	return g.Kill()
}

// Ended implements monitor.Launcher.
func (s *Starter) Ended(parent, name string) (oomKilled bool) {
	s.entered.forget(name)
	g, err := s.group(parent, name, nil)
	if err != nil {
		return false
	}
	defer g.Close()
	kills, err := g.OOMKills()
	return err == nil && kills > 0
}

// explain gives an error the code by which execd tells clients apart.
func explain(err error) error {
	if err == nil {
		return nil
	}
	code := wire.CodeInternal
	switch {
	case errors.Is(err, libcontainer.ErrNotFound):
		code = wire.CodeNoCommand
	case errors.Is(err, libcontainer.ErrNotExecutable):
		code = wire.CodeNotExecutable
	case errors.Is(err, libcontainer.ErrUser), errors.Is(err, libcontainer.ErrConfig), errors.Is(err, cgroup.ErrInvalid):
		code = wire.CodeInvalid
	case errors.Is(err, libcontainer.ErrUnsupported), errors.Is(err, cgroup.ErrNotAvailable):
		code = wire.CodeUnsupported
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE),
		errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOSPC):
		code = wire.CodeNoMemory
	}
	return &wire.Error{Code: code, Text: err.Error()}
}
