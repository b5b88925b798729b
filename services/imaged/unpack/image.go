package unpack

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"

	"berth/services/imaged/erofs"

	"golang.org/x/sys/unix"
)

// ImageFile is the name of the file that [Options.Image] asks for.
const ImageFile = "erofs"

// maxImageMemory bounds what an image keeps of an archive in memory until it is
// complete: names, link targets, extended attributes, and a fixed sum for each
// entry. It is enough for some million files, and fits into the memory that a
// worker has with what garbage collection makes of it.
const maxImageMemory = 256 << 20

// nodeMemory is what an entry takes beside that.
const nodeMemory = 240

// image is the maker of a file system in a file. The tree is in memory, and the
// content of files goes to its place at once; what an archive replaces of its
// own stays there, unused.
type image struct {
	dest   *os.File
	out    *erofs.Writer
	xattr  string // marks opaque directories
	root   *erofs.Node
	path   []string // of the current directory
	stack  []*erofs.Node
	memory int64
}

func newImage(dir *os.File, o Options) (*image, error) {
	if o.Whiteouts.OpaqueXattr() == "" {
		return nil, errors.New("an image needs whiteouts in overlayfs's form")
	}
	fd, err := openat(int(dir.Fd()), ImageFile, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ImageFile)
	out, err := erofs.NewWriter(f, cmp.Or(o.BlockSize, erofs.MinBlock))
	if err != nil {
		f.Close()
		return nil, err
	}
	m := &image{dest: f, out: out, xattr: o.Whiteouts.OpaqueXattr(), root: erofs.NewDir(0o755)}
	m.stack = []*erofs.Node{m.root}
	return m, nil
}

func (m *image) finish() error {
	err := m.out.Finish(m.root)
	if errors.Is(err, erofs.ErrXattrs) {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return errors.Join(err, m.dest.Close())
}

func (m *image) abandon() { m.dest.Close() }

func (m *image) top() *erofs.Node { return m.stack[len(m.stack)-1] }

// spend accounts for a new entry.
func (m *image) spend(n int) error {
	if m.memory += nodeMemory + int64(n); m.memory > maxImageMemory {
		return refusal("the archive has too many entries for an EROFS image")
	}
	return nil
}

func (m *image) enter(path []string) error {
	keep := 0
	for keep < len(m.path) && keep < len(path) && m.path[keep] == path[keep] {
		keep++
	}
	m.path, m.stack = m.path[:keep], m.stack[:keep+1]
	for _, name := range path[keep:] {
		child := m.top().Child(name)
		if child != nil && !child.IsDir() && !isHidden(child) {
			return throughFile(name)
		}
		if err := m.push(name); err != nil {
			return err
		}
	}
	return nil
}

// push enters the directory name of the current one, and makes it if there is none.
func (m *image) push(name string) error {
	d := m.top()
	child := d.Child(name)
	if child == nil || !child.IsDir() {
		if err := m.spend(len(name)); err != nil {
			return err
		}
		made := erofs.NewDir(0o755)
		d.Link(name, made)
		if child != nil {
			made.SetXattr(m.xattr, "y")
		}
		child = made
	}
	m.path, m.stack = append(m.path, name), append(m.stack, child)
	return nil
}

// isHidden reports whether n is a whiteout, which no archive can bring.
func isHidden(n *erofs.Node) bool { return n.Mode&unix.S_IFMT == unix.S_IFCHR && n.Dev == 0 }

func (m *image) dir(name string, a attributes) error {
	if err := m.push(name); err != nil {
		return err
	}
	return m.describe(a)
}

func (m *image) describe(a attributes) error { return m.dress(m.top(), a) }

// dress gives n its looks, but not its kind. Extended attributes add up, as they
// do on a disk.
func (m *image) dress(n *erofs.Node, a attributes) error {
	n.Mode = n.Mode&unix.S_IFMT | a.mode
	n.UID, n.GID = a.uid, a.gid
	n.Sec, n.Nsec = a.mtime.Sec, uint32(a.mtime.Nsec)
	for _, x := range a.xattrs {
		if err := checkXattr(x); err != nil {
			return err
		}
		m.memory += int64(len(x.name) + len(x.value))
		n.SetXattr(x.name, x.value)
	}
	return nil
}

// checkXattr refuses what the kernel would refuse to set.
func checkXattr(x xattr) error {
	if x.name == capabilityXattr && !validCapability(x.value) {
		return refusal(fmt.Sprintf("invalid extended attribute %q", x.name))
	}
	if len(x.value) > erofs.MaxXattrValue {
		return refusal(fmt.Sprintf("extended attribute %q is too large", x.name))
	}
	return nil
}

// validCapability is validheader of security/commoncap.c.
func validCapability(v string) bool {
	if len(v) < 4 {
		return false
	}
	switch v[3] { // the revision, VFS_CAP_REVISION_… of linux/capability.h
	case 2:
		return len(v) == 20
	case 3:
		return len(v) == 24
	}
	return false
}

// add makes n an entry of the current directory.
func (m *image) add(name string, n *erofs.Node, a attributes) error {
	if err := m.spend(len(name) + len(n.Target)); err != nil {
		return err
	}
	if err := m.dress(n, a); err != nil {
		return err
	}
	m.top().Link(name, n)
	return nil
}

func (m *image) file(name string, a attributes, size int64, body io.Reader) error {
	content, err := m.out.Content(body, size)
	switch {
	case errors.Is(err, erofs.ErrTooLarge):
		return refusal(err.Error())
	case errors.Is(err, io.ErrUnexpectedEOF):
		return contentError(err)
	case err != nil:
		return fmt.Errorf("copy content: %w", err)
	}
	return m.add(name, &erofs.Node{Mode: unix.S_IFREG, Content: content}, a)
}

func (m *image) link(name string, target []string) error {
	from := m.root
	for _, dir := range target[:len(target)-1] {
		if from = from.Child(dir); from == nil {
			return errNoTarget
		}
	}
	n := from.Child(target[len(target)-1])
	switch {
	case n == nil:
		return errNoTarget
	case n.IsDir():
		return linksToDir
	case isHidden(n):
		return linksToWhiteout
	}
	if err := m.spend(len(name)); err != nil {
		return err
	}
	m.top().Link(name, n)
	return nil
}

func (m *image) symlink(name, target string, a attributes) error {
	a.mode = 0o777
	return m.add(name, &erofs.Node{Mode: unix.S_IFLNK, Target: target}, a)
}

func (m *image) node(name string, kind uint32, dev uint64, a attributes) error {
	return m.add(name, &erofs.Node{Mode: kind, Dev: dev}, a)
}

func (m *image) opaque() error {
	m.top().SetXattr(m.xattr, "y")
	return nil
}

func (m *image) hide(name string) error {
	child := m.top().Child(name)
	switch {
	case child == nil:
		return m.add(name, &erofs.Node{Mode: unix.S_IFCHR}, attributes{mode: 0o600})
	case child.IsDir():
		child.SetXattr(m.xattr, "y")
	}
	return nil
}
