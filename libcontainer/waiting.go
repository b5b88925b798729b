package libcontainer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup"
	"berth/libcontainer/clock"
	"berth/libcontainer/initproc"
	"berth/libcontainer/mount"
)

// Waiting is an init that has been started ahead of time: in its namespaces and
// control group already, and blocked until it is told what to become. Starting a
// container in it saves the clone and the start of the init binary, about half of
// a launch.
//
// It costs a process of some 2 MB, most of it shared with its like. When the
// launcher's process dies, those that wait end.
type Waiting struct {
	launcher *Launcher
	proc     *Process
	sock     int
	flags    uintptr
	group    *cgroup.Group
	ahead    bool   // it was told what to mount
	unshare  uint64 // namespaces that it has made since
	built    *Config
}

// ErrShape is the error of [Waiting.Start] for a container that differs from what
// was prepared in its namespaces or control group. The Waiting can still be used.
var ErrShape = errors.New("the waiting init has other namespaces or another control group")

// Prepare starts an init that waits in new namespaces of the kinds that c makes
// private. Kinds that it joins by path are not looked at; init enters those when it
// learns of them. A private user namespace, or joining a PID namespace, cannot be
// prepared: ErrShape.
//
// While it waits init makes what c mounts at /proc, /dev and /sys/fs/cgroup, with
// what is masked and read-only below. A container that wants the same there only
// has it moved to its place, and one that wants something else is built from
// scratch. The rest of c does not count.
func (l *Launcher) Prepare(c *Config, group *cgroup.Group) (*Waiting, error) {
	p := l.newPlan(&IO{Cgroup: group})
	defer p.close()
	for _, k := range c.Namespaces.kinds() {
		if !k.from.Private {
			continue
		}
		p.privatize(k.kind)
	}
	p.flags |= unix.CLONE_NEWNS
	if p.flags&unix.CLONE_NEWUSER != 0 || c.Namespaces.PID.Path != "" {
		return nil, &StepError{"prepare init", ErrShape}
	}
	proc, sock, err := p.birth(&tracer{begin: clock.Now()}, nil)
	if err != nil {
		return nil, err
	}
	w := &Waiting{launcher: l, proc: proc, sock: sock, flags: p.flags, group: group}
	if err := w.prepareMounts(p, c); err != nil {
		w.Discard()
		return nil, err
	}
	return w, nil
}

// prepareMounts tells init what to make ahead.
func (w *Waiting) prepareMounts(p *plan, c *Config) error {
	ahead := &Config{Masked: c.Masked, ReadOnly: c.ReadOnly, Devices: c.Devices}
	for _, m := range c.Mounts {
		if madeAhead(m.Destination) && m.Source == "" && (m.Type != "cgroup" || w.group != nil) {
			ahead.Mounts = append(ahead.Mounts, m)
		}
	}
	if len(ahead.Mounts) == 0 {
		return nil
	}
	if err := p.cgroups(ahead, w.group); err != nil {
		return err
	}
	s := &p.setup
	s.Ahead, s.Mounts, s.MountFDs = true, ahead.Mounts, slices.Repeat([]int{-1}, len(ahead.Mounts))
	s.Masked, s.ReadOnly, s.Devices = ahead.Masked, ahead.ReadOnly, ahead.Devices
	if err := initproc.Send(w.sock, s.Encode()); err != nil {
		return &StepError{"prepare mounts", err}
	}
	w.ahead, w.unshare = true, s.Unshare
	return nil
}

// madeAhead are the places whose content depends on neither image nor network.
func madeAhead(destination string) bool {
	for _, place := range []string{"/proc", "/dev", "/sys/fs/cgroup"} {
		if destination == place || strings.HasPrefix(destination, place+"/") {
			return true
		}
	}
	return false
}

// Pid is the process that waits, and later the command.
func (w *Waiting) Pid() int { return w.proc.Pid }

// Start is [Launcher.Start] in what was prepared; io.Cgroup may be nil for the
// group of Prepare. It uses the Waiting up, unless the error is ErrShape, ErrConfig or
// about something to be bound.
func (w *Waiting) Start(ctx context.Context, c *Config, io IO) (*Process, error) {
	t := &tracer{begin: clock.Now()}
	p, err := w.plan(c, &io)
	if err != nil {
		return nil, err
	}
	defer p.close()
	t.mark("plan", t.begin)
	return p.run(ctx, w.proc, w.spend(), t)
}

