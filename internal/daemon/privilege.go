package daemon

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"berth/internal/account"
	"berth/internal/fault"
	"berth/libcontainer/caps"
)

// Numbers of include/uapi/linux/prctl.h.
const (
	prSetDumpable   = 4
	prSetNoNewPrivs = 38
)

// dropPrivileges makes every thread of the process what Spec says. A process
// not started as root, by systemd's User=, is there already.
func dropPrivileges(spec Spec, id account.ID) error {
	if os.Geteuid() != 0 {
		return nil
	}
	have, err := caps.Current()
	if err != nil {
		return err
	}
	if spec.User == "" {
		lose, err := caps.ParseSet(spec.Lose)
		if err != nil || have.Permitted&lose == 0 && have.Bounding&lose == 0 {
			return err
		}
		groups, err := os.Getgroups()
		if err != nil {
			return err
		}
		return caps.DropTo(id.UID, id.GID, groups, have.Permitted&^lose)
	}

	keep, err := caps.ParseSet(spec.Keep)
	if err != nil {
		return err
	}
	if missing := keep &^ have.Permitted; missing != 0 {
		return fmt.Errorf("started without %s", missing)
	}
	if err := caps.DropTo(id.UID, id.GID, id.Groups, keep); err != nil {
		if errors.Is(err, syscall.ENOTSUP) {
			// syscall.AllThreadsSyscall: the C library may have threads Go does not know.
			return fault.FailedPrecondition.Errorf("BUILT_WITH_CGO", "become %s: this binary was built with cgo", spec.User).
				Hint("build it with CGO_ENABLED=0, as `make build` does")
		}
		return fmt.Errorf("become %s: %w", spec.User, err)
	}
	for _, name := range []string{"HOME", "USER", "LOGNAME"} {
		os.Unsetenv(name)
	}
	// Changing ids gave /proc/self to root (proc(5), "dumpable"), and with it
	// /proc/self/fd, which we open paths through. Who may trace us after this
	// has our uid and at least our capabilities.
	if err := allThreads(prSetDumpable, 1); err != nil {
		return err
	}
	return allThreads(prSetNoNewPrivs, 1) // Linux 3.5
}

// allThreads makes a prctl on every thread. It needs a binary without cgo.
func allThreads(option, arg uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(syscall.SYS_PRCTL, option, arg, 0, 0, 0, 0); errno != 0 {
		return os.NewSyscallError("prctl", errno)
	}
	return nil
}

const (
	wantFiles = 1 << 20
	fewFiles  = 1 << 14
	// tableSize is how many descriptors the kernel's table has room for from
	// the start. Growing it later waits for an RCU grace period, 5-20 ms, in
	// the middle of somebody's request (fs/file.c, expand_fdtable).
	tableSize = 4096
)

// raiseLimits gets as many descriptors as allowed. The soft limit is at the
// hard one already: the Go runtime does that.
func raiseLimits(log hclog.Logger) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return
	}
	if limit.Max < wantFiles {
		raised := syscall.Rlimit{Cur: wantFiles, Max: wantFiles}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) == nil {
			limit = raised
		} else if limit.Max < fewFiles {
			log.Warn("few file descriptors allowed: many containers at once will be refused", "limit", limit.Max, "wanted", wantFiles)
		}
	}
	at := uintptr(min(tableSize, limit.Max) - 1)
	// Of descriptor 0, which any daemon has.
	if fd, _, errno := syscall.RawSyscall(syscall.SYS_FCNTL, 0, syscall.F_DUPFD_CLOEXEC, at); errno == 0 {
		syscall.Close(int(fd))
	}
}
