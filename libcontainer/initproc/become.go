package initproc

import (
	"errors"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
	"berth/libcontainer/mount"
	"berth/libcontainer/safepath"
	"berth/libcontainer/user"
)

// identity is who the command runs as.
type identity = user.Identity

// become turns the process, which is inside the container now, into the
// command. It returns only with an error.
func (r *runner) become() error {
	c := &r.setup.Command
	if len(c.Args) == 0 {
		return &stepError{step: "start", kind: KindNotFound, err: errors.New("no command")}
	}
	if err := r.prepare(c); err != nil {
		return err
	}
	var along []int
	if r.master >= 0 {
		r.report.Console, along = true, []int{r.master}
	}
	if r.setup.KeepMounts && !r.setup.Exec {
		fd, err := unix.Openat(r.proc.fd, "self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &stepError{step: "open mount namespace", err: err}
		}
		r.report.Mounts, along = true, append(along, fd)
	}
	if err := Send(Socket, r.report.encode(), along...); err != nil {
		return &stepError{step: "report", err: err}
	}
	return r.commit(c)
}

// prepare does all that needs no irrevocable loss of rights.
func (r *runner) prepare(c *Command) error {
	if r.setup.Exec && c.Terminal != nil {
		if err := r.step("make console", r.console); err != nil {
			return err
		}
	}
	if !r.apart {
		if err := r.step("set limits", func() error { return r.limits(c) }); err != nil {
			return err
		}
	}
	err := r.step("find user "+strconv.Quote(c.User.Spec), func() (err error) {
		r.identity, err = user.Resolve(r.rootFD, c.User.Spec, c.User.Groups)
		if err != nil && !errors.As(err, new(unix.Errno)) {
			return &stepError{step: "find user", kind: KindUser, err: err}
		}
		return err
	})
	if err != nil {
		return err
	}
	r.warnCaps(c.Caps)
	if err := r.step("set up terminal", r.stdio); err != nil {
		return err
	}
	if err := r.labels(c); err != nil {
		return err
	}
	if c.Init && !r.setup.Exec {
		if err := r.step("prepare resident init", r.openResident); err != nil {
			return err
		}
	}
	if r.setup.Root.Attr&mount.ReadOnly != 0 && !r.setup.Exec {
		if err := r.step("make root read-only", func() error { return mount.Change("/", r.setup.Root.Attr) }); err != nil {
			return err
		}
	}
	return r.step("enter working directory", func() error { return r.enterCwd(c.Cwd) })
}

// limits sets resource limits, as close to what is asked as the host permits.
func (r *runner) limits(c *Command) error {
	for _, limit := range c.Rlimits {
		if err := r.limit(limit); err != nil {
			return err
		}
	}
	if c.OOMScoreAdj == nil {
		return nil
	}
	want := strconv.Itoa(*c.OOMScoreAdj)
	err := r.proc.write("self/oom_score_adj", want)
	if err == unix.EACCES || err == unix.EPERM {
		r.warnOOM(*c.OOMScoreAdj)
		return nil
	}
	return err
}

func (r *runner) warnOOM(want int) {
	r.warn("oom_score_adj " + strconv.Itoa(want) + " is lower than this host permits without CAP_SYS_RESOURCE; left as it was")
}

func (r *runner) limit(want Rlimit) error {
	limit := unix.Rlimit{Cur: want.Soft, Max: want.Hard}
	err := unix.Prlimit(0, want.Resource, &limit, nil)
	if err != unix.EPERM {
		return err
	}
	var now unix.Rlimit
	if err := unix.Prlimit(0, want.Resource, nil, &now); err != nil {
		return err
	}
	limit = unix.Rlimit{Cur: min(want.Soft, now.Max), Max: min(want.Hard, now.Max)}
	r.warnLimit(want, limit.Max)
	return unix.Prlimit(0, want.Resource, &limit, nil)
}

func (r *runner) warnLimit(want Rlimit, set uint64) {
	r.warn("resource limit " + strconv.Itoa(want.Resource) + ": " + strconv.FormatUint(want.Hard, 10) +
		" is more than this host permits; set to " + strconv.FormatUint(set, 10))
}

// warnCaps tells of capabilities that were asked for by name and that the launcher
// does not have itself. All of them together means all there are.
func (r *runner) warnCaps(want caps.Set) {
	if !r.confined {
		r.bounding = caps.Bounding()
	}
	if missing := want &^ r.bounding; want != ^caps.Set(0) && missing != 0 {
		r.warn("not available on this host: " + missing.String())
	}
}

// stdio makes the terminal the controlling one of the session (init leads one
// since its clone) and gives the command's user what it will read and write, so
// that /dev/stdout can be opened again by it.
func (r *runner) stdio() error {
	if r.master >= 0 && !r.apart {
		if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
			return err
		}
	}
	for _, fd := range r.std {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		pipe := st.Mode&unix.S_IFMT == unix.S_IFIFO
		if !pipe && r.master < 0 || int(st.Uid) == r.identity.UID {
			continue
		}
		// EINVAL, EPERM: not an owner that this user namespace can change.
		err := unix.Fchown(fd, r.identity.UID, -1)
		if err != nil && err != unix.EINVAL && err != unix.EPERM && err != unix.EROFS {
			return err
		}
	}
	return nil
}

