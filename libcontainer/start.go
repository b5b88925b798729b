package libcontainer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/clock"
	"berth/libcontainer/initproc"
	"berth/libcontainer/internal/rawfork"
	"berth/libcontainer/ns"
)

// initEnv keeps init's Go runtime small: one processor, without reading control
// groups to find that out; no garbage collection in the few milliseconds it
// lives; no signals to preempt it.
var (
	initArgs = []string{"berth-init"}
	initEnv  = []string{"GOMAXPROCS=1", "GOGC=off", "GODEBUG=asyncpreemptoff=1,containermaxprocs=0,updatemaxprocs=0"}
)

// Start makes the container that c describes and starts its first process. It
// returns when the command runs, or with a *StepError. If ctx ends before that,
// the launch is undone.
//
// Start blocks a thread for the few milliseconds a launch takes.
func (l *Launcher) Start(ctx context.Context, c *Config, io IO) (*Process, error) {
	begin := clock.Now()
	p, err := l.plan(c, &io)
	if err != nil {
		return nil, err
	}
	return l.launch(ctx, p, begin)
}

// launch carries a plan out.
func (l *Launcher) launch(ctx context.Context, p *plan, begin int64) (*Process, error) {
	defer p.close()
	t := &tracer{begin: begin}
	t.mark("plan", begin)
	if p.setup.Root.Images && p.userns == nil {
		if err := p.imageRoot(t, -1); err != nil {
			return nil, err
		}
	}
	// What a user namespace takes is known when there is one.
	var early []byte
	if p.userns == nil {
		p.makeNet()
		early = p.setup.Encode()
	}
	proc, sock, err := p.birth(t, early)
	if err != nil {
		return nil, err
	}
	return p.run(ctx, proc, sock, t)
}

// maxEarly is how large a message may be that is sent before there is a reader:
// well below what a socket holds by default (net.core.wmem_default, 208 KiB).
const maxEarly = 64 << 10

// birth makes init and the socket to talk to it over, which the caller closes. A
// setup that is small enough is sent already, so that init finds it when it is up,
// however busy we are.
func (p *plan) birth(t *tracer, setup []byte) (*Process, int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, &StepError{"make socket", err}
	}
	if len(setup) > 0 && len(setup) <= maxEarly {
		start := clock.Now()
		if err := initproc.Send(pair[0], setup, p.send...); err != nil {
			unix.Close(pair[0])
			unix.Close(pair[1])
			return nil, -1, &StepError{"send setup", err}
		}
		p.sent = true
		t.mark("send setup", start)
	}
	proc, err := p.spawn(t, pair[1])
	unix.Close(pair[1])
	if err != nil {
		unix.Close(pair[0])
		return nil, -1, err
	}
	return proc, pair[0], nil
}

// run makes an init the command. It closes sock.
func (p *plan) run(ctx context.Context, proc *Process, sock int, t *tracer) (*Process, error) {
	defer unix.Close(sock)
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		proc.Signal(unix.SIGKILL)
		close(killed)
	})
	err := p.converse(sock, proc, t)
	if !stop() {
		<-killed // the pidfd is in use until then
		err = context.Cause(ctx)
	}
	if err != nil {
		proc.discard()
		return nil, err
	}
	proc.Begun, proc.Trace = t.begin, t.steps
	return proc, nil
}

// converse tells init what to do and listens until the command runs.
func (p *plan) converse(sock int, proc *Process, t *tracer) error {
	start := clock.Now()
	if !p.sent {
		if err := initproc.Send(sock, p.setup.Encode(), p.send...); err != nil && err != unix.EPIPE {
			return &StepError{"send setup", err}
		}
		t.mark("send setup", start)
	}
	if err := p.sendNet(sock, t); err != nil {
		return err
	}
	waitForExec(sock)
	report, fds, err := receive(sock)
	proc.take(report, fds)
	if err != nil {
		return err
	}
	if report == nil {
		return &StepError{"start init", errors.New("it ended without a report" + proc.fate())}
	}
	t.add(report.Steps)
	proc.Warnings = report.Warnings
	if report.Failure != nil {
		return fromFailure(report.Failure)
	}
	if n := len(report.Steps); n > 0 {
		start = report.Steps[n-1].End
	}
	last, _, err := receive(sock)
	t.mark("exec", start)
	if err == nil && last != nil && last.Failure != nil {
		return fromFailure(last.Failure)
	}
	return err
}

