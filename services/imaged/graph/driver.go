// Package graph keeps unpacked layers and stacks them into root file systems.
//
// A [Driver] knows one way of doing so. This package has the contract and the
// parts that drivers share; overlay (which has two) and plaincopy are the
// drivers, graphtest is the suite all must pass.
package graph

import (
	"context"
	"io"
	"os"

	"berth/services/imaged/graph/merge"
	"berth/services/imaged/unpack"
)

// Driver turns layers' archives into something that can be stacked, and stacks
// of layers into root file systems for containers. It never mounts anything: it
// answers with a [Recipe], and the container's setup process mounts inside the
// container's own namespace.
//
// # The life of a layer
//
//	Stage ──► Staged ──Sync──► on disk ──Commit──► committed ──Remove──► gone
//	             └──Discard──► gone
//
// Layers are independent of one another: Stage neither needs nor looks at the
// layers that will be below, so that all layers of an image unpack at once.
// Who reads the archive and makes the layer of it is not the driver but the
// caller's [Maker], mostly in a process of its own; between Stage and Commit the
// caller decides whether what was read is what it wanted, by its digest. Until Commit
// nobody sees the layer, and New removes what an earlier process left in that
// state.
//
// A committed layer never changes. It has a name of a few characters, chosen by
// the driver and unique in its directory: names go into mount options, which
// older kernels limit to one page for the whole stack. What a layer is (its
// digest, who uses it) is not the driver's business; the caller keeps the
// [Layer] values, and after a crash compares them with Layers and removes those
// it does not know.
//
// # The life of a root file system
//
// The caller makes an empty directory and owns it; the driver fills it in
// Prepare and can answer with the same recipe later by Recipe. Deleting the
// directory ends it. The caller keeps the layers of the stack committed as long
// as the directory exists. Nothing is synced: what a crash loses is released.
//
// Methods may be called from any goroutine. An error that wraps
// unpack.ErrRefused blames the archive.
type Driver interface {
	// Name is "overlay", "erofs" or "plaincopy"; it is part of the layer directory's
	// path, since drivers do not understand each other's layers.
	Name() string

	// Stage makes a directory, has a layer made in it, and gives that.
	Stage(ctx context.Context, make Maker) (Staged, error)

	// Layers are the names of all committed layers.
	Layers() ([]string, error)

	// Remove makes the layer name vanish and frees its space in the
	// background. Removing what is not there succeeds.
	Remove(name string) error

	// Prepare fills the empty directory dir with what a writable root file
	// system on top of layers (bottom first, possibly none) needs.
	Prepare(ctx context.Context, dir string, layers []Layer) (Recipe, error)

	// CopyOut copies what the stack has in the directory path, which may lead
	// through links inside the stack, into the empty directory to, and gives
	// that its owner and mode. If there is no such directory it does nothing.
	CopyOut(ctx context.Context, layers []Layer, path, to string) error

	// Recipe says how to mount what Prepare made in dir of the same layers.
	Recipe(dir string, layers []Layer) Recipe

	// WriteTree writes the archive of the root file system in dir, which may be
	// in use, as its container sees it.
	WriteTree(ctx context.Context, w io.Writer, dir string, layers []Layer) error
}

// Maker makes a layer in dir, which is empty and open for reading: with o, in
// which the driver has said what it wants made, and the limits are the Maker's.
// After an error the content of dir is of no use. The driver closes dir.
type Maker func(ctx context.Context, dir *os.File, o unpack.Options) (unpack.Result, error)

// Differ is a driver that can tell what a container changed without comparing
// whole trees.
type Differ interface {
	// Changes lists what differs between the root file system in dir and the
	// stack it was made of, while it may be in use.
	Changes(dir string, layers []Layer) ([]merge.Change, error)

	// WriteLayer writes these changes as the archive of a layer.
	WriteLayer(ctx context.Context, w io.Writer, dir string, layers []Layer) error
}

// Comparer is a driver that can tell whether a layer is still what was unpacked.
type Comparer interface {
	// Compare tells the first difference between the layer name and what was
	// staged of the same archive just now; empty if there is none.
	Compare(ctx context.Context, name string, staged Staged) (difference string, err error)
}

// Staged is an unpacked layer nobody sees yet. It is for one goroutine.
type Staged interface {
	// Layer describes it; it may be used for stacking after Commit.
	Layer() Layer
	// Sync returns once the layer is on the disk.
	Sync() error
	// Commit makes a synced layer visible.
	Commit() error
	// Discard deletes the layer; after Commit it does nothing.
	Discard()
}

// Layer is what must be remembered of a layer to stack it.
type Layer struct {
	Name    string `json:"name"`
	Bytes   int64  `json:"bytes"`   // sum of file sizes
	Entries int64  `json:"entries"` // files of all kinds

	// RootSet: the layer says who owns "/" and with which mode.
	RootSet bool `json:"root_set,omitempty"`
	// RootOpaque: the layer hides all below it.
	RootOpaque bool `json:"root_opaque,omitempty"`
}

// Recipe says how to mount a root file system. All paths are absolute.
type Recipe struct {
	Type  string   // "overlay" or "bind"
	Lower []string // overlay: read-only layers, top first; never empty
	Upper string   // overlay: the writable layer
	Work  string   // overlay: overlayfs's own scratch directory
	// UserXattr: overlay must be mounted with "userxattr" (Linux 5.11).
	UserXattr bool
	// Images: overlay: each of Lower is a file with an EROFS image, to be mounted.
	Images bool
	Source string // bind: the directory
}

// Visible are the layers of a stack, bottom first, that are not hidden whole by
// one above them.
func Visible(layers []Layer) []Layer {
	for i := len(layers) - 1; i > 0; i-- {
		if layers[i].RootOpaque {
			return layers[i:]
		}
	}
	return layers
}

// RootOf is the layer that says who owns the root of the stack; false if none
// does, which means root:root 0755.
func RootOf(layers []Layer) (Layer, bool) {
	for i := len(layers) - 1; i >= 0; i-- {
		if layers[i].RootSet {
			return layers[i], true
		}
	}
	return Layer{}, false
}
