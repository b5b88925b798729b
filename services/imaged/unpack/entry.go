package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func isRegular(typeflag byte) bool {
	switch typeflag {
	case tar.TypeReg, 0, tar.TypeCont, tar.TypeGNUSparse: // 0 is how V7 tar wrote TypeReg
		return true
	}
	return false
}

// rootEntry applies an entry called "./" to the root of the layer.
func (x *extractor) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return &EntryError{h.Name, "the root of a layer can only be a directory"}
	}
	if err := x.tree.truncate(1); err != nil {
		return err
	}
	x.result.RootSet = true
	return named(h, x.describeDir(x.tree.root(), h))
}

// create makes the entry h as name in d, the top of the tree's stack.
func (x *extractor) create(d *dir, name string, h *tar.Header, body io.Reader) error {
	switch {
	case isRegular(h.Typeflag):
		return x.makeFile(d, name, h, body)
	case h.Typeflag == tar.TypeDir:
		child, err := x.tree.mkdir(d, name)
		if err != nil {
			return err
		}
		return x.describeDir(child, h)
	case h.Typeflag == tar.TypeLink:
		return x.makeLink(d, name, h)
	case h.Typeflag == tar.TypeSymlink:
		return x.makeSymlink(d, name, h)
	case h.Typeflag == tar.TypeFifo:
		return x.makeNode(d, name, h, unix.S_IFIFO, 0)
	case h.Typeflag == tar.TypeChar, h.Typeflag == tar.TypeBlock:
		return x.makeDevice(d, name, h)
	}
	return refusal(fmt.Sprintf("unknown type %q", h.Typeflag))
}

// replacing runs mk, which makes name in d and fails with EEXIST if there is
// something of that name: then that goes first. Writing into what is there
// would also change its other hard links, and follow symbolic ones.
func (x *extractor) replacing(d *dir, name string, mk func() error) error {
	err := mk()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := x.tree.remove(d, name); err != nil {
		return err
	}
	return mk()
}

