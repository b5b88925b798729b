package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup/devices"
)

// Parent is the directory the groups of one engine live under, open in every tree. It holds no process itself:
// v2 forbids processes beside child groups that have controllers. A Parent may be used by many goroutines.
type Parent struct {
	trees   []tree
	missing map[string]string // controller: why it cannot be used

	mu      sync.Mutex
	names   []string                    // path components, from the root of each tree
	added   []string                    // v2 controllers of `later` that are on
	filters map[string]*devices.Program // v2 device programs, shared by all groups of one policy
}

// tree is a hierarchy below a Parent.
type tree struct {
	dir
	Hierarchy
	missing    map[string]string // the Parent's
	copyCpuset bool              // new groups need cpuset.cpus and .mems filled in by hand
}

// core are the controllers switched on for the children of a v2 parent, where the tree has them.
var core = []string{"cpu", "cpuset", "io", "memory", "pids"}

// later are those switched on when a limit first asks for them: few use them, and one that is in use on v2
// cannot be mounted as a v1 tree any more.
var later = []string{"hugetlb"}

// OpenParent opens the cgroup at path, and makes it first in trees that do not have it. path counts from the
// root of what is mounted: "berth", or "/system.slice/berth-execd.service/containers" for a delegated subtree.
// The root itself will not do.
//
// A tree that cannot be used (mounted read-only, hidden by another mount) is left out, and remembered: asking
// for a limit that would need it later is an ErrNotAvailable. Only when no tree is left that is an error here.
func OpenParent(l Layout, path string) (*Parent, error) {
	names := strings.Split(strings.Trim(path, "/"), "/")
	for _, name := range names {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	p, err := open(l, func(t *tree) error {
		for i, name := range names {
			if err := t.descend(name, i == len(names)-1); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		p.names = names
	}
	return p, err
}

// open opens the root of each hierarchy, and has walk take it from there.
func open(l Layout, walk func(*tree) error) (*Parent, error) {
	p := &Parent{missing: map[string]string{}, filters: map[string]*devices.Program{}}
	var last error
	for _, h := range l.Hierarchies {
		t := tree{Hierarchy: h, missing: p.missing}
		root, err := openDir(h.Mountpoint, h.V2)
		if err == nil {
			t.dir = root
			if err = walk(&t); err != nil {
				t.close()
			}
		}
		if err != nil {
			last = explain(err)
			for _, c := range h.Controllers {
				p.missing[c] = last.Error()
			}
			continue
		}
		p.trees = append(p.trees, t)
	}
	if len(p.trees) == 0 {
		return nil, &NotAvailableError{Controller: "cgroup", Reason: fmt.Sprintf("no tree is usable: %v", last)}
	}
	return p, nil
}

// descend goes one directory down, and leaves it fit for groups below: with controllers (v2), processors and
// memory nodes (v1 cpuset).
func (t *tree) descend(name string, last bool) error {
	if t.V2 {
		t.enable(core)
	}
	if err := t.mkdir(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	next, err := t.sub(name)
	if err != nil {
		return err
	}
	above := t.dir
	defer above.close()
	t.dir = next
	if t.V2 && last {
		t.enable(core)
	}
	if t.V2 || !last && !t.has("cpuset") {
		return nil
	}
	if t.has("cpuset") {
		if err := inheritCpuset(above, next); err != nil {
			next.close()
			t.dir = dir{fd: -1}
			return err
		}
		// Have the kernel do the same for new groups.
		t.copyCpuset = last && next.write("cgroup.clone_children", "1") != nil
	}
	if t.has("memory") && last {
		// Before 5.11 a group could be made not to count its children. It cannot be changed once there are any.
		if v, err := next.readText("memory.use_hierarchy"); err == nil && v == "0" {
			_ = next.write("memory.use_hierarchy", "1")
		}
	}
	return nil
}

func (t *tree) has(controller string) bool { return slices.Contains(t.Controllers, controller) }

// inheritCpuset copies processors and memory nodes into a v1 cpuset group: it is born without any, and
// without any no process may enter.
func inheritCpuset(above, group dir) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := group.readText(file)
		if err != nil {
			return err
		}
		if have != "" {
			continue
		}
		value, err := above.readText(file)
		if err != nil {
			return err
		}
		if err := group.write(file, value); err != nil {
			return err
		}
	}
	return nil
}

// enable switches controllers on for the children of a v2 directory, and makes Controllers what is on then.
// One by one, for the kernel takes all of a write or nothing.
func (t *tree) enable(controllers []string) {
	on, _ := t.readText("cgroup.subtree_control")
	active := strings.Fields(on)
	offered, _ := t.readText("cgroup.controllers")
	occupied := t.occupied()
	for _, c := range strings.Fields(offered) {
		if slices.Contains(active, c) || !slices.Contains(controllers, c) {
			continue
		}
		if occupied {
			t.missing[c] = t.path + " holds processes, so its children can have no controllers; move the processes into a child of their own (systemd: DelegateSubgroup=)"
			continue
		}
		if err := t.write("cgroup.subtree_control", "+"+c); err != nil {
			t.missing[c] = err.Error()
			continue
		}
		active = append(active, c)
	}
	t.Controllers = active
}

// occupied reports whether a v2 directory other than the root holds processes. The kernel refuses some
// controllers then (EBUSY); others, cpu and pids among them, it would take, and make a "threaded" group whose
// children can hold no processes at all.
func (t *tree) occupied() bool {
	if !t.exists("cgroup.type") {
		return false // the root may have both
	}
	procs, err := t.readText("cgroup.procs")
	return err == nil && procs != ""
}

// explain adds what to do to the errors that come from the host's set-up rather than from us.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w; remount it read-write", err)
	case errors.Is(err, unix.ESTALE):
		return fmt.Errorf("%w: another file system is mounted over the cgroup tree", err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w; run as root, or have the subtree delegated", err)
	}
	return err
}

// checkName keeps a name from leaving its directory, and from being taken for a control file.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\n\x00") ||
		strings.HasPrefix(name, "cgroup.") {
		return &FieldError{"cgroup name", fmt.Sprintf("%q", name), "must be a file name, and not begin with cgroup."}
	}
	return nil
}

