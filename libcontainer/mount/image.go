package mount

import (
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Image mounts the open file fd, which holds an EROFS file system, without a loop
// device (Linux 6.12). The mount is detached and stays so: it is a layer for
// [ImageOverlay]. Each call makes a file system with a page cache of its own.
func Image(fd int) (*Tree, error) {
	return newFS("erofs", func(fs int) error { return configure(fs, "source", fdPath(fd)) }, ReadOnly|NoDev)
}

// ImageOverlay makes the overlay r whose layers, topmost first, are the mounts
// images in place of r.Lower (Linux 6.15: no path leads to them). With a user
// namespace, owners are shown as that maps them; without, userns is -1.
func ImageOverlay(r *Root, images []int, userns int) (*Tree, error) {
	o := &imageOverlay{userns: userns}
	defer o.close()
	if err := o.addLayers(images); err != nil {
		return nil, err
	}
	if r.Upper == "" && len(images) == 1 {
		return singleImage(o.lower[0], r.Attr)
	}
	if err := o.addUpper(r); err != nil {
		return nil, err
	}
	return onceMore(r, o.make)
}

// imageOverlay has the parts of an overlay as descriptors.
type imageOverlay struct {
	userns      int
	lower       []int
	upper, work int
	opened      []int
}

func (o *imageOverlay) close() {
	for _, fd := range o.opened {
		unix.Close(fd)
	}
}

// mapped is a copy of a mount that shows owners mapped.
func (o *imageOverlay) mapped(fd int) (int, error) {
	copied, err := CopyFD(fd, false)
	if err != nil {
		return -1, err
	}
	o.opened = append(o.opened, copied)
	return copied, IDMapFD(copied, o.userns, false)
}

func (o *imageOverlay) addLayers(images []int) error {
	for _, fd := range images {
		if o.userns >= 0 {
			var err error
			if fd, err = o.mapped(fd); err != nil {
				return err
			}
		}
		o.lower = append(o.lower, fd)
	}
	return nil
}

func (o *imageOverlay) open(dir int, path string) (int, error) {
	fd, err := unix.Openat(dir, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		o.opened = append(o.opened, fd)
	}
	return fd, err
}

// addUpper opens upper and work directory, which have to be on one mount.
func (o *imageOverlay) addUpper(r *Root) (err error) {
	if o.upper, o.work = -1, -1; r.Upper == "" {
		return nil
	}
	base := commonDir([]string{r.Upper, r.Work})
	dir, err := o.open(unix.AT_FDCWD, base)
	if err != nil {
		return err
	}
	if o.userns >= 0 {
		if dir, err = o.mapped(dir); err != nil {
			return err
		}
	}
	below := func(path string) string {
		return "./" + strings.TrimLeft(strings.TrimPrefix(path, base), "/")
	}
	if o.upper, err = o.open(dir, below(r.Upper)); err != nil {
		return err
	}
	o.work, err = o.open(dir, below(r.Work))
	return err
}

func (o *imageOverlay) make(r *Root) (*Tree, error) {
	return newFS("overlay", func(fs int) error {
		for _, fd := range o.lower {
			if err := unix.FsconfigSetFd(fs, "lowerdir+", fd); err != nil {
				return err
			}
		}
		if o.upper >= 0 {
			if err := errors.Join(unix.FsconfigSetFd(fs, "upperdir", o.upper), unix.FsconfigSetFd(fs, "workdir", o.work)); err != nil {
				return err
			}
		}
		// Each layer is a file system, and its inode numbers are told apart: without this
		// option files of different layers would have different devices, and so would a file
		// before and after it is written to.
		for _, option := range append(slices.Clone(r.Options), "xino=on") {
			key, value, _ := strings.Cut(option, "=")
			if err := configure(fs, key, value); err != nil {
				return err
			}
		}
		return nil
	}, r.Attr&^ReadOnly) // later: mountpoints are still to be made
}

// singleImage shows the only layer of a read-only root.
func singleImage(fd int, attr Attr) (*Tree, error) {
	copied, err := CopyFD(fd, false)
	if err != nil {
		return nil, err
	}
	tree := &Tree{fd: copied}
	if err := tree.SetAttr(attr|ReadOnly, false); err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}