// waitForExec returns when init has closed its end of the socket, by execve or by
// its own end. What it reports before that need not wake us: on a busy machine
// that would cost it its processor.
func waitForExec(sock int) {
	fds := []unix.PollFd{{Fd: int32(sock), Events: unix.POLLRDHUP}}
	for {
		if _, err := unix.Poll(fds, -1); err != unix.EINTR {
			return // whatever it was: reading tells
		}
	}
}

func receive(sock int) (*initproc.Report, []int, error) {
	message, fds, err := initproc.Receive(sock)
	if err == unix.ECONNRESET { // init died with our message unread
		return nil, fds, nil
	}
	if err != nil {
		return nil, fds, &StepError{"receive report", err}
	}
	if message == nil {
		return nil, fds, nil
	}
	report, err := initproc.DecodeReport(message)
	if err != nil {
		return nil, fds, &StepError{"receive report", err}
	}
	return report, fds, nil
}

// spawn clones init. It happens on a thread that enters the container's v1
// cgroups and, if need be, namespaces, and is thrown away afterwards: the
// goroutine ends without unlocking it. Whoever waits gets the answer before
// that.
func (p *plan) spawn(t *tracer, sock int) (*Process, error) {
	type result struct {
		proc *Process
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread must not move (cgroup.Group.Enter) nor
			// end. It is held here, so the next goroutine has another.
			proc, err := p.spawn(t, sock)
			runtime.UnlockOSThread()
			done <- result{proc, err}
			return
		}
		proc, err := p.spawnHere(t, sock)
		done <- result{proc, err}
		if err == nil && p.group == nil && len(p.enter) == 0 && p.userns == nil {
			runtime.UnlockOSThread() // nothing was changed
		}
	}()
	r := <-done
	return r.proc, r.err
}

func (p *plan) spawnHere(t *tracer, sock int) (*Process, error) {
	if err := p.placeThread(t); err != nil {
		return nil, err
	}
	start := clock.Now()
	slack := relaxTimers()
	if p.setup.Pinned {
		pinThread()
	}
	proc, err := p.clone(sock)
	if p.setup.Pinned {
		unpinThread()
	}
	restoreTimers(slack)
	t.mark("clone", start)
	if err != nil || p.userns == nil {
		return proc, err
	}
	start = clock.Now()
	if err := p.prepareUserNS(proc.Pid); err != nil {
		proc.discard()
		return nil, err
	}
	t.mark("map owners", start)
	return proc, nil
}

// initSlack is how late the kernel may wake init's threads, in nanoseconds
// (PR_SET_TIMERSLACK, prctl(2); inherited over clone and execve). One of them
// is the Go runtime's, which otherwise wakes every 70 µs while init works. The
// command gets the kernel's default back.
const initSlack = 1e6

// relaxTimers sets the calling thread's slack for a clone, and gives the old.
func relaxTimers() (old uintptr) {
	old, _, errno := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_GET_TIMERSLACK, 0, 0)
	if errno != 0 {
		return 0 // before Linux 2.6.28
	}
	unix.Prctl(unix.PR_SET_TIMERSLACK, initSlack, 0, 0, 0)
	return old
}

func restoreTimers(old uintptr) {
	if old != 0 {
		unix.Prctl(unix.PR_SET_TIMERSLACK, old, 0, 0, 0)
	}
}

func (p *plan) placeThread(t *tracer) error {
	start := clock.Now()
	if p.group != nil {
		if err := p.group.Enter(); err != nil {
			return &StepError{"enter cgroup", err}
		}
		fd, err := p.group.FD()
		if err != nil {
			return &StepError{"enter cgroup", err}
		}
		if fd >= 0 {
			p.attr.UseCgroupFD, p.attr.CgroupFD = true, fd
		}
		t.mark("enter cgroups", start)
	}
	for _, j := range p.enter {
		if err := ns.Enter(j.FD, j.Kind); err != nil {
			return &StepError{"join " + string(j.Kind) + " namespace", err}
		}
	}
	return nil
}

