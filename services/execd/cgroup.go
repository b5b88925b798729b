package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"berth/internal/config"
	"berth/libcontainer/cgroup"
)

// cgroupParent is the cgroup that containers live under: the configured one,
// told apart by instance, at the root of each tree. On pure v2 under systemd,
// which delegates the unit's own part of the tree to us (Delegate=yes), it is
// there, and this process moves into a leaf of its own beside it, for a cgroup
// whose children have controllers holds no process itself. The monitor is born
// in that leaf.
func cgroupParent(cfg *config.Config) (string, error) {
	name := cfg.Execd.CgroupParent
	if name == config.Default().Execd.CgroupParent {
		name = cfg.Named(name)
	}
	layout, err := cgroup.Detect()
	if err != nil {
		return "", fmt.Errorf("find cgroups: %w", err)
	}
	tree, ok := layout.Unified()
	if !ok || layout.Mode != cgroup.V2 || os.Getenv("INVOCATION_ID") == "" || path.IsAbs(name) {
		return name, nil
	}
	unit, leaf := path.Clean(tree.Own), "daemon"
	if path.Base(unit) == leaf {
		unit = path.Dir(unit) // started anew in it: DelegateSubgroup=
	}
	if unit == "/" || !strings.HasSuffix(unit, ".service") {
		return name, nil
	}
	dir := filepath.Join(tree.Mountpoint, strings.TrimPrefix(unit, tree.Root), leaf)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make cgroup for execd: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		return "", fmt.Errorf("move execd into its own cgroup: %w", err)
	}
	return path.Join(unit, name), nil
}
