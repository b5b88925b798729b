package initproc

import (
	"errors"

	"golang.org/x/sys/unix"

	"berth/libcontainer/mount"
	"berth/libcontainer/safepath"
)

const maskAttr = mount.ReadOnly | mount.NoSuid | mount.NoDev | mount.NoExec

// mask hides paths: files behind the engine's null device, directories behind
// one empty tmpfs that all of them share. What does not exist needs no mask.
func (r *runner) mask(done ready) error {
	for _, path := range r.setup.Masked {
		if done.covers(path) {
			continue
		}
		if err := r.maskOne(path); err != nil {
			return &stepError{step: "mask " + path, err: bare(err)}
		}
	}
	return nil
}

func (r *runner) maskOne(path string) error {
	target, dir, err := r.existing(path)
	if err != nil || target < 0 {
		return err
	}
	defer unix.Close(target)
	switch {
	case !dir:
		// Without NODEV: the point of this mount is the device.
		return r.copyTo(r.null, target, mount.ReadOnly|mount.NoSuid|mount.NoExec)
	case r.dirMask != nil:
		return r.copyTo(r.dirMask.FD(), target, 0)
	}
	tree, err := r.builder.New("tmpfs", "mask", []string{"mode=555", "size=4k", "nr_inodes=1"}, maskAttr)
	if err != nil {
		return err
	}
	r.dirMask = tree
	return tree.Attach(target)
}

// existing opens a path of the container; -1 if there is no such thing.
func (r *runner) existing(path string) (fd int, dir bool, err error) {
	fd, err = safepath.Open(r.rootFD, path, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return -1, false, nil
	}
	if err != nil {
		return -1, false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// readOnlyPaths puts a read-only copy of each path on top of itself.
func (r *runner) readOnlyPaths(done ready) error {
	for _, path := range r.setup.ReadOnly {
		if done.covers(path) {
			continue
		}
		if err := r.readOnlyOne(path); err != nil {
			return &stepError{step: "make " + path + " read-only", err: bare(err)}
		}
	}
	return nil
}

func (r *runner) readOnlyOne(path string) error {
	target, _, err := r.existing(path)
	if err != nil || target < 0 {
		return err
	}
	defer unix.Close(target)
	tree, err := r.builder.Copy(target, true)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := tree.SetAttr(mount.ReadOnly, true); err != nil {
		return err
	}
	return tree.Attach(target)
}