func (x *extractor) makeFile(d *dir, name string, h *tar.Header, body io.Reader) error {
	fd := -1
	err := x.replacing(d, name, func() (err error) {
		fd, err = openat(d.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	err = x.writeContent(fd, body, h.Size)
	if err == nil {
		err = describeFile(fd, h)
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
func (x *extractor) writeContent(fd int, body io.Reader, size int64) error {
	hole := false
	for left := size; left > 0; {
		buf := x.buf[:min(left, int64(len(x.buf)))]
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

// makeLink makes a hard link to an entry that came before. The target's owner,
// mode and times are its own; those of the link's header are not applied, so a
// link cannot be used to change a file.
func (x *extractor) makeLink(d *dir, name string, h *tar.Header) error {
	target, err := splitName(h.Linkname, x.limits)
	if err != nil {
		return refusal("link target: " + err.Error())
	}
	if len(target) == 0 {
		return refusal("links to the root of the layer")
	}
	dirs, base := target[:len(target)-1], target[len(target)-1]
	if _, ok := whiteoutOf(base); ok {
		return refusal("links to a whiteout")
	}
	from, err := x.tree.lookup(dirs)
	if err != nil {
		return linkError(h, err)
	}
	defer unix.Close(from)
	st, err := fstatat(from, base)
	switch {
	case err != nil:
		return linkError(h, err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return refusal("links to a directory")
	case isWhiteout(&st):
		return refusal("links to a whiteout")
	}
	if at, err := fstat(d.fd); err != nil {
		return err
	} else if same, err := sameEntry(from, base, at, name); err != nil || same {
		return err // a link to itself: it is there
	}
	return x.replacing(d, name, func() error { return linkat(from, base, d.fd, name) })
}

// sameEntry reports whether base in the directory from is the entry name of
// the directory described by at. Replacing would delete the target first.
func sameEntry(from int, base string, at unix.Stat_t, name string) (bool, error) {
	st, err := fstat(from)
	return err == nil && base == name && st.Dev == at.Dev && st.Ino == at.Ino, err
}

// linkError explains a target that is not in this archive: one in a lower layer
// or outside cannot be linked to, and through a symbolic link is not looked.
func linkError(h *tar.Header, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return refusal(fmt.Sprintf("links to %q, which is not an earlier entry of the archive", h.Linkname))
	}
	return err
}

func (x *extractor) makeSymlink(d *dir, name string, h *tar.Header) error {
	switch {
	case h.Linkname == "":
		return refusal("symbolic link without a target")
	case len(h.Linkname) >= x.limits.PathBytes:
		return refusal("symbolic link's target is too long")
	case strings.IndexByte(h.Linkname, 0) >= 0:
		return refusal("symbolic link's target holds a NUL byte")
	}
	// The target may be anything at all: it is never followed here.
	err := x.replacing(d, name, func() error { return symlinkat(h.Linkname, d.fd, name) })
	if err != nil {
		return err
	}
	return describeNode(d, name, h, false)
}

func (x *extractor) makeDevice(d *dir, name string, h *tar.Header) error {
	if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor >= 1<<12 || h.Devminor >= 1<<20 { // MINORBITS of the kernel's dev_t
		return refusal(fmt.Sprintf("impossible device number %d:%d", h.Devmajor, h.Devminor))
	}
	kind := uint32(unix.S_IFBLK)
	if h.Typeflag == tar.TypeChar {
		kind = unix.S_IFCHR
		if h.Devmajor == 0 && h.Devminor == 0 {
			return refusal("character device 0:0 is overlayfs's whiteout")
		}
	}
	return x.makeNode(d, name, h, kind, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
}

func (x *extractor) makeNode(d *dir, name string, h *tar.Header, kind uint32, dev uint64) error {
	err := x.replacing(d, name, func() error { return mknodat(d.fd, name, kind, dev) })
	if err != nil {
		return err
	}
	return describeNode(d, name, h, true)
}

// The order in the functions below matters: a change of owner clears the
// set-user-id bits and the file capability, so it comes first; everything
// changes times, so they come last.

func describeFile(fd int, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	if err := fchown(fd, uid, gid); err != nil {
		return err
	}
	if err := fchmod(fd, mode(h)); err != nil {
		return err
	}
	if err := setXattrs(fd, h); err != nil {
		return err
	}
	return futimens(fd, times(h))
}

// describeDir applies h to an open directory, except for the times, which are
// left for the moment when it is closed.
func (x *extractor) describeDir(d *dir, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	if err := fchown(d.fd, uid, gid); err != nil {
		return err
	}
	if err := fchmod(d.fd, mode(h)); err != nil {
		return err
	}
	d.times = times(h)
	return setXattrs(d.fd, h)
}

// describeNode applies h to a link, pipe or device, none of which is opened:
// opening a device runs its driver. They get no extended attributes: user.*
// is not allowed on them and security.capability has no meaning there.
func describeNode(d *dir, name string, h *tar.Header, chmod bool) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	if err := fchownat(d.fd, name, uid, gid); err != nil {
		return err
	}
	if chmod { // not a link, and nobody else writes here, so it is the node just made
		if err := fchmodat(d.fd, name, mode(h)); err != nil {
			return err
		}
	}
	return utimensat(d.fd, name, times(h))
}

func mode(h *tar.Header) uint32 { return uint32(h.Mode) & 0o7777 }

// owner gives the numeric owner; names in the header are the packer's and mean
// nothing here. 2³²-1 is (uid_t)-1, "leave unchanged" to chown(2).
func owner(h *tar.Header) (uid, gid int, err error) {
	if h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32 {
		return 0, 0, refusal(fmt.Sprintf("impossible owner %d:%d", h.Uid, h.Gid))
	}
	return h.Uid, h.Gid, nil
}

func times(h *tar.Header) [2]unix.Timespec {
	mtime, atime := h.ModTime, h.AccessTime
	if atime.IsZero() {
		atime = mtime
	}
	return [2]unix.Timespec{timespec(atime), timespec(mtime)}
}

func timespec(t time.Time) unix.Timespec {
	var ts unix.Timespec
	ts.Sec = t.Unix()
	ts.Nsec = int64(t.Nanosecond())
	return ts
}

// paxXattr is the prefix under which tar, star and all image builders store
// extended attributes in pax records.
const paxXattr = "SCHILY.xattr."

// maxXattr is XATTR_SIZE_MAX of the kernel.
const maxXattr = 64 << 10

// setXattrs sets the attributes of h that an image may bring: file
// capabilities and users' own. The others either steer the host's kernel
// (overlayfs's and other trusted.*, security labels of the machine the image
// was packed on, IMA signatures) or are inherited by what is made later
// (default ACLs).
func setXattrs(fd int, h *tar.Header) error {
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !allowedXattr(attr) {
			continue
		}
		if len(value) > maxXattr {
			return refusal(fmt.Sprintf("extended attribute %q is too large", attr))
		}
		err := fsetxattr(fd, attr, []byte(value))
		if errors.Is(err, unix.ENOTSUP) && attr != capabilityXattr {
			continue // the file system has no user.*; programs cope
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
			return refusal(fmt.Sprintf("invalid extended attribute %q", attr))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const capabilityXattr = "security.capability"

func allowedXattr(attr string) bool {
	if attr == capabilityXattr {
		return true
	}
	return strings.HasPrefix(attr, "user.") && len(attr) > len("user.") && len(attr) <= 255 &&
		!strings.HasPrefix(attr, "user.overlay.") && strings.IndexByte(attr, 0) < 0
}
