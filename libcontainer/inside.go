package libcontainer

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
	"berth/libcontainer/clock"
	"berth/libcontainer/initproc"
	"berth/libcontainer/internal/spawn"
	"berth/libcontainer/ns"
)

// errInit is for a command that takes an init to start.
var errInit = errors.New("needs an init")

// inside are the namespaces that a thread enters to start a command. The cgroup
// namespace is the child's own affair, see initproc.Program.
const inside = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWPID

// execInside starts a command in a container from a thread that enters it, without
// an init: nothing is executed but the command. errInit, before anything has
// happened, if that cannot be done here.
func (p *plan) execInside(ctx context.Context, target Target, t *tracer) (*Process, error) {
	if err := p.fitsInside(target); err != nil {
		return nil, err
	}
	type result struct {
		proc *Process
		err  error
	}
	done := make(chan result, 1)
	var thread func()
	thread = func() {
		runtime.LockOSThread() // to its end, which ends the thread
		if unix.Gettid() == unix.Getpid() {
			// The first thread must not move (cgroup.Group.Enter) nor end; while it is
			// held here, the next goroutine has another.
			held := make(chan struct{})
			go func() { defer close(held); thread() }()
			<-held
			runtime.UnlockOSThread()
			return
		}
		growStack()
		proc, err := p.fromInside(ctx, target, t)
		done <- result{proc, err}
	}
	go thread()
	r := <-done
	return r.proc, r.err
}

// growStack makes the stack of a new goroutine as large as it is going to be. Else it
// would grow in steps, each with a copy of all that is on it by then.
//
//go:noinline
func growStack() {
	var room [12 << 10]byte
	runtime.KeepAlive(&room)
}

// fitsInside looks for what only an init can do, or does more safely. The child shares
// the launcher's memory for a moment: a container whose processes could trace it, by
// CAP_SYS_PTRACE over the launcher's user namespace, gets an init, which shares none.
func (p *plan) fitsInside(target Target) error {
	c := &p.setup.Command
	if !spawn.Supported || p.launcher.initOnly || p.launcher.proc < 0 || target.PidFD <= 0 || c.AppArmor != "" || c.SELinux != "" {
		return errInit
	}
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable == 1 {
		return errInit
	}
	own, its := &p.launcher.users, new(unix.Stat_t)
	if own.Ino == 0 || unix.Stat(ns.User.Path(target.Pid), its) != nil || own.Ino != its.Ino || own.Dev != its.Dev {
		return errInit
	}
	if target.Known != nil && target.Known.untraceable {
		return nil
	}
	if set, err := boundingOf(target.Pid); err != nil || set.Has(unix.CAP_SYS_PTRACE) {
		return errInit
	}
	if target.Known != nil {
		target.Known.untraceable = true
	}
	return nil
}

// boundingOf is the bounding set of a process.
func boundingOf(pid int) (caps.Set, error) {
	// Without os.ReadFile, which asks the poller and reads in small pieces.
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	status := make([]byte, 8<<10) // it is less than 2
	n, err := unix.Read(fd, status)
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status[:n]), "\nCapBnd:\t")
	line, _, _ := strings.Cut(rest, "\n")
	set, err := strconv.ParseUint(line, 16, 64)
	return caps.Set(set), err
}

// fromInside does it, on a thread that is thrown away.
func (p *plan) fromInside(ctx context.Context, target Target, t *tracer) (*Process, error) {
	start := clock.Now()
	// A mount namespace is entered by threads that share no working directory.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, &StepError{"enter namespaces", os.NewSyscallError("unshare", err)}
	}
	switch err := unix.Setns(target.PidFD, inside); err {
	case nil:
	case unix.EINVAL, unix.EBADF: // no pidfds before Linux 5.8
		return nil, errInit
	case unix.ESRCH:
		return nil, &StepError{"find container", os.NewSyscallError("setns", err)}
	default:
		return nil, &StepError{"enter namespaces", os.NewSyscallError("setns", err)}
	}
	t.mark("enter namespaces", start)
	program, fail := initproc.NewProgram(&p.setup, [3]int(p.send[:3]), p.launcher.proc, target.PidFD)
	if fail != nil {
		return nil, fromFailure(fail)
	}
	defer program.Close()
	t.add(program.Steps)
	child, err := p.startInside(ctx, program, t)
	if program.Master >= 0 {
		console := os.NewFile(uintptr(program.Master), "console")
		if err != nil {
			console.Close()
		} else {
			child.Console = console
		}
	}
	return child, err
}

func (p *plan) startInside(ctx context.Context, program *initproc.Program, t *tracer) (*Process, error) {
	program.Cgroup = -1
	if err := p.placeThread(t); err != nil {
		return nil, err
	}
	if p.attr.UseCgroupFD {
		program.Cgroup = p.attr.CgroupFD
	}
	stop := killAtEnd(ctx, program)
	start := clock.Now()
	pid, pidfd, err := program.Start()
	t.mark("clone and exec", start)
	stop()
	switch err {
	case nil:
	case unix.ENOSYS, unix.EINVAL, unix.E2BIG: // before Linux 5.7
		return nil, errInit
	default:
		return nil, &StepError{"clone", err}
	}
	child := &Process{Pid: pid, PidFD: pidfd}
	fail, can := program.Outcome()
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case !can:
		err = errInit
	case fail != nil:
		err = fromFailure(fail)
	}
	if err != nil {
		child.discard()
		return nil, err
	}
	child.Trace, child.Warnings = t.steps, program.Warnings
	return child, nil
}

// killAtEnd ends the child when ctx does, for as long as stop has not been called:
// until it has executed its command nobody else knows of it.
func killAtEnd(ctx context.Context, program *initproc.Program) (stop func()) {
	if ctx.Done() == nil {
		return func() {}
	}
	over, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		select {
		case <-over:
			return
		case <-ctx.Done():
		}
		for { // it may yet have to be made
			program.Kill()
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func() { close(over); <-gone }
}
