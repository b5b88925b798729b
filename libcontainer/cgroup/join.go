package cgroup

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OnThread runs f locked to a thread that is not the process's first: what Enter asks for. It waits for f. The
// thread ends with f if f fails, so that one that could not leave a group is not used again.
func OnThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			result <- OnThread(f) // this thread is held meanwhile, so the next goroutine has another
			runtime.UnlockOSThread()
			return
		}
		err := f()
		if err == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// Enter moves the calling thread, and only it, into the group's v1 trees; a child it forks is born there. The
// caller has locked the goroutine to its thread, is not going to Freeze the group meanwhile, and calls LeaveTo
// when the child is there, or when Enter has failed, for then the thread may be in some trees and not in others.
// On pure v2 it does nothing: see FD.
//
// Until it leaves, the thread is under the group's limits like any process in it: its memory, its forks, and the
// devices it may open.
//
// The thread must not be the first of its process (see OnThread): where that one is, a process counts as being
// as a whole, and another process that kills or lists the group would take it for one of its own.
//
// A thread of its own is what makes this fast: for a thread that moves itself the kernel need not stop the
// process's other threads from forking (cgroup_procs_write_start, kernel/cgroup/cgroup.c), and so has no RCU
// grace period to wait for.
func (g *Group) Enter() error {
	if unix.Gettid() == unix.Getpid() {
		return errors.New("enter cgroup: called on the first thread of the process")
	}
	if g.tasks != nil {
		return g.enterKept()
	}
	for t := range g.parent.v1() {
		if err := t.write(g.name+"/tasks", "0"); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}

// Keep has Enter keep the files open that it writes to, until Close: for a group that threads enter again and again. A
// deleted cgroup is not gone for the kernel before that. Whoever calls Keep has the Group to itself meanwhile.
func (g *Group) Keep() error {
	tasks := make([]int, 0, len(g.parent.trees))
	for t := range g.parent.v1() {
		fd, err := t.open(g.name+"/tasks", unix.O_WRONLY)
		if err != nil {
			for _, fd := range tasks {
				unix.Close(fd)
			}
			return err
		}
		tasks = append(tasks, fd)
	}
	g.tasks = tasks
	return nil
}

func (g *Group) enterKept() error {
	i := 0
	for t := range g.parent.v1() {
		fd := g.tasks[i]
		if err := retry(func() error { _, err := unix.Write(fd, []byte("0")); return err }); err != nil {
			return fmt.Errorf("enter cgroup: %w", t.fail("write 0 to", g.name+"/tasks", err))
		}
		i++
	}
	return nil
}

// v1 are the trees that threads enter.
func (p *Parent) v1() iter.Seq[*tree] {
	return func(yield func(*tree) bool) {
		for i := range p.trees {
			if t := &p.trees[i]; !t.V2 && !yield(t) {
				return
			}
		}
	}
}

// LeaveTo takes the calling thread back to where it was before Enter; previous comes from Self. It tries all
// trees. After an error the thread must not run other goroutines: end the goroutine without unlocking it, and
// the thread goes with it.
func (g *Group) LeaveTo(previous *Group) error {
	var errs []error
	for i := range previous.parent.trees {
		t := &previous.parent.trees[i]
		if t.V2 || !g.parent.mounts(t.key()) {
			continue
		}
		errs = append(errs, t.write(previous.name+"/tasks", "0"))
	}
	return errors.Join(errs...)
}

func (p *Parent) mounts(key string) bool {
	return slices.ContainsFunc(p.trees, func(t tree) bool { return t.key() == key })
}

// AddProcess moves a process with all its threads into the group. Slow on v1, see the package comment.
func (g *Group) AddProcess(pid int) error {
	if pid <= 0 {
		return fmt.Errorf("add process %d to cgroup: no such pid", pid)
	}
	for i := range g.parent.trees {
		t := &g.parent.trees[i]
		if err := t.addProcess(g.name, pid); err != nil {
			return fmt.Errorf("add process %d to cgroup: %w", pid, err)
		}
	}
	return nil
}

// addProcess writes the pid. A v2 group whose processes have made groups of their own, with controllers, takes
// no processes itself any more: then it is to be with the others, in the first group below that has any.
func (t *tree) addProcess(name string, pid int) error {
	err := t.write(name+"/cgroup.procs", strconv.Itoa(pid))
	if !t.V2 || !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	leaf := t.populated(name)
	if leaf == "" || leaf == name {
		return err
	}
	return t.write(leaf+"/cgroup.procs", strconv.Itoa(pid))
}

// populated finds a group with processes, depth first.
func (t *tree) populated(name string) string {
	if pids, err := t.pids(name + "/cgroup.procs"); err == nil && len(pids) > 0 {
		return name
	}
	children, _ := t.children(name)
	for _, child := range children {
		if leaf := t.populated(name + "/" + child); leaf != "" {
			return leaf
		}
	}
	return ""
}

// Procs returns the processes in the group and in groups below it. A process of which only a thread is in the
// group, as between Enter and LeaveTo, is not among them.
func (g *Group) Procs() ([]int, error) {
	t := g.parent.census()
	pids, err := t.procs(g.name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil, nil // deleted meanwhile
	}
	slices.Sort(pids)
	return slices.Compact(pids), err
}

// census is the tree to count processes in: that of the freezer, for what it freezes is what it must list; or
// any v1 tree, for on a hybrid host not every process need be in the v2 group.
func (p *Parent) census() *tree {
	best := &p.trees[0]
	for i := range p.trees {
		t := &p.trees[i]
		if t.has("freezer") {
			return t
		}
		if best.V2 && !t.V2 {
			best = t
		}
	}
	return best
}

func (t *tree) procs(name string) ([]int, error) {
	pids, err := t.pids(name + "/cgroup.procs")
	if err != nil {
		return nil, err
	}
	if !t.V2 && len(pids) > 0 {
		tasks, err := t.pids(name + "/tasks")
		if err != nil {
			return nil, err
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool {
			return !slices.Contains(tasks, pid) && !leaderExited(pid)
		})
	}
	children, err := t.children(name)
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		more, err := t.procs(name + "/" + child)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
		pids = append(pids, more...)
	}
	return pids, nil
}

// leaderExited tells a process whose first thread has ended, and so is in no group, while others run, from
// one whose first thread is in another group.
func leaderExited(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	return strings.HasPrefix(rest, "Z")
}

// pids reads a file of numbers, one a line. Zero stands for a process of another pid namespace: left out.
func (t *tree) pids(name string) ([]int, error) {
	b, err := t.read(name)
	if err != nil {
		return nil, err
	}
	var pids []int
	for line := range strings.Lines(string(b)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
