package merge

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is a directory of a layer: one of the host, or one in an image that nobody
// has mounted. Names are single components, and nothing follows links.
type Dir interface {
	Close() error
	// Entries lists the directory, sorted by name.
	Entries() ([]fs.DirEntry, error)
	// Stat describes the directory itself, Lstat what it has as name: unix.ENOENT
	// if that is nothing.
	Stat() (unix.Stat_t, error)
	Lstat(name string) (unix.Stat_t, error)
	// Readlink gives the target of a link: unix.EINVAL if it is none.
	Readlink(name string) (string, error)
	Dir(name string) (Dir, error)
	File(name string) (File, error)
	// Xattr is the value of an extended attribute of the directory; false if it
	// has none of that name.
	Xattr(name string) (string, bool)
	Xattrs() ([]Xattr, error)
}

// File is a regular file of a layer, open for reading; or what has taken its
// place meanwhile, as Stat tells.
type File interface {
	io.ReadCloser
	Stat() (unix.Stat_t, error)
	Xattrs() ([]Xattr, error)
}

// Xattr is an extended attribute of a file.
type Xattr struct{ Name, Value string }

// Open opens the root of a layer: a directory, or a file with an EROFS image.
func Open(path string) (Dir, error) {
	// Who made the layer may have made a link of it, or a pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	switch {
	case err != nil:
		f.Close()
		return nil, err
	case st.IsDir():
		return hostDir{f}, nil
	}
	return openImage(f, st)
}

// StatRoot describes the root of the layer at path.
func StatRoot(path string) (unix.Stat_t, error) {
	d, err := Open(path)
	if err != nil {
		return unix.Stat_t{}, err
	}
	defer d.Close()
	return d.Stat()
}

// hostDir is a directory of the host.
type hostDir struct{ f *os.File }

func (d hostDir) fd() int      { return int(d.f.Fd()) }
func (d hostDir) Close() error { return d.f.Close() }

func (d hostDir) Entries() ([]fs.DirEntry, error) {
	own, err := openAt(d.f, ".", unix.O_RDONLY|unix.O_DIRECTORY) // with a position of its own
	if err != nil {
		return nil, err
	}
	defer own.Close()
	entries, err := own.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

func (d hostDir) Stat() (st unix.Stat_t, err error) {
	return st, os.NewSyscallError("fstat", unix.Fstat(d.fd(), &st))
}

func (d hostDir) Lstat(name string) (st unix.Stat_t, err error) {
	return st, os.NewSyscallError("fstatat", unix.Fstatat(d.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW))
}

func (d hostDir) Readlink(name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(d.fd(), name, buf)
	return string(buf[:max(n, 0)]), os.NewSyscallError("readlinkat", err)
}

func (d hostDir) Dir(name string) (Dir, error) {
	f, err := openAt(d.f, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return hostDir{f}, nil
}

// File does not block, in case it has become a pipe meanwhile.
func (d hostDir) File(name string) (File, error) {
	f, err := openAt(d.f, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return hostFile{f}, nil
}

func (d hostDir) Xattr(name string) (string, bool) {
	var value [64]byte
	n, err := unix.Fgetxattr(d.fd(), name, value[:])
	return string(value[:max(n, 0)]), err == nil
}

func (d hostDir) Xattrs() ([]Xattr, error) { return fileXattrs(d.fd()) }

// hostFile is a file of the host.
type hostFile struct{ *os.File }

func (f hostFile) Stat() (st unix.Stat_t, err error) {
	return st, os.NewSyscallError("fstat", unix.Fstat(int(f.Fd()), &st))
}

func (f hostFile) Xattrs() ([]Xattr, error) { return fileXattrs(int(f.Fd())) }

// fileXattrs are those extended attributes of an open file that a layer can have,
// the marks of a graph driver among them.
func fileXattrs(fd int) (all []Xattr, err error) {
	var room [1 << 10]byte // for the list, or for an error that it is too small
	list := room[:]
	n, err := unix.Flistxattr(fd, list)
	if errors.Is(err, unix.ERANGE) {
		list = make([]byte, 64<<10)
		n, err = unix.Flistxattr(fd, list)
	}
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("flistxattr", err)
	}
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if name != "security.capability" && !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			return nil, os.NewSyscallError("fgetxattr", err)
		}
		all = append(all, Xattr{name, string(value[:n])})
	}
	return all, nil
}

// own leaves out a graph driver's marks.
func own(all []Xattr) []Xattr {
	return slices.DeleteFunc(all, func(x Xattr) bool {
		return strings.HasPrefix(x.Name, "user.overlay.") || strings.HasPrefix(x.Name, "trusted.")
	})
}
