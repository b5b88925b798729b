package main

import (
	"fmt"
	"path/filepath"
	"slices"

	"berth/internal/fault"
	"berth/services/imaged/graph"
	"berth/services/imaged/graph/overlay"
	"berth/services/imaged/graph/plaincopy"
	"berth/services/imaged/trash"

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
	{"overlay", "l", overlay.Probe, func(dir string, can *trash.Can) (graph.Driver, error) {
		return overlay.New(dir, can)
	}},
	{"erofs", "le", overlay.ProbeEROFS, func(dir string, can *trash.Can) (graph.Driver, error) {
		return overlay.NewEROFS(dir, overlay.BlockSize(), can)
	}},
	{"copy", "lc", func(string) error { return nil }, func(dir string, can *trash.Can) (graph.Driver, error) {
		return plaincopy.New(dir, can)
	}},
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
		if held == "" {
			return nil, fmt.Errorf("graph driver %s: %w", name, err)
		}
		return nil, fault.FailedPrecondition.Errorf("DRIVER_UNUSABLE", "%s holds layers of graph driver %s, which cannot be used: %w", dir, name, err).
			Hint("nothing was changed: start the kernel that it was last used with, or use another root")
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
	if err := overlay.Probe(dir); err != nil {
		log.Warn("containers get a copy of their image each, as overlayfs cannot be used", "error", err)
		return openDriver(dir, "copy", can, log)
	}
	return openDriver(dir, "overlay", can, log)
}
