package initproc

import (
	"errors"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
	"berth/libcontainer/internal/spawn"
	"berth/libcontainer/safepath"
)

// A further process of a container needs no init to build anything. A thread of the
// launcher enters the container and does all that can fail there, by the steps that
// init takes. What is left, and is irrevocable, is a list of system calls for a child
// of that thread: a Program.

// Program is a command made ready, and its child. The list is what commit does
// (become.go), and what the clone and the setup of an init do before.
type Program struct {
	spawn.Child
	Warnings []string
	Steps    []Step
	Master   int // of the terminal, -1 without; the caller closes it

	runner   *runner
	slave    int         // of the terminal, -1 without
	commands int         // where in the list execve begins
	limits   map[int]int // index of the call that sets it, index of the limit
	oom      int         // index of the call that writes oom_score_adj, -1 without
}

// OpenProc opens the host's procfs, which is not to be found in a container.
func OpenProc() (fd int, err error) { return safepath.OpenProc() }

// NewProgram makes s.Command ready on a thread that has entered the container, and is
// thrown away afterwards: its working directory is the command's then. std are the
// command's descriptors, proc comes from OpenProc, and pidfd is the process of the
// container whose cgroup namespace is to be entered. s asks for no security label.
func NewProgram(s *Setup, std [3]int, proc, pidfd int) (*Program, *Failure) {
	r := &runner{setup: s, apart: true, std: std, rootFD: -1, devpts: -1, null: -1, master: -1, proc: procfs{proc}}
	p := &Program{runner: r, Master: -1, slave: -1, oom: -1, limits: make(map[int]int)}
	p.Prepare()
	if err := p.ready(pidfd); err != nil {
		p.Close()
		if r.master >= 0 {
			unix.Close(r.master)
		}
		return nil, failure(err)
	}
	p.Warnings, p.Steps, p.Master = r.report.Warnings, r.report.Steps, r.master
	return p, nil
}

// Close gives up what the child has copies of.
func (p *Program) Close() {
	for _, fd := range []int{p.runner.rootFD, p.slave} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	p.runner.rootFD, p.slave = -1, -1
}

func (p *Program) ready(pidfd int) error {
	r, c := p.runner, &p.runner.setup.Command
	if err := r.openRoot(); err != nil {
		return err
	}
	err := r.prepare(c)
	if r.master >= 0 {
		p.slave = r.std[0]
	}
	if err != nil {
		return err
	}
	p.isolate(pidfd)
	p.setLimits(c)
	p.reset(c)
	if err := p.confine(c); err != nil {
		return err
	}
	return p.execute(c)
}

// closeStep is the step that kernels before 5.9 cannot do.
const closeStep = "close descriptors"

