package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"berth/internal/account"
	"berth/internal/fault"
)

// makeDirectories creates the directories that ARCHITECTURE.md lists, as far as
// this daemon needs them. Started as root it sets owner and mode of those that
// exist too; otherwise (systemd has made them) it takes them as they are.
func makeDirectories(spec Spec, env *Env, id account.ID) error {
	type directory struct {
		path     string
		mode     os.FileMode
		uid, gid int
	}
	engine := 0
	if os.Geteuid() == 0 {
		var err error
		if engine, err = account.Group(account.Engine); err != nil {
			return err
		}
	}
	stateMode := spec.StateMode
	if stateMode == 0 {
		stateMode = 0o700
	}
	list := []directory{
		{env.Config.Root, 0o711, 0, 0},
		{env.Config.Run, 0o711, 0, 0},
		{filepath.Join(env.Config.Run, "engine"), 0o750, 0, engine},
		// Sticky: a daemon that systemd starts as its own user creates its
		// lock here, and must not be able to remove another's.
		{filepath.Join(env.Config.Run, "lock"), 0o770 | fs.ModeSticky, 0, engine},
		{env.StateDir, stateMode, id.UID, id.GID},
	}
	if spec.RunDir {
		list = append(list, directory{env.RunDir, 0o700, id.UID, id.GID})
	}
	for _, d := range list {
		if err := os.MkdirAll(d.path, 0o711); err != nil {
			return err
		}
		info, err := os.Lstat(d.path)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fault.FailedPrecondition.Errorf("NOT_A_DIRECTORY", "%s is not a directory", d.path)
		}
		if os.Geteuid() != 0 {
			continue
		}
		if err := os.Chown(d.path, d.uid, d.gid); err != nil {
			return err
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return err
		}
	}
	return nil
}

// reachable says clearly what would otherwise be a puzzling EACCES later.
func reachable(spec Spec, dir string) error {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrPermission) {
		return fault.FailedPrecondition.Errorf("STATE_UNREACHABLE", "user %s cannot enter %s", spec.User, dir).
			Hint("give the directories above it mode 0711 (chmod a+x)")
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// takeLock holds $RUN/lock/NAME.lock until the process ends. The pid inside is
// for people; what counts is the flock, which dies with its holder.
func takeLock(run, name string) (*os.File, error) {
	path := filepath.Join(run, "lock", name+".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if err != syscall.EWOULDBLOCK {
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		buf := make([]byte, 32)
		n, _ := f.ReadAt(buf, 0)
		holder := strings.TrimSpace(string(buf[:n]))
		return nil, fault.FailedPrecondition.Errorf("ALREADY_RUNNING", "%s is already running with %s as process %s", name, run, holder).
			With("daemon", name).With("pid", holder).
			Hint("stop it first, or give this one its own --root and --run")
	}
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return f, nil
}
