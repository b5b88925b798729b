package cgroup

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// OOM tells of memory running out in a group and those below it.
type OOM struct {
	Kills    uint64 // processes killed by the OOM killer; v1: since Linux 4.13, 0 before
	Limit    uint64 // times an allocation hit the limit; v1 of recent kernels: only where swap has a higher one
	UnderOOM bool   // processes wait for memory right now; v1 with OOMKillDisable
}

// OOM reads the counters. Without a memory controller they are zero.
func (g *Group) OOM() (OOM, error) {
	t, err := g.parent.find("memory", "")
	if err != nil {
		return OOM{}, nil
	}
	r := reader{group: g}
	if t.V2 {
		f := fields(r.text(t, "memory.events"))
		return OOM{Kills: f["oom_kill"], Limit: f["max"]}, r.err
	}
	f := fields(r.text(t, "memory.oom_control"))
	hits := r.number(t, "memory.failcnt") + r.number(t, "memory.memsw.failcnt")
	return OOM{Kills: f["oom_kill"], Limit: hits, UnderOOM: f["under_oom"] != 0}, r.err
}

// OOMKills is OOM().Kills, read from one file.
func (g *Group) OOMKills() (uint64, error) {
	t, err := g.parent.find("memory", "")
	if err != nil {
		return 0, nil
	}
	file := "memory.oom_control"
	if t.V2 {
		file = "memory.events"
	}
	r := reader{group: g}
	return fields(r.text(t, file))["oom_kill"], r.err
}

// NotifyOOM returns a file that can be read whenever OOM may have changed: read it with a buffer of 4096 bytes,
// throw away what comes, then ask OOM. It also becomes readable when the group is deleted. The caller closes it.
func (g *Group) NotifyOOM() (*os.File, error) {
	t, err := g.parent.find("memory", "oom notification")
	if err != nil {
		return nil, err
	}
	if t.V2 {
		return t.watch(g.name + "/memory.events")
	}
	return t.eventfd(g.name, "memory.oom_control")
}

// watch uses inotify(7): cgroup v2 reports a changed counter as a modified file.
func (t *tree) watch(file string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	target, err := t.open(file, unix.O_PATH)
	if err == nil {
		defer unix.Close(target)
		_, err = unix.InotifyAddWatch(fd, "/proc/self/fd/"+strconv.Itoa(target), unix.IN_MODIFY|unix.IN_DELETE_SELF)
	}
	if err != nil {
		unix.Close(fd)
		return nil, t.fail("watch", file, err)
	}
	return os.NewFile(uintptr(fd), t.path+"/"+file), nil
}

// eventfd registers with cgroup.event_control, Documentation/admin-guide/cgroup-v1/memory.rst §9: the line is
// the number of an eventfd, that of the file to watch, and arguments.
func (t *tree) eventfd(name, file string) (*os.File, error) {
	watched, err := t.open(name+"/"+file, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(watched)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd2", err)
	}
	err = t.write(name+"/cgroup.event_control", strconv.Itoa(fd)+" "+strconv.Itoa(watched))
	if err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.ENOENT) {
			return nil, &NotAvailableError{"memory", "oom notification", "this kernel has no cgroup.event_control; poll OOM instead"}
		}
		return nil, err
	}
	return os.NewFile(uintptr(fd), t.path+"/"+name+"/"+file), nil
}
