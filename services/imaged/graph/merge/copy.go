package merge

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"berth/libcontainer/caps"
	"berth/services/imaged/unpack"

	"golang.org/x/sys/unix"
)

// Apply copies the tree of a layer, whose whiteouts are in the given form, over
// the tree in to, and carries out the whiteouts. Files that have several names
// in the layer have them in the copy. layer is read from where it stands: open
// it anew for each call.
func Apply(ctx context.Context, layer *os.File, form unpack.Whiteouts, to *os.File) error {
	c := copier{ctx: ctx, form: form, root: to, links: map[uint64][]string{}}
	return c.dir(layer, to)
}

// copier is the state of one Apply. All names it uses are those that ReadDir
// gave, so single components; nothing follows links.
type copier struct {
	ctx   context.Context
	form  unpack.Whiteouts
	root  *os.File            // where the tree goes
	path  []string            // of the directory being copied, below root
	links map[uint64][]string // path of the first name, by inode, of files of the layer with several
}

// dir applies the directory from of a layer to the directory to.
func (c *copier) dir(from, to *os.File) error {
	if opaque(from, c.form) {
		if err := removeAllIn(to); err != nil {
			return err
		}
	}
	entries, err := from.ReadDir(-1)
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

func (c *copier) entry(from, to *os.File, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fstatat", err)
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
	err := caps.With(caps.Of(unix.CAP_MKNOD), func() error {
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

func (c *copier) subdir(from, to *os.File, name string, st *unix.Stat_t) error {
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
	src, err := openAt(from, name, unix.O_RDONLY|unix.O_DIRECTORY)
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

func (c *copier) file(from, to *os.File, name string, st *unix.Stat_t) error {
	src, err := openAt(from, name, unix.O_RDONLY)
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

// content copies size bytes. Blocks are shared where the file system can;
// otherwise os.File.ReadFrom has the kernel copy them. Holes stay holes.
func (c *copier) content(src, dst *os.File, size int64) error {
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

func symlink(from, to *os.File, name string, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(from.Fd()), name, buf)
	if err != nil {
		return os.NewSyscallError("readlinkat", err)
	}
	if err := unix.Symlinkat(string(buf[:n]), int(to.Fd()), name); err != nil {
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
func Dress(src, dst *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	return dressFile(src, dst, &st)
}

// dressFile gives the open file dst the owner, mode, attributes and times of
// src. Changing the owner clears set-user-id bits and capabilities, so it is
// first.
func dressFile(src, dst *os.File, st *unix.Stat_t) error {
	fd := int(dst.Fd())
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return os.NewSyscallError("fchown", err)
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	if err := copyXattrs(int(src.Fd()), fd); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(unix.AT_FDCWD, procPath(fd), times, 0))
}

// copyXattrs copies the attributes that unpack let in.
func copyXattrs(src, dst int) error {
	return eachXattr(src, func(name string, value []byte) error {
		set := func() error { return os.NewSyscallError("fsetxattr", unix.Fsetxattr(dst, name, value, 0)) }
		if name == "security.capability" {
			return caps.With(caps.Of(unix.CAP_SETFCAP), set)
		}
		return set()
	})
}

// eachXattr calls f for those extended attributes of the open file fd that
// belong to its content.
func eachXattr(fd int, f func(name string, value []byte) error) error {
	var room [1 << 10]byte // for the list, or for an error that it is too small
	list := room[:]
	n, err := unix.Flistxattr(fd, list)
	if errors.Is(err, unix.ERANGE) {
		list = make([]byte, 64<<10)
		n, err = unix.Flistxattr(fd, list)
	}
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("flistxattr", err)
	}
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if name != "security.capability" && (!strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.overlay.")) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			return os.NewSyscallError("fgetxattr", err)
		}
		if err := f(name, value[:n]); err != nil {
			return err
		}
	}
	return nil
}
