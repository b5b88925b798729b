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
	open []Dir // all that were opened
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
func (v *view) resolve(layers []string, path string) ([]Dir, error) {
	var root []Dir
	for i := len(layers) - 1; i >= 0; i-- {
		d, err := Open(layers[i])
		if err != nil {
			return nil, err
		}
		v.open = append(v.open, d)
		root = append(root, d)
	}
	if len(root) == 0 {
		return nil, fs.ErrNotExist
	}
	at := [][]Dir{root} // the way from the root; ".." goes back on it
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
func (v *view) lookup(in []Dir, name string) (dirs []Dir, link string, err error) {
	dirs, other, err := v.search(in, name)
	if err != nil || len(dirs) > 0 {
		return dirs, "", err
	}
	if other == nil {
		return nil, "", fs.ErrNotExist
	}
	link, err = other.Readlink(name)
	if errors.Is(err, unix.EINVAL) { // no link
		return nil, "", fs.ErrNotExist
	}
	return nil, link, err
}

// find reports whether name exists in a directory, and its directories if it
// is one.
func (v *view) find(in []Dir, name string) (dirs []Dir, exists bool, err error) {
	dirs, other, err := v.search(in, name)
	return dirs, len(dirs) > 0 || other != nil, err
}

// search goes down the layers of a directory to see what name is: directories,
// merged, or else something that the layer other has.
func (v *view) search(in []Dir, name string) (dirs []Dir, other Dir, err error) {
	for _, layer := range in {
		st, err := layer.Lstat(name)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENAMETOOLONG):
			if v.hidden(layer, name) {
				return dirs, nil, nil
			}
		case err != nil:
			return nil, nil, err
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			d, err := layer.Dir(name)
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
func (v *view) hidden(layer Dir, name string) bool {
	return v.form == unpack.WhiteoutFiles && has(layer, whiteoutPrefix+name)
}

func has(d Dir, name string) bool {
	_, err := d.Lstat(name)
	return err == nil
}

// opaque reports whether dir hides all that lower layers have there.
func opaque(dir Dir, form unpack.Whiteouts) bool {
	if form == unpack.WhiteoutFiles {
		return has(dir, whiteoutOpaque)
	}
	value, ok := dir.Xattr(form.OpaqueXattr())
	return ok && value == "y"
}

// hides tells whether the entry e of the directory from is a whiteout, and of
// what; of nothing if it is a mark of another kind.
func hides(from Dir, form unpack.Whiteouts, e os.DirEntry) (name string, ok bool) {
	if form == unpack.WhiteoutFiles {
		if e.Name() == whiteoutOpaque {
			return "", true
		}
		return strings.CutPrefix(e.Name(), whiteoutPrefix)
	}
	if e.Type() != os.ModeDevice|os.ModeCharDevice {
		return "", false
	}
	st, err := from.Lstat(e.Name())
	return e.Name(), err == nil && st.Rdev == 0
}
