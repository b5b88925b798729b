package feature

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup/devices"
)

func cgroups() []probe {
	controller := func(name, lost string) probe {
		return probe{
			Feature{Name: "cgroup " + name, Since: "3.10", Lost: lost,
				Do: "Mount the controller; if /proc/cgroups does not list it as enabled, look for cgroup_disable= on the kernel's command line, and boot with cgroup_enable=" + name + "."},
			func(h *host) (State, string) { return tryController(h, name) },
		}
	}
	pids := controller("pids", "The number of processes is not limited: a fork bomb harms the host.")
	pids.Since = "4.3"
	return []probe{{
		Feature{Name: "cgroups", Needed: true, Since: "3.10",
			Lost: "Containers can be neither limited, nor counted, nor killed as a whole.",
			Do:   "Mount them, as with: mount -t cgroup2 none /sys/fs/cgroup."},
		func(h *host) (State, string) {
			if h.layoutE != nil {
				return No, h.layoutE.Error()
			}
			detail := h.layout.Mode.String()
			for _, tree := range h.layout.Hierarchies {
				if tree.ReadOnly {
					detail += ", " + tree.String() + " is read-only"
				}
			}
			return Yes, detail
		},
	},
		controller("memory", "Memory is neither limited nor counted."),
		controller("cpu", "Processor time is neither limited nor weighted."),
		controller("cpuset", "Containers cannot be bound to processors."),
		pids,
		controller("devices", "Containers can use any device node they can make or are given."),
		controller("freezer", "Containers cannot be paused, and are killed process by process."),
		controller("io", "Block I/O is neither limited nor counted."),
		{
			Feature{Name: "eBPF device filter", Since: "4.15",
				Lost: "On cgroup v2, containers can use any device node they can make or are given.",
				Do:   "Run a kernel with CONFIG_CGROUP_BPF, 4.15 or later."},
			func(*host) (State, string) {
				program, err := devices.Load(devices.Default())
				if err == nil {
					program.Close()
				}
				return verdict(err)
			},
		}}
}

// tryController looks where a controller is. Two of them are no controllers on v2: devices are filtered by
// eBPF, and freezing is built in.
func tryController(h *host, name string) (State, string) {
	if h.layoutE != nil {
		return No, h.layoutE.Error()
	}
	names := []string{name}
	if name == "io" {
		names = append(names, "blkio")
	}
	for _, n := range names {
		tree, ok := h.layout.Find(n)
		switch {
		case ok && tree.ReadOnly:
			return No, "mounted read-only on " + tree.Mountpoint
		case ok && tree.V2:
			return Yes, "v2"
		case ok:
			return Yes, "v1"
		}
	}
	v2, ok := h.layout.Unified()
	if ok && name == "freezer" {
		dir, err := v2.OwnDir()
		if err != nil {
			return Unknown, err.Error()
		}
		if dir == v2.Mountpoint { // the root cannot be frozen, and so has no such file
			r, text, err := Kernel()
			if err == nil && r.Before(Release{5, 2, 0}) {
				return No, "cgroup v2 of " + text
			}
			return Yes, "v2"
		}
		_, err = os.Stat(dir + "/cgroup.freeze")
		if errors.Is(err, os.ErrNotExist) {
			return No, "cgroup v2 without cgroup.freeze"
		}
		state, detail := verdict(err)
		if state == Yes {
			detail = "v2"
		}
		return state, detail
	}
	if ok && name == "devices" {
		program, err := devices.Load(devices.Default())
		switch {
		case err == nil:
			program.Close()
			return Yes, "v2, by eBPF"
		case errors.Is(err, unix.EPERM):
			return Unknown, asRoot(err)
		}
		return No, err.Error()
	}
	return No, "not mounted"
}
