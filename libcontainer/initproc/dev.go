package initproc

import (
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"berth/libcontainer/mount"
	"berth/libcontainer/safepath"
)

// devLinks are the links that programs expect in /dev.
var devLinks = []struct{ name, target string }{
	{"fd", "/proc/self/fd"},
	{"stdin", "/proc/self/fd/0"},
	{"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"},
	{"ptmx", "pts/ptmx"},
}

// populateDev fills the tmpfs on /dev, by its descriptor: where an image's own
// /dev points does not matter (S-06).
func (r *runner) populateDev(dev int) error {
	for i := range r.setup.Devices {
		d := &r.setup.Devices[i]
		name, below := belowDev(d.Path)
		if !below {
			continue
		}
		if err := r.makeDevice(dev, name, d); err != nil {
			return &stepError{step: "make device " + d.Path, err: bare(err)}
		}
	}
	for _, l := range devLinks {
		if err := unix.Symlinkat(l.target, dev, l.name); err != nil && err != unix.EEXIST {
			return &stepError{step: "make link /dev/" + l.name, err: err}
		}
	}
	return nil
}

// devicesOutside makes the nodes that are not below /dev.
func (r *runner) devicesOutside() error {
	for i := range r.setup.Devices {
		d := &r.setup.Devices[i]
		if _, below := belowDev(d.Path); below {
			continue
		}
		err := r.step("make device "+d.Path, func() error { return bare(r.makeDevice(r.rootFD, d.Path, d)) })
		if err != nil {
			return err
		}
	}
	return nil
}

func belowDev(p string) (name string, below bool) {
	return strings.CutPrefix(path.Clean("/"+p), "/dev/")
}

var errDeviceType = errors.New("device type is none of c, b, p")

func (r *runner) makeDevice(root int, name string, d *mount.Device) error {
	format, ok := map[rune]uint32{'c': unix.S_IFCHR, 'b': unix.S_IFBLK, 'p': unix.S_IFIFO}[d.Type]
	if !ok {
		return errDeviceType
	}
	dir, base, err := deviceParent(root, name)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	err = unix.EPERM
	if r.setup.Force&ForceBindNodes == 0 {
		err = unix.Mknodat(dir, base, format|d.Mode, int(unix.Mkdev(d.Major, d.Minor)))
	}
	switch err {
	case nil:
		if d.UID != 0 || d.GID != 0 {
			return unix.Fchownat(dir, base, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW)
		}
		return nil
	case unix.EPERM: // in a user namespace nobody makes nodes
		return r.bindDevice(dir, base, format, d)
	}
	return err
}

// deviceParent opens the directory a node goes to, making it if missing.
func deviceParent(root int, name string) (dir int, base string, err error) {
	base = path.Base(name)
	if base == "." || base == "/" || base == ".." {
		return -1, "", unix.EINVAL
	}
	dir, err = safepath.MkdirAll(root, path.Dir(name), 0o755)
	return dir, base, err
}

var errOtherDevice = errors.New("the host has another device under this name")

// bindDevice shows the host's node in place of one of our own making.
func (r *runner) bindDevice(dir int, base string, format uint32, d *mount.Device) error {
	source := d.Source
	if source == "" {
		source = d.Path
	}
	fd, err := unix.Open(source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != format || uint64(st.Rdev) != unix.Mkdev(d.Major, d.Minor) {
		return errOtherDevice
	}
	target, err := safepath.CreateFile(dir, base, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return r.copyTo(fd, target, mount.NoSuid|mount.NoExec)
}