// plan is that of a launcher for a container that can be had in w.
func (w *Waiting) plan(c *Config, io *IO) (*plan, error) {
	if io.Cgroup == nil {
		io.Cgroup = w.group
	}
	p, err := w.launcher.plan(c, io)
	if err != nil {
		return nil, err
	}
	if w.built != nil || p.flags != w.flags || io.Cgroup != w.group || len(p.enter) > 0 || p.userns != nil || w.ahead && !w.suits(p, c) {
		p.close()
		return nil, &StepError{"use waiting init", ErrShape}
	}
	if w.ahead {
		if err := p.copyBinds(); err != nil {
			p.close()
			return nil, err
		}
	}
	if p.setup.Root.Images {
		if err := p.imageRoot(nil, -1); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

// spend gives the socket away.
func (w *Waiting) spend() int {
	sock := w.sock
	w.sock = -1
	return sock
}

// Build has the container built that c describes, all but its command, which
// [Waiting.Run] starts in it: of c.Command only the working directory counts, with
// c.ConfineEarly also filter and capabilities, and of io only the control group and what is to be joined. The errors are those of Start. What is
// mounted stays until Run's process or the Waiting ends; of what is bound from the host
// mounts that are made there later are not seen.
func (w *Waiting) Build(ctx context.Context, c *Config, io IO) error {
	if c.Command.Terminal != nil || c.Command.Init || c.ConfineEarly && (c.Command.NoNewPrivs || c.Root.Attr&mount.ReadOnly != 0) {
		return &StepError{"use waiting init", ErrShape}
	}
	io.Stdin, io.Stdout, io.Stderr = nil, nil, nil
	p, err := w.plan(c, &io)
	if err != nil {
		return err
	}
	defer p.close()
	p.setup.Hold, p.setup.ConfineEarly = true, c.ConfineEarly
	err = w.build(ctx, p)
	if err != nil {
		w.Discard()
		return err
	}
	built := *c
	w.built = &built
	return nil
}

// build tells init what to build, and waits for it.
func (w *Waiting) build(ctx context.Context, p *plan) error {
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		w.proc.Signal(unix.SIGKILL)
		close(killed)
	})
	err := initproc.Send(w.sock, p.setup.Encode(), p.send...)
	if err == nil || err == unix.EPIPE {
		var report *initproc.Report
		report, _, err = receive(w.sock)
		switch {
		case err != nil:
		case report == nil:
			err = &StepError{"start init", errors.New("it ended without a report" + w.proc.fate())}
		case report.Failure != nil:
			err = fromFailure(report.Failure)
		}
	} else {
		err = &StepError{"send setup", err}
	}
	if !stop() {
		<-killed // the pidfd is in use until then
		return context.Cause(ctx)
	}
	return err
}

// Run starts a command in what [Waiting.Build] has built. It uses the Waiting up, unless
// the error is ErrConfig or, for a command with another working directory, a terminal, a
// resident init or what ConfineEarly does not permit, ErrShape. The early filter need not be given again.
func (w *Waiting) Run(ctx context.Context, c *Command, io IO) (*Process, error) {
	t := &tracer{begin: clock.Now()}
	if w.built == nil || c.Cwd != w.built.Command.Cwd || c.Terminal != nil || c.Init {
		return nil, &StepError{"use waiting init", ErrShape}
	}
	if w.built.ConfineEarly && (c.NoNewPrivs || c.Caps != w.built.Command.Caps || len(c.Seccomp) > 0 && !bytes.Equal(c.Seccomp, w.built.Command.Seccomp)) {
		return nil, &StepError{"use waiting init", ErrShape}
	}
	whole := *w.built
	whole.Command = *c
	if err := whole.check(); err != nil {
		return nil, err
	}
	p := w.launcher.newPlan(&io)
	defer p.close()
	p.setup.Command = *c
	if w.built.ConfineEarly {
		p.setup.Command.Seccomp = nil // it is loaded
	}
	t.mark("plan", t.begin)
	return p.run(ctx, w.proc, w.spend(), t)
}

// suits reports whether a container can do with a mount namespace that was cut off
// from the host's, and with the namespaces made since.
func (w *Waiting) suits(p *plan, c *Config) bool {
	modern := w.launcher.force&initproc.ForceMount == 0 && mount.Modern()
	return p.setup.Unshare == w.unshare && !slices.ContainsFunc(c.Mounts, func(m Mount) bool {
		follows := m.Propagation != mount.Private && m.Propagation != mount.RPrivate
		return follows || m.Type == "bind" && !modern
	})
}

// copyBinds copies what is bound from the host: an init that waits does not see what
// was mounted there since.
func (p *plan) copyBinds() error {
	for i := range p.setup.Mounts {
		m := &p.setup.Mounts[i]
		if m.Type != "bind" {
			continue
		}
		tree, err := copyTree(m.Source, m.Recursive, false, -1, m.Propagation)
		if err != nil {
			var errno unix.Errno
			if errors.As(err, &errno) {
				err = errno
			}
			return &StepError{fmt.Sprintf("bind %q on %q", m.Source, m.Destination), err}
		}
		p.setup.MountFDs[i] = p.own(tree)
	}
	return nil
}

// Discard ends an init that is not needed. It does nothing after Start.
func (w *Waiting) Discard() {
	if w.sock < 0 {
		return
	}
	unix.Close(w.sock)
	w.sock = -1
	w.proc.discard()
}
