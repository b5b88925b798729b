package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
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

// A maker makes the tree of a layer. Its methods but enter act upon the
// directory last entered, and upon a name that is a single component. What has
// the name already goes, with all below it, except that a directory stays one.
// Refusals are of type refusal.
type maker interface {
	// enter goes to the directory with the given components from the root,
	// making those that do not exist.
	enter(path []string) error
	// describe gives the current directory its looks.
	describe(a attributes) error
	// dir makes a directory, or finds it, and gives it its looks. One that
	// takes the place of something else is opaque: that hid the lower ones.
	dir(name string, a attributes) error
	// file makes a file of the next size bytes of body.
	file(name string, a attributes, size int64, body io.Reader) error
	// link makes another name of what was made as target before. The target's
	// owner, mode and times are its own, so a link cannot be used to change a
	// file.
	link(name string, target []string) error
	symlink(name, target string, a attributes) error
	// node makes a device or pipe; kind is its S_IF….
	node(name string, kind uint32, dev uint64, a attributes) error
	// hide makes a whiteout of name. A file that is there hides the lower ones
	// by being there, a directory becomes opaque.
	hide(name string) error
	// opaque hides what lower layers have in the current directory.
	opaque() error
	// finish completes the tree; abandon lets go of it.
	finish() error
	abandon()
}

// attributes are the looks of a file.
type attributes struct {
	mode         uint32 // permission bits
	uid, gid     uint32
	atime, mtime unix.Timespec
	xattrs       []xattr // by name
}

type xattr struct{ name, value string }

// rootEntry applies an entry called "./" to the root of the layer.
func (x *extractor) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return &EntryError{h.Name, "the root of a layer can only be a directory"}
	}
	a, err := attributesOf(h, true)
	if err != nil {
		return named(h, err)
	}
	if err := x.make.enter(nil); err != nil {
		return err
	}
	x.result.RootSet = true
	return named(h, x.make.describe(a))
}

// create makes the entry h as name in the current directory. Only files and
// directories get extended attributes: elsewhere user.* is not allowed and
// security.capability has no meaning.
func (x *extractor) create(name string, h *tar.Header, body io.Reader) error {
	if h.Typeflag == tar.TypeLink {
		return x.makeLink(name, h)
	}
	a, err := attributesOf(h, isRegular(h.Typeflag) || h.Typeflag == tar.TypeDir)
	if err != nil {
		return err
	}
	switch {
	case isRegular(h.Typeflag):
		return x.make.file(name, a, h.Size, body)
	case h.Typeflag == tar.TypeDir:
		return x.make.dir(name, a)
	case h.Typeflag == tar.TypeSymlink:
		return x.makeSymlink(name, h, a)
	case h.Typeflag == tar.TypeFifo:
		return x.make.node(name, unix.S_IFIFO, 0, a)
	case h.Typeflag == tar.TypeChar, h.Typeflag == tar.TypeBlock:
		return x.makeDevice(name, h, a)
	}
	return refusal(fmt.Sprintf("unknown type %q", h.Typeflag))
}

func (x *extractor) makeLink(name string, h *tar.Header) error {
	target, err := splitName(h.Linkname, x.limits)
	if err != nil {
		return refusal("link target: " + err.Error())
	}
	if len(target) == 0 {
		return refusal("links to the root of the layer")
	}
	if _, ok := whiteoutOf(target[len(target)-1]); ok {
		return refusal("links to a whiteout")
	}
	err = x.make.link(name, target)
	if errors.Is(err, errNoTarget) {
		return refusal(fmt.Sprintf("links to %q, which is not an earlier entry of the archive", h.Linkname))
	}
	return err
}

// errNoTarget is the error of a link to what is not in this archive: something in
// a lower layer or outside cannot be linked to, and through a symbolic link is
// not looked.
var errNoTarget = errors.New("no such entry")

const (
	linksToDir      = refusal("links to a directory")
	linksToWhiteout = refusal("links to a whiteout")
)

// throughFile refuses an entry below something that is no directory.
func throughFile(name string) error {
	return refusal(fmt.Sprintf("its path goes through %q, which is not a directory", name))
}

func (x *extractor) makeSymlink(name string, h *tar.Header, a attributes) error {
	switch {
	case h.Linkname == "":
		return refusal("symbolic link without a target")
	case len(h.Linkname) >= x.limits.PathBytes:
		return refusal("symbolic link's target is too long")
	case strings.IndexByte(h.Linkname, 0) >= 0:
		return refusal("symbolic link's target holds a NUL byte")
	}
	// The target may be anything at all: it is never followed here.
	return x.make.symlink(name, h.Linkname, a)
}

func (x *extractor) makeDevice(name string, h *tar.Header, a attributes) error {
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
	return x.make.node(name, kind, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)), a)
}

func attributesOf(h *tar.Header, xattrs bool) (a attributes, err error) {
	if a.uid, a.gid, err = owner(h); err != nil {
		return a, err
	}
	a.mode = uint32(h.Mode) & 0o7777
	a.mtime = timespec(h.ModTime)
	a.atime = a.mtime
	if !h.AccessTime.IsZero() {
		a.atime = timespec(h.AccessTime)
	}
	if xattrs && len(h.PAXRecords) > 0 {
		a.xattrs, err = xattrsOf(h)
	}
	return a, err
}

// owner gives the numeric owner; names in the header are the packer's and mean
// nothing here. 2³²-1 is (uid_t)-1, "leave unchanged" to chown(2).
func owner(h *tar.Header) (uid, gid uint32, err error) {
	if h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32 {
		return 0, 0, refusal(fmt.Sprintf("impossible owner %d:%d", h.Uid, h.Gid))
	}
	return uint32(h.Uid), uint32(h.Gid), nil
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

// xattrsOf are the attributes of h that an image may bring: file capabilities
// and users' own. The others either steer the host's kernel (overlayfs's and
// other trusted.*, security labels of the machine the image was packed on, IMA
// signatures) or are inherited by what is made later (default ACLs).
func xattrsOf(h *tar.Header) (all []xattr, err error) {
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !allowedXattr(attr) {
			continue
		}
		if len(value) > maxXattr {
			return nil, refusal(fmt.Sprintf("extended attribute %q is too large", attr))
		}
		all = append(all, xattr{attr, value})
	}
	slices.SortFunc(all, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

const capabilityXattr = "security.capability"

func allowedXattr(attr string) bool {
	if attr == capabilityXattr {
		return true
	}
	return strings.HasPrefix(attr, "user.") && len(attr) > len("user.") && len(attr) <= 255 &&
		!strings.HasPrefix(attr, "user.overlay.") && strings.IndexByte(attr, 0) < 0
}
