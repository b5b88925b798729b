package merge

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"

	"berth/libcontainer/caps"
	"berth/services/imaged/unpack"

	"golang.org/x/sys/unix"
)

// Apply copies the tree of a layer, whose whiteouts are in the given form, over
// the tree in to, and carries out the whiteouts. Files that have several names
// in the layer have them in the copy.
func Apply(ctx context.Context, layer Dir, form unpack.Whiteouts, to *os.File) error {
	c := copier{ctx: ctx, form: form, root: to, links: map[uint64][]string{}}
	return c.dir(layer, to)
}

// copier is the state of one Apply. All names it uses are those that Entries
// gave, so single components; nothing follows links.
type copier struct {
	ctx   context.Context
	form  unpack.Whiteouts
	root  *os.File            // where the tree goes
	path  []string            // of the directory being copied, below root
	links map[uint64][]string // path of the first name, by inode, of files of the layer with several
}

// dir applies the directory from of a layer to the directory to.
func (c *copier) dir(from Dir, to *os.File) error {
	if opaque(from, c.form) {
		if err := removeAllIn(to); err != nil {
			return err
		}
	}
	entries, err := from.Entries()
	if err != nil {
		return err
	}
	// Whiteouts first: they speak of what lower layers left in to.
	var content []string
	for _, e := range entries {
		hidden, isWhiteout := hides(from, c.form, e)
		if !isWhiteout {
			content = append(content, e.Name())
		} else if hidden != "" {
			if err := remove(int(to.Fd()), hidden); err != nil {
				return err
			}
		}
	}
	for _, name := range content {
		if err := c.ctx.Err(); err != nil {
			return context.Cause(c.ctx)
		}
		if err := c.entry(from, to, name); err != nil {
			return &os.PathError{Op: "copy", Path: name, Err: err}
		}
	}
	return nil
}

func (c *copier) entry(from Dir, to *os.File, name string) error {
	st, err := from.Lstat(name)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return c.subdir(from, to, name, &st)
	}
	if err := remove(int(to.Fd()), name); err != nil {
		return err
	}
	if done, err := c.link(to, name, &st); done || err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.file(from, to, name, &st)
	case unix.S_IFLNK:
		return symlink(from, to, name, &st)
	}
	// imaged has this capability, and the next, aside.
	err = caps.With(caps.Of(unix.CAP_MKNOD), func() error {
		return os.NewSyscallError("mknodat", unix.Mknodat(int(to.Fd()), name, st.Mode&unix.S_IFMT|0o600, int(st.Rdev)))
	})
	if err != nil {
		return err
	}
	return dress(to, name, &st)
}

// link makes name a hard link if another name of the same file was copied, and
// else remembers this one.
func (c *copier) link(to *os.File, name string, st *unix.Stat_t) (bool, error) {
	if st.Nlink == 1 {
		return false, nil
	}
	first, ok := c.links[st.Ino]
	if !ok {
		c.links[st.Ino] = append(slices.Clone(c.path), name)
		return false, nil
	}
	dir, err := openPath(c.root, first[:len(first)-1])
	if err != nil {
		return false, err
	}
	defer dir.Close()
	return true, os.NewSyscallError("linkat", unix.Linkat(int(dir.Fd()), first[len(first)-1], int(to.Fd()), name, 0))
}

func (c *copier) subdir(from Dir, to *os.File, name string, st *unix.Stat_t) error {
	err := unix.Mkdirat(int(to.Fd()), name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var there unix.Stat_t
		if err = unix.Fstatat(int(to.Fd()), name, &there, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return os.NewSyscallError("fstatat", err)
		}
		if there.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err = remove(int(to.Fd()), name); err == nil {
				err = unix.Mkdirat(int(to.Fd()), name, 0o700)
			}
		}
	}
	if err != nil {
		return os.NewSyscallError("mkdirat", err)
	}
	src, err := from.Dir(name)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := openAt(to, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dst.Close()
	c.path = append(c.path, name)
	err = c.dir(src, dst)
	c.path = c.path[:len(c.path)-1]
	if err != nil {
		return err
	}
	return Dress(src, dst)
}

func (c *copier) file(from Dir, to *os.File, name string, st *unix.Stat_t) error {
	src, err := from.File(name)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := openAt(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := c.content(src, dst, st.Size); err != nil {
		return err
	}
	return dressFile(src, dst, st)
}

func (c *copier) content(src File, dst *os.File, size int64) error {
	if f, ok := src.(hostFile); ok {
		return c.hostContent(f.File, dst, size)
	}
	if _, err := io.Copy(holes{dst}, src); err != nil {
		return err
	}
	return dst.Truncate(size)
}

// holes writes a file with holes for what is zeros, a buffer of io.Copy's at once.
type holes struct{ f *os.File }

func (h holes) Write(p []byte) (int, error) {
	if len(bytes.TrimLeft(p, "\x00")) > 0 {
		return h.f.Write(p)
	}
	_, err := h.f.Seek(int64(len(p)), io.SeekCurrent)
	return len(p), err
}

// hostContent copies size bytes. Blocks are shared where the file system can;
// otherwise os.File.ReadFrom has the kernel copy them. Holes stay holes.
func (c *copier) hostContent(src, dst *os.File, size int64) error {
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			break
		}
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		end, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		if _, err := src.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(dst, src, end-data); err != nil {
			return err
		}
		at = end
	}
	return dst.Truncate(size)
}

func symlink(from Dir, to *os.File, name string, st *unix.Stat_t) error {
	target, err := from.Readlink(name)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(target, int(to.Fd()), name); err != nil {
		return os.NewSyscallError("symlinkat", err)
	}
	return dress(to, name, st)
}

// dress gives name, which is not a directory and is not opened, the owner,
// mode and times of st.
func dress(dir *os.File, name string, st *unix.Stat_t) error {
	fd := int(dir.Fd())
	if err := unix.Fchownat(fd, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fchownat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // links have no mode, and fchmodat would follow them
		if err := unix.Fchmodat(fd, name, st.Mode&0o7777, 0); err != nil {
			return os.NewSyscallError("fchmodat", err)
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(fd, name, times, unix.AT_SYMLINK_NOFOLLOW))
}

// Dress gives the directory dst the owner, mode, attributes and times of src.
func Dress(src Dir, dst *os.File) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	return dressFile(src, dst, &st)
}

// dressFile gives the open file dst the owner, mode, attributes and times of
// src. Changing the owner clears set-user-id bits and capabilities, so it is
// first.
func dressFile(src interface{ Xattrs() ([]Xattr, error) }, dst *os.File, st *unix.Stat_t) error {
	fd := int(dst.Fd())
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return os.NewSyscallError("fchown", err)
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	xattrs, err := src.Xattrs()
	if err != nil {
		return err
	}
	for _, x := range own(xattrs) {
		if err := setXattr(fd, x); err != nil {
			return err
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(unix.AT_FDCWD, procPath(fd), times, 0))
}

// setXattr sets an attribute that unpack let in.
func setXattr(fd int, x Xattr) error {
	set := func() error { return os.NewSyscallError("fsetxattr", unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0)) }
	if x.Name == "security.capability" {
		return caps.With(caps.Of(unix.CAP_SETFCAP), set)
	}
	return set()
}
