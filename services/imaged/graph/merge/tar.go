package merge

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"berth/services/imaged/unpack"

	"golang.org/x/sys/unix"
)

// WriteLayer writes the archive of a layer that changes a stack to what it is
// under the writable layer upper. The root is in it only if its owner or mode
// differ from those of the directory root, or, if there is none, root:root 0755. A container may be at work in upper meanwhile; each file is then as it
// was at some moment.
func WriteLayer(ctx context.Context, w io.Writer, upper, root string, form unpack.Whiteouts) error {
	a := newArchiver(ctx, w, form)
	top, err := Open(upper)
	if err != nil {
		return err
	}
	defer top.Close()
	if err := a.changedRoot(top, root); err != nil {
		return err
	}
	if err := a.changes(top, ""); err != nil {
		return err
	}
	return a.close()
}

// WriteTree writes the archive of all files of a stack of layers (their
// directories, bottom first), whiteouts applied.
func WriteTree(ctx context.Context, w io.Writer, layers []string, form unpack.Whiteouts) error {
	a := newArchiver(ctx, w, form)
	v := view{form: form}
	defer v.close()
	root, err := v.resolve(layers, "/")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := a.tree(&v, root, ""); err != nil {
		return err
	}
	return a.close()
}

// archiver writes files into a tar archive. Files are opened by one component
// at a time and never through links: whoever works in the tree cannot lead the
// reading out of it.
type archiver struct {
	ctx   context.Context
	form  unpack.Whiteouts
	out   *bufio.Writer
	tw    *tar.Writer
	links map[inode]string // first name of files with several
	buf   []byte
}

type inode struct{ dev, ino uint64 }

func newArchiver(ctx context.Context, w io.Writer, form unpack.Whiteouts) *archiver {
	out := bufio.NewWriterSize(w, 256<<10)
	return &archiver{ctx: ctx, form: form, out: out, tw: tar.NewWriter(out), links: map[inode]string{}, buf: make([]byte, 256<<10)}
}

func (a *archiver) close() error {
	if err := a.tw.Close(); err != nil {
		return err
	}
	return a.out.Flush()
}

// changedRoot writes an entry for "/" if it has another owner or mode than root.
func (a *archiver) changedRoot(upper Dir, root string) error {
	now, err := upper.Stat()
	if err != nil {
		return err
	}
	was := unix.Stat_t{Mode: unix.S_IFDIR | 0o755}
	if root != "" {
		if was, err = StatRoot(root); err != nil {
			return err
		}
	}
	if now.Mode == was.Mode && now.Uid == was.Uid && now.Gid == was.Gid {
		return nil
	}
	return a.directory(upper, "./")
}

// changes writes what the writable directory dir, called name, holds.
func (a *archiver) changes(dir Dir, name string) error {
	entries, err := dir.Entries()
	if err != nil {
		return err
	}
	if opaque(dir, a.form) {
		if err := a.marker(name + whiteoutOpaque); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if err := a.ctx.Err(); err != nil {
			return context.Cause(a.ctx)
		}
		hidden, isWhiteout := hides(dir, a.form, e)
		switch {
		case isWhiteout && hidden == "":
			continue
		case isWhiteout:
			err = a.marker(name + whiteoutPrefix + hidden)
		case e.IsDir():
			err = a.changedDir(dir, e.Name(), name)
		default:
			err = a.file(dir, e.Name(), name+e.Name())
		}
		if err != nil {
			return fmt.Errorf("archive %q: %w", name+e.Name(), err)
		}
	}
	return nil
}

func (a *archiver) changedDir(parent Dir, base, in string) error {
	d, err := parent.Dir(base)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if err := a.directory(d, in+base+"/"); err != nil {
		return err
	}
	return a.changes(d, in+base+"/")
}

