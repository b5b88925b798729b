package libcontainer

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup"
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
}

// ErrShape is the error of [Waiting.Start] for a container that differs from what
// was prepared in its namespaces or control group. The Waiting can still be used.
var ErrShape = errors.New("the waiting init has other namespaces or another control group")

// Prepare starts an init that waits in new namespaces of the kinds that n makes
// private. Kinds that n joins by path are not looked at; init enters those when it
// learns of them. A private user namespace, or joining a PID namespace, cannot be
// prepared: ErrShape.
func (l *Launcher) Prepare(n Namespaces, group *cgroup.Group) (*Waiting, error) {
	p := l.newPlan(&IO{Cgroup: group})
	defer p.close()
	for _, k := range n.kinds() {
		if !k.from.Private {
			continue
		}
		p.privatize(k.kind)
	}
	p.flags |= unix.CLONE_NEWNS
	if p.flags&unix.CLONE_NEWUSER != 0 || n.PID.Path != "" {
		return nil, &StepError{"prepare init", ErrShape}
	}
	proc, sock, err := p.birth(&tracer{begin: monotonic()})
	if err != nil {
		return nil, err
	}
	return &Waiting{launcher: l, proc: proc, sock: sock, flags: p.flags, group: group}, nil
}

// Pid is the process that waits, and later the command.
func (w *Waiting) Pid() int { return w.proc.Pid }

// Start is [Launcher.Start] in what was prepared; io.Cgroup may be nil for the
// group of Prepare. It uses the Waiting up, unless the error is ErrShape or
// ErrConfig.
func (w *Waiting) Start(ctx context.Context, c *Config, io IO) (*Process, error) {
	begin := monotonic()
	if io.Cgroup == nil {
		io.Cgroup = w.group
	}
	p, err := w.launcher.plan(c, &io)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if p.flags != w.flags || io.Cgroup != w.group || len(p.enter) > 0 || p.userns != nil {
		return nil, &StepError{"use waiting init", ErrShape}
	}
	t := &tracer{begin: begin}
	t.mark("plan", begin)
	sock := w.sock
	w.sock = -1
	return p.run(ctx, w.proc, sock, t)
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
