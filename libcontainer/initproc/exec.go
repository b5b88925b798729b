package initproc

import (
	"errors"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// defaultPath is where commands are looked for if the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// execute calls execve for each place the command may be at, as execvp(3)
// does. There is no look before the leap: what execve finds is what counts.
func (r *runner) execute(c *Command, argv, envp []*byte) error {
	return startError(c.Args[0], search(candidates(c.Args[0], c.Env), argv, envp))
}

// startError is the error of a command that could not be executed.
func startError(name string, err error) error {
	return &stepError{step: "start " + strconv.Quote(name), kind: kindOf(err), err: describe(name, err)}
}

// search returns the error of the candidate that came closest.
func search(paths []string, argv, envp []*byte) error {
	closest := error(unix.ENOENT)
	for _, path := range paths {
		if len(paths) > 1 && missing(path) {
			continue
		}
		switch err := execve(path, argv, envp); err {
		case unix.ENOENT, unix.ENOTDIR:
		case unix.EACCES: // perhaps there is a better one further on
			closest = err
		default:
			return err
		}
	}
	return closest
}

// missing finds out for a third of what an execve of nothing costs. When in doubt execve tells.
func missing(path string) bool {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return err == unix.ENOENT || err == unix.ENOTDIR
}

var errNotInPath = errors.New("executable file not found in PATH")

// describe prefers words to a bare ENOENT, of which one cannot tell whether it
// means the command or the directory.
func describe(name string, err error) error {
	if err == unix.ENOENT && !strings.Contains(name, "/") {
		return errNotInPath
	}
	return err
}

func kindOf(err error) Kind {
	switch err {
	case unix.ENOENT, unix.ENOTDIR, unix.ENAMETOOLONG:
		return KindNotFound
	}
	return KindNotExecutable
}

// candidates are the paths to try for a command.
func candidates(name string, env []string) []string {
	if strings.Contains(name, "/") || name == "" {
		return []string{name}
	}
	search := defaultPath
	for _, v := range env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			search = path
		}
	}
	var paths []string
	for _, dir := range strings.Split(search, ":") {
		if dir == "" {
			dir = "."
		}
		paths = append(paths, strings.TrimSuffix(dir, "/")+"/"+name)
	}
	return paths
}

func execve(path string, argv, envp []*byte) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])))
	return errno
}

// sigaction is struct sigaction of the kernel; only the handler is looked at,
// which stands first on every architecture.
type sigaction struct {
	handler uintptr
	_       [3]uintptr
}

const (
	sigDefault = 0
	sigIgnore  = 1
	lastSignal = 64
	sigsetSize = 8
)

// heedSignals undoes what execve would pass on: signals that the launcher, or what
// started it, ignored. Handlers need no reset.
func heedSignals() error {
	for signal := uintptr(1); signal <= lastSignal; signal++ {
		var now sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, signal, 0, uintptr(unsafe.Pointer(&now)), sigsetSize, 0, 0)
		if errno != 0 || now.handler != sigIgnore {
			continue
		}
		reset := sigaction{handler: sigDefault}
		_, _, errno = unix.RawSyscall6(unix.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(&reset)), 0, sigsetSize, 0, 0)
		if errno != 0 {
			return errno
		}
	}
	return nil
}

// unblockSignals does the same for those that were blocked; last, since Go's runtime
// sends some to itself.
func unblockSignals() error {
	var none unix.Sigset_t
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, sigsetSize, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// newKeyring leaves the launcher's session keyring. Kernels without keys, and
// users whose quota of keys is spent, go on with none.
func newKeyring() error {
	_, _, errno := unix.RawSyscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
	switch errno {
	case 0, unix.ENOSYS, unix.EDQUOT, unix.EPERM:
		return nil
	}
	return errno
}