// tree writes what the merged directory dirs, top first, called name, holds.
func (a *archiver) tree(v *view, dirs []Dir, name string) error {
	if len(dirs) == 0 {
		return nil
	}
	if err := a.directory(dirs[0], path.Clean("./"+name)+"/"); err != nil {
		return err
	}
	names := map[string]bool{}
	for _, d := range dirs {
		entries, err := d.Entries()
		if err != nil {
			return err
		}
		for _, e := range entries {
			names[e.Name()] = true
		}
	}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		if err := a.ctx.Err(); err != nil {
			return context.Cause(a.ctx)
		}
		if a.form == unpack.WhiteoutFiles && strings.HasPrefix(n, whiteoutPrefix) {
			continue
		}
		if err := a.treeEntry(v, dirs, n, name); err != nil {
			return fmt.Errorf("archive %q: %w", name+n, err)
		}
	}
	return nil
}

func (a *archiver) treeEntry(v *view, dirs []Dir, base, in string) error {
	defer v.closeFrom(len(v.open))
	sub, other, err := v.search(dirs, base)
	switch {
	case gone(err):
		return nil
	case err != nil:
		return err
	case len(sub) > 0:
		return a.tree(v, sub, in+base+"/")
	case other != nil:
		return a.file(other, base, in+base)
	}
	return nil
}

// gone reports whether a file went, or became one of another kind, after its
// directory was read.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO)
}

// marker writes an empty file that stands for a whiteout.
func (a *archiver) marker(name string) error {
	return a.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

func (a *archiver) directory(d Dir, name string) error {
	st, err := d.Stat()
	if err != nil {
		return err
	}
	h, err := header(name, tar.TypeDir, &st, d)
	if err != nil {
		return err
	}
	return a.tw.WriteHeader(h)
}

// file writes anything but a directory. What cannot be in an archive, a socket,
// is left out.
func (a *archiver) file(dir Dir, base, name string) error {
	st, err := dir.Lstat(base)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	kind := map[uint32]byte{unix.S_IFREG: tar.TypeReg, unix.S_IFLNK: tar.TypeSymlink, unix.S_IFCHR: tar.TypeChar, unix.S_IFBLK: tar.TypeBlock, unix.S_IFIFO: tar.TypeFifo}[st.Mode&unix.S_IFMT]
	if kind == 0 {
		return nil
	}
	if st.Nlink > 1 {
		key := inode{st.Dev, st.Ino}
		if first, ok := a.links[key]; ok {
			h, err := header(name, tar.TypeLink, &st, nil)
			if err != nil {
				return err
			}
			h.Linkname = first
			return a.tw.WriteHeader(h)
		}
		a.links[key] = name
	}
	if kind == tar.TypeReg {
		return a.regular(dir, base, name)
	}
	h, err := header(name, kind, &st, nil)
	if err != nil {
		return err
	}
	if kind == tar.TypeSymlink {
		h.Linkname, err = dir.Readlink(base)
		if gone(err) || errors.Is(err, unix.EINVAL) { // it is none any more
			return nil
		}
		if err != nil {
			return err
		}
	}
	return a.tw.WriteHeader(h)
}

// regular writes a file with as many bytes as it had when it was opened: what
// is added meanwhile is left out, what is cut off is zeros.
func (a *archiver) regular(dir Dir, base, name string) error {
	f, err := dir.File(base)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	h, err := header(name, tar.TypeReg, &st, f)
	if err != nil {
		return err
	}
	if err := a.tw.WriteHeader(h); err != nil {
		return err
	}
	return a.content(f, h.Size)
}

func (a *archiver) content(f io.Reader, size int64) error {
	for left := size; left > 0; {
		if err := a.ctx.Err(); err != nil {
			return context.Cause(a.ctx)
		}
		buf := a.buf[:min(left, int64(len(a.buf)))]
		n, err := io.ReadFull(f, buf)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			clear(buf[n:])
			n = len(buf)
		} else if err != nil {
			return err
		}
		if _, err := a.tw.Write(buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// header describes a file; open is it, or nil.
func header(name string, kind byte, st *unix.Stat_t, open interface{ Xattrs() ([]Xattr, error) }) (*tar.Header, error) {
	h := &tar.Header{
		Typeflag: kind, Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	switch kind {
	case tar.TypeReg:
		h.Size = st.Size
	case tar.TypeChar, tar.TypeBlock:
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	if open == nil {
		return h, nil
	}
	xattrs, err := open.Xattrs()
	for _, x := range own(xattrs) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+x.Name] = x.Value
	}
	return h, err
}