// labels asks the security modules for a change at exec. A label that was
// requested and cannot be had is an error.
func (r *runner) labels(c *Command) error {
	if c.AppArmor != "" {
		err := r.step("apply AppArmor profile "+strconv.Quote(c.AppArmor), func() error {
			// Linux 5.8 gave each module files of its own.
			err := r.proc.write("self/attr/apparmor/exec", "exec "+c.AppArmor)
			if err == unix.ENOENT {
				err = r.proc.write("self/attr/exec", "exec "+c.AppArmor)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if c.SELinux != "" {
		return r.step("apply SELinux label "+strconv.Quote(c.SELinux), func() error {
			return r.proc.write("self/attr/exec", c.SELinux)
		})
	}
	return nil
}

var errOutside = errors.New("the working directory is outside the container")

// enterCwd goes to the working directory and checks where it came out: getcwd
// begins with "(unreachable)" in a directory that is not below the root
// (CVE-2024-21626).
func (r *runner) enterCwd(cwd string) error {
	if cwd == "" {
		cwd = "/"
	}
	dir, err := safepath.Open(r.rootFD, cwd, unix.O_PATH|unix.O_DIRECTORY, 0)
	if r.setup.Exec && errors.Is(err, unix.ENOENT) {
		return &stepError{step: "enter working directory", kind: KindNotExecutable, err: err}
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := unix.Fchdir(dir); err != nil {
		return err
	}
	var buf [unix.PathMax]byte
	n, err := unix.Getcwd(buf[:])
	if err != nil || n == 0 || buf[0] != '/' {
		return errOutside
	}
	return nil
}

// confineEarly does what of commit needs no command but its capabilities: the kernel translates the
// filter, which takes the most time, and has a call for each capability to take out of the bounding
// set. A filter may keep from making a keyring, so that comes first.
func (r *runner) confineEarly() (err error) {
	if err := newKeyring(); err != nil {
		return &stepError{step: "make session keyring", err: err}
	}
	if r.bounding, err = caps.LowerBounding(r.setup.Command.Caps); err != nil {
		return &stepError{step: "lower bounding set", err: err}
	}
	r.confined = true
	return loadFilter(r.setup.Command.Seccomp)
}

// commit gives up the rights and becomes the command.
func (r *runner) commit(c *Command) error {
	unix.Umask(int(umask(c)))
	argv, err := syscall.SlicePtrFromStrings(c.Args)
	if err != nil {
		return &stepError{step: "read arguments", err: err}
	}
	envp, err := syscall.SlicePtrFromStrings(r.environment(c))
	if err != nil {
		return &stepError{step: "read environment", err: err}
	}
	if err := unblockSignals(); err != nil {
		return &stepError{step: "unblock signals", err: err}
	}
	if !r.confined {
		if err := newKeyring(); err != nil {
			return &stepError{step: "make session keyring", err: err}
		}
	}
	unix.Prctl(unix.PR_SET_TIMERSLACK, commandSlack, 0, 0, 0)
	if r.setup.Pinned {
		if err := AllProcessors(); err != nil {
			return &stepError{step: "leave processor", err: err}
		}
	}
	if err := r.confine(c); err != nil {
		return err
	}
	if c.Init && !r.setup.Exec {
		return r.reside(c, argv, envp)
	}
	return r.execute(c, argv, envp)
}

// commandSlack is the kernel's own default (init_task in init/init_task.c), in
// nanoseconds: init itself runs with more (initSlack of the launcher).
const commandSlack = 50_000

func umask(c *Command) uint32 {
	if c.Umask == 0 {
		return 0o022
	}
	return c.Umask
}

// environment is the command's, with the HOME of its user.
func (r *runner) environment(c *Command) []string {
	for _, v := range c.Env {
		if strings.HasPrefix(v, "HOME=") {
			return c.Env
		}
	}
	return append(c.Env[:len(c.Env):len(c.Env)], "HOME="+r.identity.Home)
}

// confine drops capabilities, changes the user and loads the filter. A filter
// may be loaded with CAP_SYS_ADMIN or with no_new_privs; so without the latter
// it comes first, and has to let the rest pass.
func (r *runner) confine(c *Command) error {
	if c.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return &stepError{step: "set no_new_privs", err: err}
		}
	} else if !r.confined {
		if err := loadFilter(c.Seccomp); err != nil {
			return err
		}
	}
	id := &r.identity
	allowed := c.Caps & r.bounding
	if err := caps.Become(r.bounding, id.UID, id.GID, id.Groups, caps.ForContainer(allowed, id.UID == 0)); err != nil {
		return &stepError{step: "become user " + strconv.Itoa(id.UID), err: err}
	}
	if c.NoNewPrivs {
		return loadFilter(c.Seccomp)
	}
	return nil
}
