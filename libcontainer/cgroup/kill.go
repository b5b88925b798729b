package cgroup

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// killTimeout is how long Kill waits for the processes to be gone.
const killTimeout = 2 * time.Second

// Kill sends SIGKILL to all processes of the group and of groups below it, and returns when none is left. It
// outruns a fork bomb: cgroup.kill (v2, Linux 5.14) does it in one go, and otherwise the group is frozen while
// its processes are listed and signalled. It thaws a frozen group, for a frozen process does not die. ErrBusy:
// some were left after two seconds.
//
// A process of which only a thread is in the group is spared, the caller's own above all.
func (g *Group) Kill() error {
	if g.name == self {
		return errSelf
	}
	if t := g.parent.unified(); t != nil {
		// On a hybrid host this may miss some, or all; the loop sees to them.
		if err := t.write(g.name+"/cgroup.kill", "1"); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	deadline := time.Now().Add(killTimeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		pids, err := g.Procs()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return &wrapped{kind: ErrBusy, what: fmt.Sprintf("kill cgroup: processes %v do not die; they may be in a system call that cannot be interrupted", pids)}
		}
		if err := g.signalAll(); err != nil {
			return err
		}
		time.Sleep(pause)
	}
}

// signalAll kills what is there at one moment. Frozen, no process can fork or exit, and so no pid can change
// its meaning between being read and being signalled.
func (g *Group) signalAll() error {
	if g.freeze(200*time.Millisecond) != nil {
		g.forbidForks()
	}
	pids, err := g.Procs()
	for _, pid := range pids {
		if pid == os.Getpid() {
			continue
		}
		if e := unix.Kill(pid, unix.SIGKILL); e != nil && e != unix.ESRCH {
			err = errors.Join(err, fmt.Errorf("kill %d: %w", pid, e))
		}
	}
	if e := g.Thaw(); e != nil && !errors.Is(e, ErrNotAvailable) && !errors.Is(e, unix.ENOENT) && !errors.Is(e, unix.ENODEV) {
		err = errors.Join(err, e)
	}
	return err
}

// forbidForks is for hosts that cannot freeze: a group that is to die needs no new processes.
func (g *Group) forbidForks() {
	if t, err := g.parent.find("pids", ""); err == nil {
		_ = t.write(g.name+"/pids.max", "0")
	}
}
