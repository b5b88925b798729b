package merge

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Compare tells the first difference between two trees, which nobody else writes
// to: names, kinds, owners, modes, times, extended attributes, link targets,
// devices, which names are one file, and content. Empty if there is none. Of the
// two roots only the content is compared.
func Compare(ctx context.Context, a, b Dir) (string, error) {
	c := comparer{ctx: ctx, first: map[inode]string{}, same: map[inode]string{}}
	return c.dirs(a, b, "/")
}

type comparer struct {
	ctx         context.Context
	first, same map[inode]string // first names of files with several, in either tree
}

func (c *comparer) dirs(a, b Dir, at string) (string, error) {
	if err := c.ctx.Err(); err != nil {
		return "", context.Cause(c.ctx)
	}
	as, err := a.Entries()
	if err != nil {
		return "", err
	}
	bs, err := b.Entries()
	if err != nil {
		return "", err
	}
	for i, e := range as {
		if i >= len(bs) || bs[i].Name() > e.Name() {
			return path.Join(at, e.Name()) + " is too many", nil
		}
		if bs[i].Name() < e.Name() {
			return path.Join(at, bs[i].Name()) + " is missing", nil
		}
		if diff, err := c.entry(a, b, e.Name(), path.Join(at, e.Name())); diff != "" || err != nil {
			return diff, err
		}
	}
	if len(bs) > len(as) {
		return path.Join(at, bs[len(as)].Name()) + " is missing", nil
	}
	return "", nil
}

func (c *comparer) entry(a, b Dir, name, at string) (string, error) {
	x, err := a.Lstat(name)
	if err != nil {
		return "", err
	}
	y, err := b.Lstat(name)
	if err != nil {
		return "", err
	}
	regular := x.Mode&unix.S_IFMT == unix.S_IFREG
	switch {
	case x.Mode != y.Mode, x.Uid != y.Uid, x.Gid != y.Gid:
		return fmt.Sprintf("%s has mode %o and owner %d:%d instead of %o and %d:%d", at, x.Mode, x.Uid, x.Gid, y.Mode, y.Uid, y.Gid), nil
	case regular && x.Size != y.Size:
		return fmt.Sprintf("%s has %d bytes instead of %d", at, x.Size, y.Size), nil
	case x.Mtim != y.Mtim:
		return at + " has another time", nil
	case x.Rdev != y.Rdev, x.Nlink != y.Nlink:
		return at + " is another file", nil
	}
	if x.Mode&unix.S_IFMT != unix.S_IFDIR && x.Nlink > 1 {
		k, l := inode{x.Dev, x.Ino}, inode{y.Dev, y.Ino}
		if c.first[k] != c.same[l] {
			return at + " is another file", nil
		}
		if c.first[k] != "" {
			return "", nil
		}
		c.first[k], c.same[l] = at, at
	}
	switch x.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return sameTarget(a, b, name, at)
	case unix.S_IFDIR:
		return c.sameDir(a, b, name, at)
	case unix.S_IFREG:
		return sameFile(a, b, name, at)
	}
	return "", nil
}

func sameTarget(a, b Dir, name, at string) (string, error) {
	var targets [2]string
	for i, d := range []Dir{a, b} {
		target, err := d.Readlink(name)
		if err != nil {
			return "", err
		}
		targets[i] = target
	}
	if targets[0] != targets[1] {
		return at + " leads elsewhere", nil
	}
	return "", nil
}

func (c *comparer) sameDir(a, b Dir, name, at string) (string, error) {
	x, err := a.Dir(name)
	if err != nil {
		return "", err
	}
	defer x.Close()
	y, err := b.Dir(name)
	if err != nil {
		return "", err
	}
	defer y.Close()
	if same, err := sameXattrs(x, y); !same || err != nil {
		return at + otherXattrs, err
	}
	return c.dirs(x, y, at)
}

func sameFile(a, b Dir, name, at string) (string, error) {
	x, err := a.File(name)
	if err != nil {
		return "", err
	}
	defer x.Close()
	y, err := b.File(name)
	if err != nil {
		return "", err
	}
	defer y.Close()
	if same, err := sameXattrs(x, y); !same || err != nil {
		return at + otherXattrs, err
	}
	same, err := sameContent(x, y)
	if err != nil || same {
		return "", err
	}
	return at + " has other content", nil
}

const otherXattrs = " has other extended attributes"

// sameXattrs compares all of them, the marks of a graph driver included.
func sameXattrs(a, b interface{ Xattrs() ([]Xattr, error) }) (bool, error) {
	x, err := a.Xattrs()
	if err != nil {
		return false, err
	}
	y, err := b.Xattrs()
	byName := func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(x, byName)
	slices.SortFunc(y, byName)
	return slices.Equal(x, y), err
}

func sameContent(a, b io.Reader) (bool, error) {
	x, y := make([]byte, 128<<10), make([]byte, 128<<10)
	for {
		n, err := io.ReadFull(a, x)
		m, err2 := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return err2 == err, nil
		case err != nil:
			return false, err
		case err2 != nil:
			return false, err2
		}
	}
}
