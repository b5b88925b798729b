package execd

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"berth/internal/config"
	"berth/libcontainer/cgroup"
)

// containersUnit is the systemd unit that has the containers' cgroup delegated to
// it, beside ours.
const containersUnit = "berth-containers.service"

// cgroupParent is the cgroup that containers live under: the configured one,
// told apart by instance, at the root of each tree. On pure v2 under systemd, to
// which the tree belongs but for what it delegates (Delegate=yes), it is in the
// cgroup of [containersUnit]. It is not in our own unit's: a cgroup whose
// children have controllers holds no process itself (cgroups(7), "no internal
// processes"), so systemd before 254 could start no execd as long as there are
// containers.
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
	unit := path.Join(path.Dir(path.Clean(tree.Own)), containersUnit)
	if _, err := os.Stat(filepath.Join(tree.Mountpoint, strings.TrimPrefix(unit, tree.Root))); err != nil {
		return name, nil // not started by our unit files
	}
	return path.Join(unit, name), nil
}
