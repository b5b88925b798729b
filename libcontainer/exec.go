package libcontainer

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"berth/libcontainer/clock"
	"berth/libcontainer/initproc"
	"berth/libcontainer/ns"
)

// Target is a process of the container to enter, usually its first. It must stay
// unreaped while Exec runs, or PidFD must be given: otherwise the number may
// come to mean another process.
type Target struct {
	Pid   int
	PidFD int // 0 or -1 if there is none
	// Known is where Exec notes what it finds out about the process and stays true of it, for the next
	// Exec with the same target; nil: nowhere. One Exec at a time may use it.
	Known *Known
}

// Known is what is known of a [Target]: at first nothing.
type Known struct {
	untraceable bool // it lacks CAP_SYS_PTRACE, and a bounding set only shrinks
}

// Exec starts a further process in the container of target: in all its
// namespaces and, if given, in its control group, with rights of its own. It is
// a child of the caller, like one from Start.
//
// A process that is undumpable (PR_SET_DUMPABLE, prctl(2)), and so cannot be traced
// from within the container, starts the command without an init, at half the cost:
// on x86-64, with a PidFD, from Linux 5.9 on, unless the container has a user
// namespace or CAP_SYS_PTRACE or the command a security label.
//
// A time namespace is not entered; containers started by this package have no
// clock offsets, so there is nothing to see.
func (l *Launcher) Exec(ctx context.Context, target Target, c *Command, io IO) (*Process, error) {
	begin := clock.Now()
	if err := checkCommand(c); err != nil {
		return nil, err
	}
	p := l.newPlan(&io)
	p.setup.Exec, p.setup.Command = true, *c
	t := &tracer{begin: begin}
	if proc, err := p.execInside(ctx, target, t); err != errInit {
		p.close()
		return proc, err
	}
	if err := p.enterAll(target); err != nil {
		p.close()
		return nil, err
	}
	if p.joinUser >= 0 {
		err := p.giveStdioTo(target.Pid)
		if err != nil {
			p.close()
			return nil, &StepError{"give stdio to the container", err}
		}
	}
	return l.launch(ctx, p, begin)
}

// giveStdioTo gives pipes to the root of the user namespace of a process.
func (p *plan) giveStdioTo(pid int) error {
	uid, err := mappedRoot(pid, "uid_map")
	if err != nil {
		return err
	}
	gid, err := mappedRoot(pid, "gid_map")
	if err != nil {
		return err
	}
	return p.giveStdio(uid, gid)
}

// enterAll plans to enter every namespace of target that is not the caller's
// own.
//
// Init enters them itself, except PID, which counts for children only, and except
// where the container has a user namespace: there init is born in that, and the
// launching thread enters the others, because some may belong to the host. It does
// not enter the mount namespace, which lacks the init binary, nor the cgroup
// namespace, out of which no process can be born into a group (nsdelegate, ENOENT).
func (p *plan) enterAll(target Target) error {
	own := false // the container has a user namespace of its own
	for _, kind := range ns.Kinds() {
		if kind == ns.Time || !kind.Supported() {
			continue
		}
		fd, err := ns.Open(target.Pid, kind)
		if err != nil {
			return &StepError{"open " + string(kind) + " namespace", err}
		}
		p.owned = append(p.owned, fd)
		same, err := isOwn(fd, kind)
		if err != nil {
			return &StepError{"open " + string(kind) + " namespace", err}
		}
		switch {
		case same:
		case kind == ns.User:
			own, p.joinUser = true, fd
		case kind == ns.PID, own && kind != ns.Mount && kind != ns.Cgroup:
			p.enter = append(p.enter, initproc.Join{Kind: kind, FD: fd})
		default:
			p.setup.Joins = append(p.setup.Joins, initproc.Join{Kind: kind, FD: p.add(fd)})
		}
	}
	// Only now: had the process been gone before, its pid could have been given
	// to another, whose namespaces these would be.
	if target.PidFD > 0 {
		if err := unix.PidfdSendSignal(target.PidFD, 0, nil, 0); err != nil && err != unix.ENOSYS {
			return &StepError{"find container", os.NewSyscallError("pidfd_send_signal", err)}
		}
	}
	return nil
}

// isOwn reports whether fd holds the namespace that the caller is in.
func isOwn(fd int, kind ns.Kind) (bool, error) {
	own, err := ns.OpenPath("/proc/self/ns/" + string(kind))
	if err != nil {
		return false, err
	}
	defer unix.Close(own)
	a, err := ns.Identify(fd)
	if err != nil {
		return false, err
	}
	b, err := ns.Identify(own)
	return a == b, err
}