// isolate makes the child the leader of a session with three descriptors.
func (p *Program) isolate(pidfd int) {
	// A process could not have been born into a group from within the namespace
	// (nsdelegate, ENOENT).
	p.Add("join cgroup namespace", nil, unix.SYS_SETNS, uintptr(pidfd), unix.CLONE_NEWCGROUP)
	p.Add("make session", nil, unix.SYS_SETSID)
	for fd, from := range p.runner.std {
		p.Add("set up descriptors", nil, unix.SYS_DUP3, uintptr(from), uintptr(fd), 0)
	}
	if adj := p.runner.setup.Command.OOMScoreAdj; adj != nil {
		p.adjustOOM(*adj)
	}
	p.Add(closeStep, nil, unix.SYS_CLOSE_RANGE, 3, 1<<32-1, 0)
	if p.runner.master >= 0 {
		p.Add("set up terminal", nil, unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
}

// adjustOOM has the child write its own file of the host's procfs, which no one else
// can before the command runs. The numbers of the descriptors are known because all
// others are closed.
func (p *Program) adjustOOM(adj int) {
	const proc, file = 3, 4
	name, _ := unix.BytePtrFromString("self/oom_score_adj")
	value := []byte(strconv.Itoa(adj))
	p.Hold(name)
	p.Hold(value)
	if p.runner.proc.fd != proc {
		p.Add("set limits", nil, unix.SYS_DUP3, uintptr(p.runner.proc.fd), proc, 0)
	}
	p.Add(closeStep, nil, unix.SYS_CLOSE_RANGE, file, 1<<32-1, 0)
	p.Add("set limits", nil, unix.SYS_OPENAT, proc, uintptr(unsafe.Pointer(name)), unix.O_WRONLY|unix.O_CLOEXEC)
	p.oom = p.Add("set limits", []unix.Errno{unix.EACCES, unix.EPERM}, unix.SYS_WRITE, file, uintptr(unsafe.Pointer(&value[0])), uintptr(len(value)))
}

// setLimits sets each limit as far as it may be raised for sure, and then, if that is
// less than what is wanted, as wanted.
func (p *Program) setLimits(c *Command) {
	for i, want := range c.Rlimits {
		full := &unix.Rlimit{Cur: want.Soft, Max: want.Hard}
		var now unix.Rlimit
		if unix.Prlimit(0, want.Resource, nil, &now) == nil && now.Max < want.Hard {
			sure := &unix.Rlimit{Cur: min(want.Soft, now.Max), Max: now.Max}
			p.Hold(sure)
			p.Add("set limits", nil, unix.SYS_PRLIMIT64, 0, uintptr(want.Resource), uintptr(unsafe.Pointer(sure)), 0)
			p.limits[p.Len()] = i
		}
		p.Hold(full)
		p.Add("set limits", []unix.Errno{unix.EPERM}, unix.SYS_PRLIMIT64, 0, uintptr(want.Resource), uintptr(unsafe.Pointer(full)), 0)
	}
}

// reset undoes what the launcher hands on.
func (p *Program) reset(c *Command) {
	p.Add("set umask", nil, unix.SYS_UMASK, uintptr(umask(c)))
	p.Unblock()
	p.Add("make session keyring", []unix.Errno{unix.ENOSYS, unix.EDQUOT, unix.EPERM},
		unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	p.Add("reset timer slack", []unix.Errno{unix.EINVAL}, unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, commandSlack)
}

// confine is confine of init: without no_new_privs the filter comes first.
func (p *Program) confine(c *Command) error {
	filter, err := parseFilter(c.Seccomp)
	if err != nil {
		return err
	}
	load := func() {
		if filter != nil {
			p.Hold(filter)
			p.Add("load seccomp filter", nil, unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(filter)))
		}
	}
	if c.NoNewPrivs {
		p.Add("set no_new_privs", nil, unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
	} else {
		load()
	}
	p.become(c)
	if c.NoNewPrivs {
		load()
	}
	return nil
}

// become is caps.Become, its check of what the kernel says afterwards included.
func (p *Program) become(c *Command) {
	id := &p.runner.identity
	sets := caps.ForContainer(c.Caps&p.runner.bounding, id.UID == 0)
	name := "become user " + strconv.Itoa(id.UID)
	for _, call := range caps.Calls(p.runner.bounding, id.UID, id.GID, id.Groups, sets) {
		var tolerate []unix.Errno
		if call.Tolerate != 0 {
			tolerate = []unix.Errno{call.Tolerate}
		}
		p.Hold(call.Held)
		p.Add(name+": "+call.Step, tolerate, call.Trap, call.Args[:]...)
	}
	header, got := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, new([3]uint64)
	p.Hold(header)
	p.Hold(got)
	p.Add(name+": capget", nil, unix.SYS_CAPGET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(got)))
	for i, want := range sets.Words() {
		p.Expect(name+": check capabilities", &got[i], want)
	}
}

// execute appends execve for each place the command may be at.
func (p *Program) execute(c *Command) error {
	argv, err := syscall.SlicePtrFromStrings(c.Args)
	if err != nil {
		return &stepError{step: "read arguments", err: err}
	}
	envp, err := syscall.SlicePtrFromStrings(p.runner.environment(c))
	if err != nil {
		return &stepError{step: "read environment", err: err}
	}
	p.Hold(argv)
	p.Hold(envp)
	p.commands = p.Len()
	for _, path := range candidates(c.Args[0], c.Env) {
		name, err := unix.BytePtrFromString(path)
		if err != nil {
			return &stepError{step: "start " + strconv.Quote(c.Args[0]), kind: KindNotFound, err: err}
		}
		p.Hold(name)
		p.Add("start", searchOn, unix.SYS_EXECVE, uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])))
	}
	return nil
}

// ErrKernel is the text of a failure that another way of starting does not have.
var errKernel = errors.New("needs Linux 5.9")

// Outcome tells how Start's child fared: nil if the command runs, or did. can is
// false if the kernel lacks a call; nothing has happened then.
func (p *Program) Outcome() (fail *Failure, can bool) {
	step, err := p.Failure(p.commands)
	switch {
	case step == closeStep && err != spawn.ErrEnded:
		return failure(&stepError{step: step, err: errKernel}), false
	case step == "start":
		name := p.runner.setup.Command.Args[0]
		err = p.closest(err)
		return failure(&stepError{step: "start " + strconv.Quote(name), kind: kindOf(err), err: describe(name, err)}), true
	case err != nil:
		return failure(&stepError{step: step, err: err}), true
	}
	p.warn()
	return nil, true
}

// closest is search's choice among the errors of the candidates.
func (p *Program) closest(last error) error {
	if errno, ok := last.(unix.Errno); ok && !p.Searched(errno) {
		return last
	}
	for i := p.commands; i < p.Len(); i++ {
		if p.Errno(i) == unix.EACCES {
			return unix.EACCES
		}
	}
	return unix.ENOENT
}

// Searched reports whether the search goes on after an error.
func (p *Program) Searched(errno unix.Errno) bool {
	for _, on := range searchOn {
		if errno == on {
			return true
		}
	}
	return false
}

// searchOn are the errors after which search looks further.
var searchOn = []unix.Errno{unix.ENOENT, unix.ENOTDIR, unix.EACCES}

// warn tells of limits that could be set in part only.
func (p *Program) warn() {
	r := p.runner
	for index, i := range p.limits {
		if p.Errno(index) == unix.EPERM {
			want := r.setup.Command.Rlimits[i]
			var now unix.Rlimit
			unix.Prlimit(0, want.Resource, nil, &now)
			r.warnLimit(want, min(want.Hard, now.Max))
		}
	}
	if p.oom >= 0 && p.Errno(p.oom) != 0 {
		r.warnOOM(*r.setup.Command.OOMScoreAdj)
	}
	p.Warnings = r.report.Warnings
}