// find returns the tree of a controller, or says what is wrong with it.
func (p *Parent) find(controller, field string) (*tree, error) {
	names := []string{controller}
	switch controller { // the same thing, by its name in the other version
	case "io":
		names = append(names, "blkio")
	case "blkio":
		names = append(names, "io")
	}
	for i := range p.trees {
		if slices.ContainsFunc(names, p.trees[i].has) {
			return &p.trees[i], nil
		}
	}
	if t := p.unified(); t != nil && slices.Contains(later, controller) && p.add(t, controller) {
		return t, nil
	}
	for _, name := range names {
		if reason, ok := p.missing[name]; ok {
			return nil, &NotAvailableError{name, field, reason}
		}
	}
	return nil, &NotAvailableError{controller, field, "it is not mounted, or not in this kernel; see /proc/cgroups, and cgroup_disable= and cgroup_enable= on the kernel's command line"}
}

// add switches one more v2 controller on, in each directory from the root down.
func (p *Parent) add(t *tree, controller string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Contains(p.added, controller) {
		return true
	}
	path := t.Mountpoint
	for i := range len(p.names) + 1 {
		level, err := openDir(path, true)
		if err != nil {
			return false
		}
		err = level.write("cgroup.subtree_control", "+"+controller)
		level.close()
		if err != nil {
			return false
		}
		if i < len(p.names) {
			path += "/" + p.names[i]
		}
	}
	p.added = append(p.added, controller)
	return true
}

// unified returns the v2 tree, or nil.
func (p *Parent) unified() *tree {
	for i := range p.trees {
		if p.trees[i].V2 {
			return &p.trees[i]
		}
	}
	return nil
}

// Delete removes the Parent's directory from every tree, for an engine that is taken off the host. ErrBusy:
// there are groups left. It closes the Parent.
func (p *Parent) Delete() error {
	var errs []error
	for i := range p.trees {
		t := &p.trees[i]
		above, err := openDir(filepath.Dir(t.path), t.V2)
		if err == nil {
			err = above.rmdir(filepath.Base(t.path))
			above.close()
		}
		if errors.Is(err, unix.EBUSY) {
			err = &wrapped{ErrBusy, "delete cgroup", err}
		}
		if !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, p.Close())...)
}

// Close gives up what the Parent holds open. Its groups must not be used afterwards.
func (p *Parent) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.trees {
		p.trees[i].close()
		p.trees[i].fd = -1
	}
	for _, f := range p.filters {
		f.Close()
	}
	clear(p.filters)
	return nil
}
