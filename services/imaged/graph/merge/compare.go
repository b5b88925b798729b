package merge

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Compare tells the first difference between two trees, which nobody else writes
// to: names, kinds, owners, modes, times, extended attributes, link targets,
// devices, which names are one file, and content. Empty if there is none. Of the
// two roots only the content is compared.
func Compare(ctx context.Context, a, b *os.File) (string, error) {
	c := comparer{ctx: ctx, first: map[inode]string{}, same: map[inode]string{}}
	return c.dirs(a, b, "/")
}

type comparer struct {
	ctx         context.Context
	first, same map[inode]string // first names of files with several, in either tree
}

func (c *comparer) dirs(a, b *os.File, at string) (string, error) {
	if err := c.ctx.Err(); err != nil {
		return "", context.Cause(c.ctx)
	}
	as, err := sortedEntries(a)
	if err != nil {
		return "", err
	}
	bs, err := sortedEntries(b)
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

func (c *comparer) entry(a, b *os.File, name, at string) (string, error) {
	var x, y unix.Stat_t
	for f, st := range map[*os.File]*unix.Stat_t{a: &x, b: &y} {
		if err := unix.Fstatat(int(f.Fd()), name, st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return "", os.NewSyscallError("fstatat", err)
		}
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
	case unix.S_IFREG, unix.S_IFDIR:
		return c.opened(a, b, name, at, regular)
	}
	return "", nil
}

func sameTarget(a, b *os.File, name, at string) (string, error) {
	var targets [2]string
	for i, f := range []*os.File{a, b} {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(f.Fd()), name, buf)
		if err != nil {
			return "", os.NewSyscallError("readlinkat", err)
		}
		targets[i] = string(buf[:n])
	}
	if targets[0] != targets[1] {
		return at + " leads elsewhere", nil
	}
	return "", nil
}

func (c *comparer) opened(a, b *os.File, name, at string, regular bool) (string, error) {
	x, err := openAt(a, name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer x.Close()
	y, err := openAt(b, name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer y.Close()
	if same, err := sameXattrs(x, y); !same || err != nil {
		return at + " has other extended attributes", err
	}
	if !regular {
		return c.dirs(x, y, at)
	}
	same, err := sameContent(x, y)
	if err != nil || same {
		return "", err
	}
	return at + " has other content", nil
}

func sameXattrs(a, b *os.File) (bool, error) {
	x, err := allXattrs(a)
	if err != nil {
		return false, err
	}
	y, err := allXattrs(b)
	return maps.Equal(x, y), err
}

// allXattrs includes the marks of a graph driver.
func allXattrs(f *os.File) (map[string]string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Flistxattr(int(f.Fd()), list)
	if err != nil {
		return nil, nil // a file system without
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if name != "security.capability" && !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(int(f.Fd()), name, value)
		if err != nil {
			return nil, os.NewSyscallError("fgetxattr", err)
		}
		all[name] = string(value[:n])
	}
	return all, nil
}

func sameContent(a, b *os.File) (bool, error) {
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
