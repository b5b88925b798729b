package merge

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"berth/services/imaged/erofs"

	"golang.org/x/sys/unix"
)

// image is an open EROFS image. Its directories share it.
type image struct {
	*erofs.Reader
	file *os.File
	dev  uint64 // tells its files from those of other images
	uses atomic.Int32
}

// openImage takes f over.
func openImage(f *os.File, st fs.FileInfo) (Dir, error) {
	var host unix.Stat_t
	r, err := erofs.NewReader(f, st.Size())
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &host)
	}
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "open image", Path: f.Name(), Err: err}
	}
	i := &image{Reader: r, file: f, dev: host.Ino | 1<<63}
	return i.dir(r.Root())
}

func (i *image) dir(nid uint64) (Dir, error) {
	n, err := i.Inode(nid)
	if err == nil && n.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		if i.uses.Load() == 0 {
			i.file.Close()
		}
		return nil, err
	}
	i.uses.Add(1)
	return &imageDir{i, n}, nil
}

func (i *image) stat(n erofs.Inode) (st unix.Stat_t) {
	st.Dev, st.Ino = i.dev, n.Nid
	st.Mode, st.Uid, st.Gid = n.Mode, n.UID, n.GID
	assign(&st.Nlink, n.Links)
	st.Size, st.Rdev = n.Size, n.Dev
	st.Mtim.Sec, st.Mtim.Nsec = n.Sec, int64(n.Nsec)
	st.Atim, st.Ctim = st.Mtim, st.Mtim
	return st
}

// assign is for a field that has another width on each machine.
func assign[T uint32 | uint64](to *T, n uint32) { *to = T(n) }

func (i *image) xattrs(n erofs.Inode) (all []Xattr, err error) {
	found, err := i.Reader.Xattrs(n)
	for _, x := range found {
		all = append(all, Xattr(x))
	}
	return all, err
}

// imageDir is a directory of an image.
type imageDir struct {
	image *image
	inode erofs.Inode
}

func (d *imageDir) Close() error {
	if d.image.uses.Add(-1) == 0 {
		return d.image.file.Close()
	}
	return nil
}

func (d *imageDir) Entries() (all []fs.DirEntry, err error) {
	entries, err := d.image.Entries(d.inode)
	for _, e := range entries {
		all = append(all, imageEntry{d, e})
	}
	return all, err
}

func (d *imageDir) Stat() (unix.Stat_t, error) { return d.image.stat(d.inode), nil }

func (d *imageDir) find(name string) (erofs.Inode, error) {
	e, ok, err := d.image.Lookup(d.inode, name)
	if err == nil && !ok {
		err = unix.ENOENT
	}
	if err != nil {
		return erofs.Inode{}, err
	}
	return d.image.Inode(e.Nid)
}

func (d *imageDir) Lstat(name string) (unix.Stat_t, error) {
	n, err := d.find(name)
	return d.image.stat(n), err
}

func (d *imageDir) Readlink(name string) (string, error) {
	n, err := d.find(name)
	if err != nil {
		return "", err
	}
	if n.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", unix.EINVAL
	}
	return d.image.Target(n)
}

func (d *imageDir) Dir(name string) (Dir, error) {
	e, ok, err := d.image.Lookup(d.inode, name)
	if err == nil && !ok {
		err = unix.ENOENT
	}
	if err != nil {
		return nil, err
	}
	return d.image.dir(e.Nid)
}

func (d *imageDir) File(name string) (File, error) {
	n, err := d.find(name)
	if err != nil {
		return nil, err
	}
	return &imageFile{d.image.Content(n), d.image, n}, nil
}

func (d *imageDir) Xattr(name string) (string, bool) {
	all, _ := d.Xattrs()
	for _, x := range all {
		if x.Name == name {
			return x.Value, true
		}
	}
	return "", false
}

func (d *imageDir) Xattrs() ([]Xattr, error) { return d.image.xattrs(d.inode) }

// imageFile is a file of an image, valid as long as its directory is open.
type imageFile struct {
	io.Reader
	image *image
	inode erofs.Inode
}

func (f *imageFile) Close() error               { return nil }
func (f *imageFile) Stat() (unix.Stat_t, error) { return f.image.stat(f.inode), nil }
func (f *imageFile) Xattrs() ([]Xattr, error)   { return f.image.xattrs(f.inode) }

// imageEntry is an entry of a directory of an image.
type imageEntry struct {
	dir *imageDir
	e   erofs.Dirent
}

func (e imageEntry) Name() string { return e.e.Name }
func (e imageEntry) IsDir() bool  { return e.e.Mode == unix.S_IFDIR }

func (e imageEntry) Type() fs.FileMode {
	return map[uint32]fs.FileMode{
		unix.S_IFDIR: fs.ModeDir, unix.S_IFLNK: fs.ModeSymlink, unix.S_IFIFO: fs.ModeNamedPipe,
		unix.S_IFBLK: fs.ModeDevice, unix.S_IFCHR: fs.ModeDevice | fs.ModeCharDevice, unix.S_IFSOCK: fs.ModeSocket,
	}[e.e.Mode]
}

func (e imageEntry) Info() (fs.FileInfo, error) {
	return nil, fmt.Errorf("no file info of %q in an image", e.e.Name)
}