// binaryFD is the descriptor under which a new process finds the init binary.
const binaryFD = initproc.Socket + 1

// clone makes the process and executes init in it, with sock to talk over. What
// else it needs comes later, with the setup.
func (p *plan) clone(sock int) (*Process, error) {
	proc := &Process{PidFD: -1}
	attr := p.attr
	attr.Cloneflags, attr.Setsid, attr.PidFD = p.flags, true, &proc.PidFD
	start := func() (pid int, err error) {
		if p.joinUser >= 0 {
			pid, proc.PidFD, err = p.cloneIntoUserNS(sock, &attr)
			return pid, err
		}
		return syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(binaryFD), initArgs, &syscall.ProcAttr{
			Env: initEnv, Files: p.initFiles(sock), Sys: &attr,
		})
	}
	pid, err := start()
	late := false
	if attr.UseCgroupFD && (errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.E2BIG)) {
		// No CLONE_INTO_CGROUP before Linux 5.7: moved afterwards, slowly.
		late, attr.UseCgroupFD = true, false
		pid, err = start()
	}
	if err != nil {
		return nil, &StepError{"clone", err}
	}
	proc.Pid = pid
	if late {
		if err := p.group.AddProcess(pid); err != nil {
			proc.discard()
			return nil, &StepError{"enter cgroup", err}
		}
	}
	return proc, nil
}

// initFiles are the descriptors of a new init; the command's own come later.
func (p *plan) initFiles(sock int) []uintptr {
	null := p.launcher.null.Fd()
	return []uintptr{null, null, null, uintptr(sock), p.launcher.binary.Fd()}
}

func (p *plan) cloneIntoUserNS(sock int, attr *syscall.SysProcAttr) (pid, pidfd int, err error) {
	child := rawfork.Child{UserNS: p.joinUser, Exec: binaryFD, Args: initArgs, Env: initEnv, Cgroup: -1}
	for _, fd := range p.initFiles(sock) {
		child.Files = append(child.Files, int(fd))
	}
	if attr.UseCgroupFD {
		child.Cgroup = attr.CgroupFD
	}
	return rawfork.Start(&child)
}

// take takes over the descriptors that came with a report.
func (p *Process) take(report *initproc.Report, fds []int) {
	next := func(sent bool, name string) *os.File {
		if !sent || len(fds) == 0 {
			return nil
		}
		f := os.NewFile(uintptr(fds[0]), name)
		fds = fds[1:]
		return f
	}
	if report != nil {
		p.Console = next(report.Console, "console")
		p.Mounts = next(report.Mounts, "mnt")
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// discard ends a process that is not wanted.
func (p *Process) discard() {
	p.Signal(unix.SIGKILL)
	p.Wait()
	p.Close()
	for _, f := range []*os.File{p.Console, p.Mounts} {
		if f != nil {
			f.Close()
		}
	}
}

// fate tells how a process ended that should not have, for an error message.
// It peeks: the process is still to be reaped.
func (p *Process) fate() string {
	var info unix.Siginfo
	if unix.Waitid(unix.P_PID, p.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil) != nil {
		return ""
	}
	status := *(*int32)(siginfoStatus(&info))
	if info.Code == cldExited {
		return fmt.Sprintf(": exit status %d", status)
	}
	return fmt.Sprintf(": %v", unix.Signal(status))
}

// tracer collects steps.
type tracer struct {
	begin int64
	steps []Step
}

func (t *tracer) mark(name string, start int64) {
	t.steps = append(t.steps, Step{name, time.Duration(start - t.begin), time.Duration(clock.Now() - start)})
}

// add takes over steps of init. What it did before this launch began, while it was
// kept waiting, does not count.
func (t *tracer) add(steps []initproc.Step) {
	for _, s := range steps {
		if s.End < t.begin {
			continue
		}
		start := max(s.Start, t.begin)
		t.steps = append(t.steps, Step{s.Name, time.Duration(start - t.begin), time.Duration(s.End - start)})
	}
}
