// Package plaincopy is the graph driver for hosts without a usable overlayfs:
// each container gets a copy of its image. It needs nothing of the kernel, and
// where the file system can share blocks (btrfs, XFS with reflink) a copy takes
// little more than its directory entries.
//
// Layers keep their whiteouts as files (unpack.WhiteoutFiles), which work on any
// file system, and are applied bottom to top while copying.
package plaincopy

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"berth/services/imaged/graph"
	"berth/services/imaged/graph/merge"
	"berth/services/imaged/trash"
	"berth/services/imaged/unpack"
)

// Driver copies layers.
type Driver struct{ *graph.LayerDir }

var _ graph.Driver = (*Driver)(nil)

// New opens the driver's layers in dir.
func New(dir string, can *trash.Can) (*Driver, error) {
	layers, err := graph.OpenLayerDir(dir, unpack.Options{Whiteouts: unpack.WhiteoutFiles}, can)
	if err != nil {
		return nil, err
	}
	return &Driver{layers}, nil
}

// Name is "plaincopy".
func (*Driver) Name() string { return "plaincopy" }

// Prepare copies the stack into dir.
func (d *Driver) Prepare(ctx context.Context, dir string, layers []graph.Layer) (graph.Recipe, error) {
	r := d.Recipe(dir, layers)
	if err := os.Mkdir(r.Source, 0o755); err != nil {
		return graph.Recipe{}, err
	}
	root, err := os.Open(r.Source)
	if err != nil {
		return graph.Recipe{}, err
	}
	defer root.Close()
	for _, l := range graph.Visible(layers) {
		if err := d.apply(ctx, root, l); err != nil {
			return graph.Recipe{}, err
		}
	}
	return r, d.dressRoot(root, layers)
}

// apply copies one layer over what is in root.
func (d *Driver) apply(ctx context.Context, root *os.File, l graph.Layer) error {
	layer, err := merge.Open(d.Path(l.Name))
	if err != nil {
		return err
	}
	defer layer.Close()
	return merge.Apply(ctx, layer, unpack.WhiteoutFiles, root)
}

// dressRoot gives root the owner and mode that the image's root has.
func (d *Driver) dressRoot(root *os.File, layers []graph.Layer) error {
	l, ok := graph.RootOf(layers)
	if !ok {
		return nil
	}
	layer, err := merge.Open(d.Path(l.Name))
	if err != nil {
		return err
	}
	defer layer.Close()
	return merge.Dress(layer, root)
}

// WriteTree writes the archive of the copy.
func (d *Driver) WriteTree(ctx context.Context, w io.Writer, dir string, layers []graph.Layer) error {
	return merge.WriteTree(ctx, w, []string{d.Recipe(dir, layers).Source}, unpack.OverlayUser) // whiteout files are no marks there
}

// Recipe binds the copy.
func (*Driver) Recipe(dir string, _ []graph.Layer) graph.Recipe {
	return graph.Recipe{Type: "bind", Source: filepath.Join(dir, "root")}
}
