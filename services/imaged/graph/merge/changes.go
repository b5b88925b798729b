package merge

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"

	"berth/services/imaged/unpack"
)

// Kind is what happened to a file.
type Kind int

const (
	Modified Kind = iota
	Added
	Deleted
)

// Change is one difference between a writable layer and the stack below it.
type Change struct {
	Kind Kind
	Path string // absolute, as the container sees it
}

// Changes lists what the writable layer upper changes in the stack of layers
// (their directories, bottom first), sorted by path within each directory. A
// directory counts as modified when something in it is. A file is modified if
// it was written to, be it with what it held before.
func Changes(upper string, layers []string, form unpack.Whiteouts) ([]Change, error) {
	c := changes{view: view{form: form}}
	defer c.view.close()
	lower, err := c.view.resolve(layers, "/")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // no layers at all: everything is new
		return nil, err
	}
	root, err := Open(upper)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return c.all, c.dir(root, lower, "/")
}

type changes struct {
	view view
	all  []Change
}

func (c *changes) add(k Kind, path string) { c.all = append(c.all, Change{k, path}) }

// dir compares the directory upper with the same one of the stack.
func (c *changes) dir(upper Dir, lower []Dir, at string) error {
	entries, err := upper.Entries()
	if err != nil {
		return err
	}
	if opaque(upper, c.view.form) {
		if err := c.replaced(entries, lower, at); err != nil {
			return err
		}
		lower = nil
	}
	for _, e := range entries {
		if err := c.entry(upper, lower, e, path.Join(at, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (c *changes) entry(upper Dir, lower []Dir, e os.DirEntry, at string) error {
	defer c.view.closeFrom(len(c.view.open))
	dirs, exists, err := c.view.find(lower, e.Name())
	if err != nil {
		return err
	}
	if _, whiteout := hides(upper, c.view.form, e); whiteout {
		if exists {
			c.add(Deleted, at)
		}
		return nil
	}
	if exists {
		c.add(Modified, at)
	} else {
		c.add(Added, at)
	}
	if !e.IsDir() {
		return nil
	}
	sub, err := upper.Dir(e.Name())
	if err != nil {
		return err
	}
	defer sub.Close()
	return c.dir(sub, dirs, at)
}

// replaced lists what an opaque directory took away.
func (c *changes) replaced(entries []os.DirEntry, lower []Dir, at string) error {
	kept := map[string]bool{}
	for _, e := range entries {
		kept[e.Name()] = true
	}
	var gone []string
	for _, layer := range lower {
		entries, err := layer.Entries()
		if err != nil {
			return err
		}
		for _, e := range entries {
			n := e.Name()
			if kept[n] {
				continue
			}
			kept[n] = true
			if _, exists, err := c.view.find(lower, n); err != nil {
				return err
			} else if exists {
				gone = append(gone, n)
			}
		}
	}
	slices.Sort(gone)
	for _, n := range gone {
		c.add(Deleted, path.Join(at, n))
	}
	return nil
}
