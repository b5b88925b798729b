// Package merge copies out of stacks of layers without mounting them: it applies
// layers, with their whiteouts, over a directory, and finds what a stack has at a
// path. Layers are trees that package unpack made.
package merge

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"berth/services/imaged/unpack"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh.opq"
)

// CopyOut copies what a stack of layers (their directories, bottom first) has
// in the directory path into the directory to, and gives that its owner, mode
// and times. Links on the way are followed inside the stack. If path is no
// directory there, nothing happens.
func CopyOut(ctx context.Context, layers []string, form unpack.Whiteouts, path, to string) error {
	v := view{form: form}
	defer v.close()
	dirs, err := v.resolve(layers, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	root, err := os.Open(to)
	if err != nil {
		return err
	}
	defer root.Close()
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := Apply(ctx, dirs[i], form, root); err != nil {
			return err
		}
	}
	return Dress(dirs[0], root)
}

// view looks things up in a stack of layers as if it were mounted. A directory
// of it is the list of the layers' directories that are merged there, top first.
type view struct {
	form unpack.Whiteouts
	open []*os.File // all that were opened
}

func (v *view) close() { v.closeFrom(0) }

// closeFrom closes what was opened since v.open had n elements.
func (v *view) closeFrom(n int) {
	for _, f := range v.open[n:] {
		f.Close()
	}
	v.open = v.open[:n]
}

// maxLinks is the kernel's MAXSYMLINKS.
const maxLinks = 40

// resolve gives the directory path; fs.ErrNotExist if there is no such
// directory.
func (v *view) resolve(layers []string, path string) ([]*os.File, error) {
	var root []*os.File
	for i := len(layers) - 1; i >= 0; i-- {
		f, err := os.Open(layers[i])
		if err != nil {
			return nil, err
		}
		v.open = append(v.open, f)
		root = append(root, f)
	}
	if len(root) == 0 {
		return nil, fs.ErrNotExist
	}
	at := [][]*os.File{root} // the way from the root; ".." goes back on it
	links := 0
	for rest := strings.Split(path, "/"); len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = at[:max(len(at)-1, 1)]
			continue
		}
		dirs, link, err := v.lookup(at[len(at)-1], name)
		if err != nil {
			return nil, err
		}
		if link == "" {
			at = append(at, dirs)
			continue
		}
		if links++; links > maxLinks {
			return nil, fs.ErrNotExist
		}
		if strings.HasPrefix(link, "/") {
			at = at[:1]
		}
		rest = append(strings.Split(link, "/"), rest...)
	}
	return at[len(at)-1], nil
}

// lookup finds name in a directory: a directory, or the target of a link.
// What is neither, and what is not there, is fs.ErrNotExist.
func (v *view) lookup(in []*os.File, name string) (dirs []*os.File, link string, err error) {
	dirs, other, err := v.search(in, name)
	if err != nil || len(dirs) > 0 {
		return dirs, "", err
	}
	if other == nil {
		return nil, "", fs.ErrNotExist
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(other.Fd()), name, buf)
	if errors.Is(err, unix.EINVAL) { // no link
		return nil, "", fs.ErrNotExist
	}
	return nil, string(buf[:max(n, 0)]), os.NewSyscallError("readlinkat", err)
}

// find reports whether name exists in a directory, and its directories if it
// is one.
func (v *view) find(in []*os.File, name string) (dirs []*os.File, exists bool, err error) {
	dirs, other, err := v.search(in, name)
	return dirs, len(dirs) > 0 || other != nil, err
}

// search goes down the layers of a directory to see what name is: directories,
// merged, or else something that the layer other has.
func (v *view) search(in []*os.File, name string) (dirs []*os.File, other *os.File, err error) {
	for _, layer := range in {
		var st unix.Stat_t
		err := unix.Fstatat(int(layer.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENAMETOOLONG):
			if v.hidden(layer, name) {
				return dirs, nil, nil
			}
		case err != nil:
			return nil, nil, os.NewSyscallError("fstatat", err)
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			d, err := openAt(layer, name, unix.O_RDONLY|unix.O_DIRECTORY)
			if err != nil {
				return nil, nil, err
			}
			v.open = append(v.open, d)
			dirs = append(dirs, d)
			if opaque(d, v.form) || v.hidden(layer, name) {
				return dirs, nil, nil
			}
		case len(dirs) > 0, st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0: // shadowed; a whiteout
			return dirs, nil, nil
		default:
			return nil, layer, nil
		}
	}
	return dirs, nil, nil
}

// hidden reports whether the directory of a layer has a whiteout file for name.
func (v *view) hidden(layer *os.File, name string) bool {
	var st unix.Stat_t
	return v.form == unpack.WhiteoutFiles &&
		unix.Fstatat(int(layer.Fd()), whiteoutPrefix+name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// opaque reports whether dir hides all that lower layers have there.
func opaque(dir *os.File, form unpack.Whiteouts) bool {
	if form == unpack.WhiteoutFiles {
		var st unix.Stat_t
		return unix.Fstatat(int(dir.Fd()), whiteoutOpaque, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
	}
	var value [1]byte
	n, err := unix.Fgetxattr(int(dir.Fd()), form.OpaqueXattr(), value[:])
	return err == nil && n == 1 && value[0] == 'y'
}

// hides tells whether the entry e of the directory from is a whiteout, and of
// what; of nothing if it is a mark of another kind.
func hides(from *os.File, form unpack.Whiteouts, e os.DirEntry) (name string, ok bool) {
	if form == unpack.WhiteoutFiles {
		if e.Name() == whiteoutOpaque {
			return "", true
		}
		return strings.CutPrefix(e.Name(), whiteoutPrefix)
	}
	if e.Type() != os.ModeDevice|os.ModeCharDevice {
		return "", false
	}
	var st unix.Stat_t
	err := unix.Fstatat(int(from.Fd()), e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW)
	return e.Name(), err == nil && st.Rdev == 0
}
