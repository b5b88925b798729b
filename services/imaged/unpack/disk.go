package unpack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// disk is the maker of files and directories.
type disk struct {
	tree *tree
	buf  []byte // for the content of files
}

// copyBuffer is the unit in which files are written and holes are looked for.
const copyBuffer = 128 << 10

func newDisk(dir *os.File, w Whiteouts) (*disk, error) {
	t, err := newTree(dir, w)
	if err != nil {
		return nil, err
	}
	return &disk{tree: t, buf: make([]byte, copyBuffer)}, nil
}

// finish: the times of directories are put right when they are closed, so a
// failed close is a failed unpack.
func (k *disk) finish() error { return k.tree.close() }

func (k *disk) abandon() { k.tree.close() }

func (k *disk) enter(path []string) error {
	_, err := k.tree.enter(path)
	return err
}

// replacing runs mk, which makes name in d and fails with EEXIST if there is
// something of that name: then that goes first. Writing into what is there
// would also change its other hard links, and follow symbolic ones.
func (k *disk) replacing(d *dir, name string, mk func() error) error {
	err := mk()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := k.tree.remove(d, name); err != nil {
		return err
	}
	return mk()
}

func (k *disk) dir(name string, a attributes) error {
	if _, err := k.tree.mkdir(k.tree.top(), name); err != nil {
		return err
	}
	return k.describe(a)
}

func (k *disk) file(name string, a attributes, size int64, body io.Reader) error {
	d, fd := k.tree.top(), -1
	err := k.replacing(d, name, func() (err error) {
		fd, err = openat(d.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	err = k.writeContent(fd, body, size)
	if err == nil {
		err = describeFile(fd, a)
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return err
}

// zeros is compared with content to find holes.
var zeros [copyBuffer]byte

// writeContent writes the size bytes of body to the empty file fd. Whole
// buffers of zeros become holes, whether or not the archive called them so.
func (k *disk) writeContent(fd int, body io.Reader, size int64) error {
	hole := false
	for left := size; left > 0; {
		buf := k.buf[:min(left, int64(len(k.buf)))]
		if _, err := io.ReadFull(body, buf); err != nil {
			return contentError(err)
		}
		left -= int64(len(buf))
		if hole = len(buf) == copyBuffer && bytes.Equal(buf, zeros[:]); hole {
			if _, err := unix.Seek(fd, int64(len(buf)), io.SeekCurrent); err != nil {
				return err
			}
			continue
		}
		if err := writeAll(fd, buf); err != nil {
			return err
		}
	}
	if hole { // a file does not grow by seeking
		return ftruncate(fd, size)
	}
	return nil
}

func contentError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return refusal("archive ends before the file does")
	}
	return fmt.Errorf("read content: %w", err)
}

func (k *disk) link(name string, target []string) error {
	d := k.tree.top()
	dirs, base := target[:len(target)-1], target[len(target)-1]
	from, err := k.tree.lookup(dirs)
	if err != nil {
		return linkError(err)
	}
	defer unix.Close(from)
	st, err := fstatat(from, base)
	switch {
	case err != nil:
		return linkError(err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return linksToDir
	case isWhiteout(&st):
		return linksToWhiteout
	}
	if at, err := fstat(d.fd); err != nil {
		return err
	} else if same, err := sameEntry(from, base, at, name); err != nil || same {
		return err // a link to itself: it is there
	}
	return k.replacing(d, name, func() error { return linkat(from, base, d.fd, name) })
}

// sameEntry reports whether base in the directory from is the entry name of
// the directory described by at. Replacing would delete the target first.
func sameEntry(from int, base string, at unix.Stat_t, name string) (bool, error) {
	st, err := fstat(from)
	return err == nil && base == name && st.Dev == at.Dev && st.Ino == at.Ino, err
}

func linkError(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return errNoTarget
	}
	return err
}

func (k *disk) symlink(name, target string, a attributes) error {
	d := k.tree.top()
	if err := k.replacing(d, name, func() error { return symlinkat(target, d.fd, name) }); err != nil {
		return err
	}
	return describeNode(d, name, a, false)
}

func (k *disk) node(name string, kind uint32, dev uint64, a attributes) error {
	d := k.tree.top()
	if err := k.replacing(d, name, func() error { return mknodat(d.fd, name, kind, dev) }); err != nil {
		return err
	}
	return describeNode(d, name, a, true)
}

func (k *disk) opaque() error { return k.tree.markOpaque(k.tree.top()) }

func (k *disk) hide(name string) error {
	d := k.tree.top()
	if k.tree.whiteouts == WhiteoutFiles {
		return k.tree.makeMarker(d, whiteoutPrefix+name)
	}
	err := mknodat(d.fd, name, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	st, err := fstatat(d.fd, name)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	child, err := k.tree.push(d, name)
	if err != nil {
		return err
	}
	return k.tree.markOpaque(child)
}

// The order in the functions below matters: a change of owner clears the
// set-user-id bits and the file capability, so it comes first; everything
// changes times, so they come last.

func describeFile(fd int, a attributes) error {
	if err := fchown(fd, int(a.uid), int(a.gid)); err != nil {
		return err
	}
	if err := fchmod(fd, a.mode); err != nil {
		return err
	}
	if err := setXattrs(fd, a.xattrs); err != nil {
		return err
	}
	return futimens(fd, [2]unix.Timespec{a.atime, a.mtime})
}

// describe leaves the times for the moment when the directory is closed.
func (k *disk) describe(a attributes) error {
	d := k.tree.top()
	if err := fchown(d.fd, int(a.uid), int(a.gid)); err != nil {
		return err
	}
	if err := fchmod(d.fd, a.mode); err != nil {
		return err
	}
	d.times = [2]unix.Timespec{a.atime, a.mtime}
	return setXattrs(d.fd, a.xattrs)
}

// describeNode describes a link, pipe or device, none of which is opened:
// opening a device runs its driver.
func describeNode(d *dir, name string, a attributes, chmod bool) error {
	if err := fchownat(d.fd, name, int(a.uid), int(a.gid)); err != nil {
		return err
	}
	if chmod { // not a link, and nobody else writes here, so it is the node just made
		if err := fchmodat(d.fd, name, a.mode); err != nil {
			return err
		}
	}
	return utimensat(d.fd, name, [2]unix.Timespec{a.atime, a.mtime})
}

func setXattrs(fd int, all []xattr) error {
	for _, x := range all {
		err := fsetxattr(fd, x.name, []byte(x.value))
		if errors.Is(err, unix.ENOTSUP) && x.name != capabilityXattr {
			continue // the file system has no user.*; programs cope
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
			return refusal(fmt.Sprintf("invalid extended attribute %q", x.name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
