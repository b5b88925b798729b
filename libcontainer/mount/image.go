package mount

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Image mounts the open file fd, which holds an EROFS file system, without a loop
// device (Linux 6.12). The mount is detached and stays so: it is a layer for
// [ImageOverlay]. Each call makes a file system with a page cache of its own.
func Image(fd int) (*Tree, error) { return newImage(fdPath(fd)) }

// ImageOn mounts the EROFS file system on the block device at path. All mounts of
// a device are of one file system, with one page cache.
func ImageOn(path string) (*Tree, error) { return newImage(path) }

func newImage(source string) (*Tree, error) {
	return newFS("erofs", func(fs int) error {
		// Of the file system and not only of the mount: else a device is opened for writing.
		return errors.Join(configure(fs, "ro", ""), configure(fs, "source", source))
	}, ReadOnly|NoDev)
}

// StacksDetached reports whether overlay takes layers that are part of no mount
// namespace, by their descriptors (Linux 6.15). It finds out by making one.
func StacksDetached() bool {
	var layers [2]*Tree // of one layer alone nothing is made, nor of one twice
	for i := range layers {
		layer, err := newFS("tmpfs", func(int) error { return nil }, ReadOnly)
		if err != nil {
			return false
		}
		defer layer.Close() // once it is in the overlay: a detached mount goes with its descriptor
		layers[i] = layer
	}
	tree, err := newFS("overlay", func(fs int) error {
		return errors.Join(unix.FsconfigSetFd(fs, "lowerdir+", layers[0].fd), unix.FsconfigSetFd(fs, "lowerdir+", layers[1].fd))
	}, ReadOnly)
	if err != nil {
		return false
	}
	tree.Close()
	return true
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
		for _, option := range imageOptions(r) {
			key, value, _ := strings.Cut(option, "=")
			if err := configure(fs, key, value); err != nil {
				return err
			}
		}
		return nil
	}, r.Attr&^ReadOnly) // later: mountpoints are still to be made
}

// imageOptions are the options of an overlay of images. Each layer is a file system,
// and its inode numbers are told apart: without xino files of different layers would
// have different devices, and so would a file before and after it is written to.
func imageOptions(r *Root) []string { return append(slices.Clone(r.Options), "xino=on") }

// DeviceOverlay makes the overlay r whose layers, topmost first, are the EROFS file
// systems on the block devices in place of r.Lower. It does what ImageOverlay does,
// for kernels whose overlay takes layers only of the mount namespace it is made in:
// they are mounted in the staging place of that, which must be the caller's own.
// The result is detached.
func (b *Builder) DeviceOverlay(r *Root, devices []string, userns int) (*Tree, error) {
	if err := b.stage.prepare(); err != nil {
		return nil, err
	}
	staged := Root{Upper: r.Upper, Work: r.Work, Options: imageOptions(r), Attr: r.Attr}
	for i, device := range devices {
		tree, err := ImageOn(device)
		if err != nil {
			return nil, err
		}
		if userns >= 0 {
			err = IDMapFD(tree.fd, userns, false)
		}
		if err == nil && r.Upper == "" && len(devices) == 1 {
			return readOnly(tree, r.Attr)
		}
		var place string
		if err == nil {
			place, err = b.attachStaged("l"+strconv.Itoa(i), tree)
		}
		tree.Close()
		if err != nil {
			return nil, err
		}
		staged.Lower = append(staged.Lower, place)
	}
	return b.detachedOverlay(&staged, userns)
}

// singleImage shows the only layer of a read-only root.
func singleImage(fd int, attr Attr) (*Tree, error) {
	copied, err := CopyFD(fd, false)
	if err != nil {
		return nil, err
	}
	return readOnly(&Tree{fd: copied}, attr)
}

func readOnly(tree *Tree, attr Attr) (*Tree, error) {
	if err := tree.SetAttr(attr|ReadOnly, false); err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}
