package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Group is one cgroup: a directory of the same name in every tree of its Parent. Its methods may be called
// from many goroutines at once.
type Group struct {
	parent *Parent
	name   string
	owns   bool // the Parent is closed with the group

	mu    sync.Mutex
	fd    int   // v2 directory, opened when first asked for; -1 until then
	tasks []int // files that Enter writes to, one for each v1 tree; nil: they are opened each time
}

// Create makes a group with limits: OpenParent and Parent.Create in one, for a caller who makes one only.
func Create(l Layout, parent, name string, r Resources) (*Group, error) {
	p, err := OpenParent(l, parent)
	if err != nil {
		return nil, err
	}
	g, err := p.Create(name, r)
	if err != nil {
		p.Close()
		return nil, err
	}
	g.owns = true
	return g, nil
}

// Open finds a group that an earlier process made.
func Open(l Layout, parent, name string) (*Group, error) {
	p, err := OpenParent(l, parent)
	if err != nil {
		return nil, err
	}
	g, err := p.Open(name)
	if err != nil {
		p.Close()
		return nil, err
	}
	g.owns = true
	return g, nil
}

// Self is the group, or rather the groups, the calling process is in: where a thread goes back to after Enter.
// It can be entered and read; it must not be limited, killed or deleted, and those methods refuse.
func Self(l Layout) (*Group, error) {
	p, err := open(l, func(t *tree) error {
		path, err := t.OwnDir()
		if err != nil {
			return err
		}
		own, err := openDir(path, t.V2)
		if err != nil {
			return err
		}
		t.close()
		t.dir = own
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &Group{parent: p, name: self, owns: true, fd: -1}, nil
}

// self is the name of the group that Self returns, in the directories it has open.
const self = "."

// Create makes a group and sets its limits. On failure nothing is left behind. ErrExists: some tree has a
// group of this name already. ErrNotFound: someone has removed the Parent's directory; open it anew.
func (p *Parent) Create(name string, r Resources) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	settings, err := p.plan(&r, true)
	if err != nil {
		return nil, err
	}
	g := &Group{parent: p, name: name, fd: -1}
	for i := range p.trees {
		if err := p.trees[i].make(name); err != nil {
			g.undo(i)
			switch {
			case errors.Is(err, fs.ErrExist):
				return nil, &wrapped{ErrExists, "create cgroup", err}
			case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
				return nil, &wrapped{ErrNotFound, "create cgroup", err}
			}
			return nil, fmt.Errorf("create cgroup: %w", err)
		}
	}
	if err := g.apply(settings); err != nil {
		g.undo(len(p.trees))
		return nil, err
	}
	return g, nil
}

// make makes the directory in one tree.
func (t *tree) make(name string) error {
	if err := t.mkdir(name); err != nil || !t.copyCpuset {
		return err
	}
	child, err := t.sub(name)
	if err == nil {
		err = inheritCpuset(t.dir, child)
		child.close()
	}
	if err != nil {
		_ = t.rmdir(name)
	}
	return err
}

// undo removes the directories Create made in the first n trees: empty ones, so it cannot fail for long.
func (g *Group) undo(n int) {
	for i := range n {
		_ = g.parent.trees[i].rmdir(g.name)
	}
	g.Close()
}

// Open finds a group by name; ErrNotFound if no tree has it. One that has gone from some trees only (a Delete
// cut short) is opened, so that the rest can be deleted.
func (p *Parent) Open(name string) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	for i := range p.trees {
		if p.trees[i].exists(name) {
			return &Group{parent: p, name: name, fd: -1}, nil
		}
	}
	return nil, &wrapped{kind: ErrNotFound, what: fmt.Sprintf("no cgroup %q below %s", name, p.trees[0].path)}
}

