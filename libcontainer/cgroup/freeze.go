package cgroup

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// freezeTimeout is how long Freeze waits. A process in an uninterruptible system call cannot be frozen until
// the call is over.
const freezeTimeout = 2 * time.Second

// Freeze stops all processes of the group and returns when they stand still. If they do not within two
// seconds the group is thawed again and the error is ErrBusy. Not while a thread of the caller is in the
// group (Enter): it would be frozen as well.
func (g *Group) Freeze() error { return g.freeze(freezeTimeout) }

// Thaw lets the processes go on.
func (g *Group) Thaw() error {
	t, file, err := g.freezer()
	if err != nil {
		return err
	}
	if t.V2 {
		return t.write(file, "0")
	}
	return t.write(file, "THAWED")
}

// Frozen reports whether the group was frozen by Freeze.
func (g *Group) Frozen() (bool, error) {
	t, file, err := g.freezer()
	if err != nil {
		return false, err
	}
	text, err := t.readText(file)
	return text == "1" || text == "FROZEN" || text == "FREEZING", err
}

// freezer finds the file that freezes: that of v1 if there is one, for on a hybrid host the v1 group is surer to
// hold all processes.
func (g *Group) freezer() (t *tree, file string, err error) {
	if g.name == self {
		return nil, "", errSelf
	}
	if t, err := g.parent.find("freezer", "freeze"); err == nil {
		return t, g.name + "/freezer.state", nil
	}
	if t = g.parent.unified(); t == nil {
		_, err := g.parent.find("freezer", "freeze")
		return nil, "", err
	}
	if file = g.name + "/cgroup.freeze"; !t.exists(file) && t.exists(g.name) {
		return nil, "", &NotAvailableError{"freezer", "freeze", "cgroup v2 can freeze since Linux 5.2"}
	}
	return t, file, nil
}

func (g *Group) freeze(timeout time.Duration) error {
	t, file, err := g.freezer()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(timeout)
	if t.V2 {
		err = t.freezeV2(g.name, file, deadline)
	} else {
		err = t.freezeV1(file, deadline)
	}
	if err != nil {
		return errors.Join(err, g.Thaw())
	}
	return nil
}

// freezeV1 writes and looks, again and again: a process that forks while it is being frozen can leave the
// group in FREEZING until the next write, and some old kernels get stuck there unless thawed in between.
func (t *tree) freezeV1(file string, deadline time.Time) error {
	for round := 1; ; round++ {
		if err := t.write(file, "FROZEN"); err != nil {
			return err
		}
		state, err := t.readText(file)
		if err != nil || state == "FROZEN" {
			return err
		}
		if time.Now().After(deadline) {
			return &wrapped{kind: ErrBusy, what: fmt.Sprintf("freeze cgroup: still %s; a process is in a system call that cannot be interrupted", state)}
		}
		if round%50 == 0 {
			_ = t.write(file, "THAWED")
		}
		time.Sleep(min(time.Duration(round)*100*time.Microsecond, 10*time.Millisecond))
	}
}

// freezeV2 waits for "frozen 1" in cgroup.events, which poll(2) reports changes of as POLLPRI.
func (t *tree) freezeV2(name, file string, deadline time.Time) error {
	events, err := t.open(name+"/cgroup.events", unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(events)
	if err := t.write(file, "1"); err != nil {
		return err
	}
	for {
		var buf [256]byte
		n, err := retryInt(func() (int, error) { return unix.Pread(events, buf[:], 0) })
		if err != nil {
			return t.fail("read", name+"/cgroup.events", err)
		}
		if strings.Contains(string(buf[:n]), "frozen 1") {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return &wrapped{kind: ErrBusy, what: "freeze cgroup: a process is in a system call that cannot be interrupted"}
		}
		fds := []unix.PollFd{{Fd: int32(events), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return err
		}
	}
}
