package initproc

import (
	"golang.org/x/sys/unix"

	"berth/libcontainer/mount"
)

// mountCgroups shows the container its own control groups. They are bound, not
// mounted anew: a bind works the same with and without a cgroup namespace, in
// user namespaces, and for v1 and v2.
//
// Pure v2 is one directory at the destination. With v1 there is a tmpfs with a
// directory for each hierarchy, as hosts have it.
func (r *runner) mountCgroups(m *mount.Mount) error {
	if len(r.setup.Cgroups) == 1 && r.setup.Cgroups[0].Name == "" {
		own := *m
		own.Type, own.Source = "cgroup2", r.setup.Cgroups[0].Source
		return r.bind(&own)
	}
	tree, err := r.builder.New("tmpfs", "tmpfs", []string{"mode=755", "size=64k"}, m.Attr&^mount.ReadOnly)
	if err != nil {
		return err
	}
	for _, c := range r.setup.Cgroups {
		if err := makeHierarchy(tree.FD(), c); err != nil {
			return err
		}
	}
	if err := tree.SetAttr(m.Attr, false); err != nil {
		return err
	}
	if err := r.attach(tree, m); err != nil {
		return err
	}
	for _, c := range r.setup.Cgroups {
		if err := r.bindInto(tree.FD(), c.Name, c.Source, m.Attr); err != nil {
			return &stepError{step: "mount cgroup " + c.Name, err: err}
		}
	}
	return nil
}

func makeHierarchy(dir int, c CgroupMount) error {
	if err := unix.Mkdirat(dir, c.Name, 0o755); err != nil {
		return err
	}
	for _, link := range c.Links {
		if err := unix.Symlinkat(c.Name, dir, link); err != nil {
			return err
		}
	}
	return nil
}

// bindInto binds a path of the host on an entry of a directory that init made.
func (r *runner) bindInto(dir int, name, source string, attr mount.Attr) error {
	fd, err := unix.Open(source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	target, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return r.copyTo(fd, target, attr)
}

// copyTo binds what fd refers to on target.
func (r *runner) copyTo(fd, target int, attr mount.Attr) error {
	tree, err := r.builder.Copy(fd, false)
	if err != nil {
		return err
	}
	defer tree.Close()
	if attr != 0 {
		if err := tree.SetAttr(attr, false); err != nil {
			return err
		}
	}
	return tree.Attach(target)
}
