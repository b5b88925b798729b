package initproc

import (
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/libcontainer/mount"
)

// An init that waits for its container has time, and most of what it will mount
// is the same for nearly all containers: /proc with its masks, /dev with its
// nodes, the control groups. It makes these ahead, in a staging tmpfs that
// stands in for the root, by the very steps that build a container. When the
// container turns out to want the same, each is moved to its place with all
// that is mounted below it; what differs is left where it is, and goes with
// the old root.

// stagePlace is where the staging tmpfs goes: the host's procfs, in this mount
// namespace only (see package mount, which stages there too on old kernels).
const stagePlace = "/proc/fs"

// stocked is what was made ahead.
type stocked struct {
	setup  *Setup
	stage  int // O_PATH of the staging tmpfs
	roots  map[string]*mount.Tree
	devpts int
}

// stockUp makes what setup describes. It is a courtesy: without it, or with a
// part of it, the container is built all the same.
func (r *runner) stockUp() {
	if r.builder.Legacy() {
		return // mounts there are moved around already, over the same place
	}
	s := &stocked{setup: r.setup, roots: make(map[string]*mount.Tree)}
	if err := r.stockInto(s); err != nil {
		r.devpts = -1
		unix.Unmount(stagePlace, unix.MNT_DETACH)
		return
	}
	r.stock, s.devpts, r.devpts = s, r.devpts, -1
}

func (r *runner) stockInto(s *stocked) error {
	if err := r.namespaces(); err != nil {
		return err
	}
	if err := r.isolate(); err != nil {
		return err
	}
	if err := r.openNull(); err != nil {
		return err
	}
	tree, err := r.builder.New("tmpfs", "berth", []string{"mode=700", "size=1m"}, mount.NoSuid|mount.NoDev|mount.NoExec)
	if err != nil {
		return err
	}
	place, err := unix.Open(stagePlace, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(place)
	if err := tree.Attach(place); err != nil {
		return err
	}
	s.stage = tree.FD()
	r.rootFD, r.stocking = s.stage, s
	defer func() { r.rootFD, r.stocking = -1, nil }()
	for i := range r.setup.Mounts {
		if err := r.mount(i, &r.setup.Mounts[i]); err != nil {
			return err
		}
	}
	if err := r.readOnlyPaths(nil); err != nil {
		return err
	}
	return r.mask(nil)
}

// keep notes a mount that is below no other one made ahead.
func (s *stocked) keep(m *mount.Mount, tree *mount.Tree) {
	if !ready(s.roots).covers(m.Destination) {
		s.roots[m.Destination] = tree
	}
}

// ready is what there is already for the container that is being built, by
// destination, each with all that belongs below it.
type ready map[string]*mount.Tree

// usable compares what was made ahead with what is wanted.
func (r *runner) usable() ready {
	if r.stock == nil {
		return nil
	}
	out := make(ready)
	have, want := r.stock.setup, r.setup
	for dest, tree := range r.stock.roots {
		same := have.Force == want.Force && slices.EqualFunc(at(have.Mounts, dest), at(want.Mounts, dest), equalMount) &&
			slices.Equal(below(have.Masked, dest), below(want.Masked, dest)) &&
			slices.Equal(below(have.ReadOnly, dest), below(want.ReadOnly, dest))
		switch dest {
		case "/dev":
			inDev := func(d mount.Device) bool { _, below := belowDev(d.Path); return !below }
			same = same && slices.Equal(slices.DeleteFunc(slices.Clone(have.Devices), inDev), slices.DeleteFunc(slices.Clone(want.Devices), inDev))
		case "/sys/fs/cgroup":
			same = same && slices.EqualFunc(have.Cgroups, want.Cgroups, equalCgroup)
		}
		if same {
			out[dest] = tree
		}
	}
	return out
}

// covers reports whether a path is below one that is there already.
func (s ready) covers(p string) bool {
	for dest := range s {
		if strings.HasPrefix(p, dest+"/") {
			return true
		}
	}
	return false
}

// at are the mounts at dest and below.
func at(mounts []mount.Mount, dest string) []mount.Mount {
	var out []mount.Mount
	for _, m := range mounts {
		if d := path.Clean(m.Destination); d == dest || strings.HasPrefix(d, dest+"/") {
			out = append(out, m)
		}
	}
	return out
}

func below(paths []string, dest string) []string {
	var out []string
	for _, p := range paths {
		if strings.HasPrefix(p, dest+"/") {
			out = append(out, p)
		}
	}
	return out
}

func equalMount(a, b mount.Mount) bool {
	return a.Type == b.Type && a.Source == b.Source && a.Destination == b.Destination && slices.Equal(a.Options, b.Options) &&
		a.Attr == b.Attr && a.Recursive == b.Recursive && a.Propagation == b.Propagation && a.IDMap == b.IDMap
}

func equalCgroup(a, b CgroupMount) bool {
	return a.Name == b.Name && a.Source == b.Source && slices.Equal(a.Links, b.Links)
}

// useStock moves what was made ahead to its destination.
func (r *runner) useStock(m *mount.Mount, tree *mount.Tree) error {
	if err := r.attach(tree, m); err != nil {
		return err
	}
	if m.Destination == "/dev" {
		r.devpts = r.stock.devpts
	}
	return nil
}