// List names the groups there are, in any tree.
func (p *Parent) List() ([]string, error) {
	var all []string
	for i := range p.trees {
		names, err := p.trees[i].children(self)
		if err != nil {
			return nil, err
		}
		all = append(all, names...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Name is the group's own, without that of its Parent.
func (g *Group) Name() string { return g.name }

// Paths maps controllers to directories: "memory", "name=systemd", ..., and "" to that of the v2 tree.
func (g *Group) Paths() map[string]string {
	paths := map[string]string{}
	for i := range g.parent.trees {
		t := &g.parent.trees[i]
		path := strings.TrimSuffix(t.path+"/"+g.name, "/"+self)
		if t.V2 {
			paths[""] = path
		}
		if t.Name != "" {
			paths["name="+t.Name] = path
		}
		for _, c := range t.Controllers {
			paths[c] = path
		}
	}
	return paths
}

// FD is a descriptor of the v2 directory, for clone3 with CLONE_INTO_CGROUP. It belongs to the group, until
// Close. It is -1 without a v2 tree, and on a kernel before 5.7: there, see LateJoin.
func (g *Group) FD() (int, error) {
	if !cloneInto() {
		return -1, nil
	}
	return g.directory()
}

// LateJoin reports whether neither Enter nor FD gets a child to where the controllers are: on v2 before Linux
// 5.7. The launcher then calls AddProcess after it has forked, and before the child runs what is to be limited.
// Beside v1 controllers a v2 tree of that age limits nothing, and may be left out.
func (g *Group) LateJoin() bool {
	for i := range g.parent.trees {
		if t := &g.parent.trees[i]; !t.V2 && len(t.Controllers) > 0 {
			return false
		}
	}
	return !cloneInto()
}

// directory is the v2 directory, opened once; -1 without a v2 tree.
func (g *Group) directory() (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.parent.unified()
	if t == nil || g.fd >= 0 {
		return g.fd, nil
	}
	// Not O_PATH: bpf(BPF_PROG_ATTACH) takes the same descriptor, and wants a real one.
	fd, err := t.open(g.name, unix.O_RDONLY|unix.O_DIRECTORY)
	g.fd = fd
	return fd, err
}

// cloneInto asks clone3 for a child in a cgroup that cannot be open. A kernel that knows what is meant says
// EBADF, one that does not E2BIG, EINVAL or ENOSYS; none makes a child.
var cloneInto = sync.OnceValue(func() bool {
	const cloneIntoCgroup = 0x200000000
	args := [11]uint64{0: cloneIntoCgroup, 10: math.MaxInt32} // struct clone_args, CLONE_ARGS_SIZE_VER2
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	return errno == unix.EBADF
})

// Set changes limits of a living group. What is zero in r stays as it is. ErrBusy: the memory limit is below
// what the group uses. A failure may leave some of r in force.
func (g *Group) Set(r Resources) error {
	if g.name == self {
		return errSelf
	}
	settings, err := g.parent.plan(&r, false)
	if err != nil {
		return err
	}
	return g.apply(settings)
}

// Delete removes the group, and groups that processes inside have made below it. It waits up to a second for
// processes that are just dying. ErrBusy: some live. A group that is gone already is no error.
func (g *Group) Delete() error {
	if g.name == self {
		return errSelf
	}
	var errs []error
	deadline := time.Now().Add(time.Second)
	for i := range g.parent.trees {
		errs = append(errs, g.parent.trees[i].remove(g.name, deadline))
	}
	return errors.Join(errs...)
}

// remove deletes a directory and those below. EBUSY may come from children, from living processes, or from
// dead ones the kernel is not done with.
func (t *tree) remove(name string, deadline time.Time) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := t.rmdir(name)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY):
			return err
		}
		children, _ := t.children(name)
		for _, child := range children {
			if err := t.remove(name+"/"+child, deadline); err != nil {
				return err
			}
		}
		if len(children) > 0 {
			continue
		}
		if time.Now().After(deadline) {
			pids, _ := t.pids(name + "/cgroup.procs")
			return &wrapped{ErrBusy, fmt.Sprintf("cgroup still has processes %v", pids), err}
		}
		time.Sleep(pause)
	}
}

// Close gives up the group's descriptors. The cgroup stays.
func (g *Group) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, fd := range g.tasks {
		unix.Close(fd)
	}
	g.tasks = nil
	if g.fd >= 0 {
		unix.Close(g.fd)
		g.fd = -1
	}
	if g.owns {
		return g.parent.Close()
	}
	return nil
}

var errSelf = errors.New("cgroup: the process's own group may be entered and read only")
