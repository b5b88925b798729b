package unpack

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// tree is the directory being filled: a stack of open directories from its
// root to the one entries are being made in. Archives list a directory's
// entries together, so nearly every entry finds its parent on the stack
// already and costs no lookup.
//
// Making an entry changes the times of its directory, and the archive's own
// word on those times comes before the entries. So a directory's times are
// kept beside its descriptor and put back when it leaves the stack: the memory
// needed grows with the depth of the tree and not with its size.
type tree struct {
	stack     []*dir // stack[0] is the root and never leaves before close
	whiteouts Whiteouts
}

// dir is an open directory of the tree.
type dir struct {
	fd    int
	name  string // its own component; empty for the root
	times [2]unix.Timespec
}

// epoch is the time of directories that no entry describes.
var epoch = [2]unix.Timespec{}

func newTree(root *os.File, w Whiteouts) (*tree, error) {
	fd, err := openDir(int(root.Fd()), ".")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(fchown(fd, 0, 0), fchmod(fd, 0o755)); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &tree{stack: []*dir{{fd: fd, times: epoch}}, whiteouts: w}, nil
}

func (t *tree) root() *dir { return t.stack[0] }
func (t *tree) top() *dir  { return t.stack[len(t.stack)-1] }

// enter makes the directory with the given components the top of the stack,
// making those that do not exist.
func (t *tree) enter(path []string) (*dir, error) {
	keep := 1
	for keep < len(t.stack) && keep <= len(path) && t.stack[keep].name == path[keep-1] {
		keep++
	}
	if err := t.truncate(keep); err != nil {
		return nil, err
	}
	for _, name := range path[keep-1:] {
		if err := t.enterChild(name); err != nil {
			return nil, err
		}
	}
	return t.top(), nil
}

// enterChild pushes the directory name of the top.
func (t *tree) enterChild(name string) error {
	top := t.top()
	_, err := t.push(top, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		_, err = t.mkdir(top, name)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		st, serr := fstatat(top.fd, name)
		if serr != nil {
			return serr
		}
		if !isWhiteout(&st) {
			return throughFile(name)
		}
		_, err = t.mkdir(top, name)
	}
	return err
}

// push opens the existing directory name of d and puts it on the stack. d must
// be the top.
func (t *tree) push(d *dir, name string) (*dir, error) {
	fd, err := openDir(d.fd, name)
	if err != nil {
		return nil, err
	}
	st, err := fstat(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	child := &dir{fd: fd, name: name, times: [2]unix.Timespec{st.Atim, st.Mtim}}
	t.stack = append(t.stack, child)
	return child, nil
}

// mkdir makes the directory name of d, the top, if it is not there already,
// and pushes it. What else has the name goes; lower layers' directory of that
// name went with it, so the new one is opaque.
func (t *tree) mkdir(d *dir, name string) (*dir, error) {
	err := mkdirat(d.fd, name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		st, err := fstatat(d.fd, name)
		if err != nil {
			return nil, err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return t.push(d, name)
		}
		return t.replaceByDir(d, name)
	}
	if err != nil {
		return nil, err
	}
	return t.pushNew(d, name)
}

// pushNew pushes a directory that was just made, and gives it the looks of one
// that the archive does not describe.
func (t *tree) pushNew(d *dir, name string) (*dir, error) {
	fd, err := openDir(d.fd, name)
	if err != nil {
		return nil, err
	}
	child := &dir{fd: fd, name: name, times: epoch}
	t.stack = append(t.stack, child)
	return child, errors.Join(fchown(fd, 0, 0), fchmod(fd, 0o755))
}

func (t *tree) replaceByDir(d *dir, name string) (*dir, error) {
	if err := unlinkat(d.fd, name, 0); err != nil {
		return nil, err
	}
	if err := mkdirat(d.fd, name, 0o700); err != nil {
		return nil, err
	}
	child, err := t.pushNew(d, name)
	if err != nil {
		return nil, err
	}
	return child, t.markOpaque(child)
}

// makeMarker makes the empty file name, unless it exists.
func (t *tree) makeMarker(d *dir, name string) error {
	fd, err := openat(d.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// markOpaque hides what lower layers have in d.
func (t *tree) markOpaque(d *dir) error {
	if attr := t.whiteouts.OpaqueXattr(); attr != "" {
		return fsetxattr(d.fd, attr, []byte("y"))
	}
	return t.makeMarker(d, whiteoutOpaque)
}

// remove deletes what is called name in d, with all below it. No directory
// below d may be on the stack.
func (t *tree) remove(d *dir, name string) error {
	err := unlinkat(d.fd, name, 0)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	if err := removeContent(d.fd, name); err != nil {
		return err
	}
	return unlinkat(d.fd, name, unix.AT_REMOVEDIR)
}

// removeContent empties the directory name of parent. Its recursion is bounded
// by Limits.Depth, since the tree was made under that limit.
func removeContent(parent int, name string) error {
	fd, err := openDir(parent, name)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := unlinkat(fd, name, 0)
		if errors.Is(err, unix.EISDIR) {
			if err = removeContent(fd, name); err == nil {
				err = unlinkat(fd, name, unix.AT_REMOVEDIR)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lookup opens the directory path, which must exist, without touching the
// stack more than by reading it. The descriptor is the caller's.
func (t *tree) lookup(path []string) (int, error) {
	fd, err := openDir(t.root().fd, ".")
	for _, name := range path {
		if err != nil {
			return -1, err
		}
		var next int
		next, err = openDir(fd, name)
		unix.Close(fd)
		fd = next
	}
	return fd, err
}

// truncate closes the directories of the stack above the first keep.
func (t *tree) truncate(keep int) error {
	var first error
	for len(t.stack) > keep {
		d := t.top()
		t.stack = t.stack[:len(t.stack)-1]
		err := futimens(d.fd, d.times)
		unix.Close(d.fd)
		if err != nil && first == nil {
			first = fmt.Errorf("set times of directory %q: %w", d.name, err)
		}
	}
	return first
}

func (t *tree) close() error { return t.truncate(0) }

// path names the top of the stack, for messages.
func (t *tree) path() string {
	names := make([]string, 0, len(t.stack))
	for _, d := range t.stack {
		names = append(names, d.name)
	}
	return strings.Join(names, "/")
}
