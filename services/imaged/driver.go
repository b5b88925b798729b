package main

import (
	"fmt"
	"path/filepath"
	"slices"

	"berth/services/imaged/graph"
	"berth/services/imaged/graph/overlay"
	"berth/services/imaged/graph/plaincopy"
	"berth/services/imaged/trash"
	"berth/services/imaged/unpack"

	"github.com/hashicorp/go-hclog"
)

// kind is a graph driver. Each has its own layer directory, with a short name as
// it is part of mount options, so that a store says what it holds.
type kind struct {
	name, layers string
	// probe tells what keeps the driver from being used in dir.
	probe func(dir string) error
	open  func(dir string, can *trash.Can) (graph.Driver, error)
}

// kinds are all of them, the best first. EROFS is faster to pull and slower to
// read from; ARCHITECTURE.md has the figures.
var kinds = []kind{
	{"overlay", "l", probeOverlay, func(dir string, can *trash.Can) (graph.Driver, error) {
		form, err := overlay.Probe(filepath.Dir(dir))
		if err != nil {
			return nil, err
		}
		return overlay.New(dir, form, can)
	}},
	{"erofs", "le", probeEROFS, func(dir string, can *trash.Can) (graph.Driver, error) {
		form, blockSize, err := formEROFS(filepath.Dir(dir))
		if err != nil {
			return nil, err
		}
		return overlay.NewEROFS(dir, form, blockSize, can)
	}},
	{"copy", "lc", func(string) error { return nil }, func(dir string, can *trash.Can) (graph.Driver, error) {
		return plaincopy.New(dir, can)
	}},
}

func probeOverlay(dir string) error {
	_, err := overlay.Probe(dir)
	return err
}

func probeEROFS(dir string) error {
	_, _, err := formEROFS(dir)
	return err
}

// formEROFS is how images are made for this host. Writable layers beside them must
// be able to hide what is in them.
func formEROFS(dir string) (unpack.Whiteouts, int, error) {
	form, err := overlay.Probe(dir)
	if err != nil {
		return 0, 0, err
	}
	blockSize, err := overlay.ProbeEROFS()
	return form, blockSize, err
}

// openDriver opens the graph driver called name for the store in dir. With "auto"
// it is the one whose layers the store has, or in a new store the best that works
// here.
func openDriver(dir, name string, can *trash.Can, log hclog.Logger) (graph.Driver, error) {
	held, err := heldBy(dir)
	if err != nil {
		return nil, err
	}
	if name == "plaincopy" {
		name = "copy"
	}
	if name == "auto" || name == "" {
		name = held
	}
	if name == "" {
		return bestDriver(dir, can, log)
	}
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })
	if i < 0 {
		return nil, fmt.Errorf("graph driver %q is none of auto, overlay, erofs, copy", name)
	}
	k := kinds[i]
	if held != "" && held != name {
		return nil, fmt.Errorf("graph driver %s cannot be used with %s, which holds layers of driver %s: set driver to that or to auto, or remove all images first", name, dir, held)
	}
	if err := k.probe(dir); err != nil {
		return nil, fmt.Errorf("graph driver %s: %w", name, err)
	}
	return k.open(filepath.Join(dir, k.layers), can)
}

// heldBy is the name of the driver whose layers the store in dir has; empty if it
// has none.
func heldBy(dir string) (string, error) {
	for _, k := range kinds {
		names, err := graph.LayersIn(filepath.Join(dir, k.layers))
		if err != nil {
			return "", err
		}
		if len(names) > 0 {
			return k.name, nil
		}
	}
	return "", nil
}

func bestDriver(dir string, can *trash.Can, log hclog.Logger) (graph.Driver, error) {
	if err := probeOverlay(dir); err != nil {
		log.Warn("containers get a copy of their image each, as overlayfs cannot be used", "error", err)
		return openDriver(dir, "copy", can, log)
	}
	return openDriver(dir, "overlay", can, log)
}
