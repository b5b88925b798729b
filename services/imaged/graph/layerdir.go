package graph

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"berth/internal/faultpoint"
	"berth/services/imaged/graph/merge"
	"berth/services/imaged/trash"
	"berth/services/imaged/unpack"

	"golang.org/x/sys/unix"
)

var (
	layerUnpacked  = faultpoint.Declare("imaged.layer-unpacked", "a layer is unpacked, not yet compared with its digest")
	layerSynced    = faultpoint.Declare("imaged.layer-synced", "a layer is on the disk, not yet visible")
	layerCommitted = faultpoint.Declare("imaged.layer-committed", "a layer is visible, no record refers to it yet")
)

// LayerDir keeps layers as directories of files, or each as one file with an
// EROFS image; the part of a driver that does not depend on how they are stacked.
//
//	DIR/NAME        a committed layer; NAME is a number in base 36
//	DIR/NAME/erofs  its image, with nothing beside
//	DIR/new.NAME    being unpacked
type LayerDir struct {
	dir    string
	form   unpack.Options
	trash  *trash.Can
	behind WriteBehind

	mu   sync.Mutex
	next uint64 // number of the next layer
}

const stagingPrefix = "new."

// OpenLayerDir opens the layers in dir, made if need be, and removes half-made
// ones. Layers are unpacked in the given form and deleted by way of can, which
// must be on the same file system.
func OpenLayerDir(dir string, form unpack.Options, can *trash.Can) (*LayerDir, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	l := &LayerDir{dir: dir, form: form, trash: can, next: 1}
	names, err := namesIn(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if n, ok := layerNumber(name); ok {
			l.next = max(l.next, n+1)
		} else if !strings.HasPrefix(name, stagingPrefix) {
			continue // the driver's own
		} else if err := can.Throw(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// namesIn lists a directory, in no order: of 100,000 layers that matters.
func namesIn(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// layerNumber undoes layerName and refuses what that would not have made.
func layerNumber(name string) (uint64, bool) {
	n, err := strconv.ParseUint(name, 36, 63)
	return n, err == nil && n > 0 && layerName(n) == name
}

func layerName(n uint64) string { return strconv.FormatUint(n, 36) }

// Path is where the layer name is.
func (l *LayerDir) Path(name string) string { return filepath.Join(l.dir, name) }

// Root is the directory with the content of the layer name, or its image.
func (l *LayerDir) Root(name string) string { return l.root(l.Path(name)) }

func (l *LayerDir) root(path string) string {
	if l.form.Image {
		return filepath.Join(path, unpack.ImageFile)
	}
	return path
}

// Layers are the names of all committed layers.
func (l *LayerDir) Layers() ([]string, error) { return LayersIn(l.dir) }

// LayersIn are the names of the layers in a directory that need not exist.
func LayersIn(dir string) ([]string, error) {
	names, err := namesIn(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return slices.DeleteFunc(names, func(name string) bool {
		_, ok := layerNumber(name)
		return !ok
	}), err
}

// Remove makes the layer name vanish. Removing what is not there succeeds.
func (l *LayerDir) Remove(name string) error {
	if _, ok := layerNumber(name); !ok {
		return fmt.Errorf("%q is not the name of a layer", name)
	}
	if err := l.trash.Throw(l.Path(name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Compare tells the first difference between the layer name and what was staged
// of the archive it should have come from; empty if there is none.
func (l *LayerDir) Compare(ctx context.Context, name string, staged Staged) (string, error) {
	layer, err := merge.Open(l.Root(name))
	if err != nil {
		return "", err
	}
	defer layer.Close()
	fresh, err := merge.Open(l.root(staged.(*stagedDir).path))
	if err != nil {
		return "", err
	}
	defer fresh.Close()
	return merge.Compare(ctx, layer, fresh)
}

// CopyOut copies the directory path of a stack into the directory to.
func (l *LayerDir) CopyOut(ctx context.Context, layers []Layer, path, to string) error {
	return merge.CopyOut(ctx, l.Paths(layers), l.form.Whiteouts, path, to)
}

// Paths are the roots of a stack, bottom first.
func (l *LayerDir) Paths(layers []Layer) (all []string) {
	for _, layer := range Visible(layers) {
		all = append(all, l.Root(layer.Name))
	}
	return all
}

// Stage has a layer unpacked.
func (l *LayerDir) Stage(ctx context.Context, make Maker) (Staged, error) {
	l.mu.Lock()
	name := layerName(l.next)
	l.next++
	l.mu.Unlock()

	s := &stagedDir{layers: l, path: l.Path(stagingPrefix + name), layer: Layer{Name: name}}
	// Containers' users must be able to traverse the root of a layer; what the
	// layer says about its root is put on the writable directory above it.
	if err := os.Mkdir(s.path, 0o755); err != nil {
		return nil, err
	}
	if err := s.unpack(ctx, make); err != nil {
		s.Discard()
		return nil, err
	}
	return s, nil
}

// stagedDir is the Staged of LayerDir.
type stagedDir struct {
	layers *LayerDir
	path   string // empty when committed or discarded
	dir    *os.File
	layer  Layer
}

func (s *stagedDir) unpack(ctx context.Context, make Maker) (err error) {
	if s.dir, err = os.Open(s.path); err != nil {
		return err
	}
	end, err := s.layers.behind.Begin(s.dir)
	if err != nil {
		return err
	}
	defer end()
	result, err := make(ctx, s.dir, s.layers.form)
	if err != nil {
		return err
	}
	s.layer.Bytes, s.layer.Entries = result.Bytes, result.Entries
	s.layer.RootSet, s.layer.RootOpaque = result.RootSet, result.RootOpaque
	return layerUnpacked.Hit()
}

func (s *stagedDir) Layer() Layer { return s.layer }

// Sync writes the whole file system out: thousands of small files are faster
// on the disk this way than by an fsync for each.
func (s *stagedDir) Sync() error {
	if err := unix.Syncfs(int(s.dir.Fd())); err != nil {
		return fmt.Errorf("sync layer: %w", os.NewSyscallError("syncfs", err))
	}
	return nil
}

func (s *stagedDir) Commit() error {
	if err := layerSynced.Hit(); err != nil {
		return err
	}
	if err := os.Rename(s.path, s.layers.Path(s.layer.Name)); err != nil {
		return err
	}
	s.path = ""
	s.dir.Close()
	if err := syncDir(s.layers.dir); err != nil {
		return err
	}
	return layerCommitted.Hit()
}

func (s *stagedDir) Discard() {
	if s.path == "" {
		return
	}
	if s.dir != nil {
		s.dir.Close()
	}
	// At once and not by way of the trash: a full disk is a likely reason to be
	// here, and the caller is told when the space is back.
	os.RemoveAll(s.path)
	s.path = ""
}

// SyncAll writes the whole file system out that a directory is on.
func SyncAll(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(d.Fd())))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
