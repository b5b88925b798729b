// Package starter is how the monitor starts processes: by libcontainer, in a
// cgroup it makes for each container.
package starter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"berth/internal/faultpoint"
	"berth/libcontainer"
	"berth/libcontainer/cgroup"
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
}

// ExecPlan is the configuration of a further process.
type ExecPlan struct {
	Parent  string
	Name    string
	Command libcontainer.Command
}

// Starter implements monitor.Launcher.
type Starter struct {
	launcher *libcontainer.Launcher
	layout   cgroup.Layout

	mu      sync.Mutex
	parents map[string]*cgroup.Parent
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
func (s *Starter) Start(config json.RawMessage, io wire.Stdio, f monitor.Files, netns *os.File) (*monitor.Process, error) {
	var plan Plan
	if err := json.Unmarshal(config, &plan); err != nil {
		return nil, fmt.Errorf("read launch plan: %w", err)
	}
	g, err := s.group(plan.Parent, plan.Name, &plan.Resources)
	if err != nil {
		return nil, explain(err)
	}
	defer g.Close()
	if err := cgroupMade.Hit(); err != nil {
		return nil, errors.Join(err, g.Delete())
	}
	lio := libcontainer.IO{Stdin: f.Stdin, Stdout: f.Stdout, Stderr: f.Stderr, Cgroup: g}
	if netns != nil {
		lio.Join = map[ns.Kind]int{ns.Net: wire.FD(netns)}
	}
	p, err := s.launcher.Start(context.Background(), &plan.Container, lio)
	if err != nil {
		g.Delete()
		return nil, explain(err)
	}
	if err := processCloned.Hit(); err != nil {
		return nil, err
	}
	return process(p, g), nil
}

// Exec implements monitor.Launcher.
func (s *Starter) Exec(config json.RawMessage, io wire.Stdio, f monitor.Files, pid int, pidfd *os.File) (*monitor.Process, error) {
	var plan ExecPlan
	if err := json.Unmarshal(config, &plan); err != nil {
		return nil, fmt.Errorf("read exec plan: %w", err)
	}
	g, err := s.group(plan.Parent, plan.Name, nil)
	if err != nil {
		return nil, explain(err)
	}
	defer g.Close()
	target := libcontainer.Target{Pid: pid, PidFD: wire.FD(pidfd)}
	p, err := s.launcher.Exec(context.Background(), target, &plan.Command,
		libcontainer.IO{Stdin: f.Stdin, Stdout: f.Stdout, Stderr: f.Stderr, Cgroup: g})
	if err != nil {
		return nil, explain(err)
	}
	return process(p, g), nil
}

func process(p *libcontainer.Process, g *cgroup.Group) *monitor.Process {
	out := &monitor.Process{Pid: p.Pid, PidFD: p.PidFD, Terminal: p.Console, Warnings: p.Warnings}
	for _, s := range p.Trace {
		out.Trace = append(out.Trace, wire.Step{Name: s.Name, Offset: s.Start, Duration: s.Duration})
	}
	for _, dir := range g.Paths() {
		if !slices.Contains(out.Cgroups, dir) {
			out.Cgroups = append(out.Cgroups, dir)
		}
	}
	slices.Sort(out.Cgroups)
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

// OOMKilled implements monitor.Launcher.
func (s *Starter) OOMKilled(parent, name string) bool {
	g, err := s.group(parent, name, nil)
	if err != nil {
		return false
	}
	defer g.Close()
	oom, err := g.OOM()
	return err == nil && oom.Kills > 0
}

// explain gives an error the code by which execd tells clients apart.
func explain(err error) error {
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

// Delete removes a container's cgroup, and everything in it; for execd, after
// an exit.
func (s *Starter) Delete(parent, name string) error {
	p, err := s.parent(parent)
	if err != nil {
		return err
	}
	return s.clear(p, path.Base(name))
}
