package libcontainer

import (
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"berth/libcontainer/mount"
)

// kernelFS are the flags of every file system that the kernel itself fills.
const kernelFS = mount.NoSuid | mount.NoDev | mount.NoExec

// DefaultShm is the size of /dev/shm in bytes.
const DefaultShm = 64 << 20

// DefaultMounts are the mounts of the usual container. shm is the size of
// /dev/shm in bytes. The mount of type cgroup needs IO.Cgroup, and that of devpts,
// in a private user namespace, that group 5 is mapped.
func DefaultMounts(shm int64) []Mount {
	return []Mount{
		{Type: "proc", Destination: "/proc", Attr: kernelFS},
		{Type: "tmpfs", Destination: "/dev", Attr: mount.NoSuid, Options: []string{"mode=755", "size=65536k"}},
		{Type: "devpts", Destination: "/dev/pts", Attr: mount.NoSuid | mount.NoExec,
			Options: []string{"newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Type: "tmpfs", Destination: "/dev/shm", Attr: kernelFS,
			Options: []string{"mode=1777", "size=" + strconv.FormatInt(shm, 10)}},
		{Type: "mqueue", Destination: "/dev/mqueue", Attr: kernelFS},
		{Type: "sysfs", Destination: "/sys", Attr: kernelFS | mount.ReadOnly},
		{Type: "cgroup", Destination: "/sys/fs/cgroup", Attr: kernelFS | mount.ReadOnly},
	}
}

// DefaultDevices are the nodes in /dev of the usual container.
func DefaultDevices() []Device {
	return []Device{
		{Path: "/dev/null", Type: 'c', Major: 1, Minor: 3, Mode: 0o666},
		{Path: "/dev/zero", Type: 'c', Major: 1, Minor: 5, Mode: 0o666},
		{Path: "/dev/full", Type: 'c', Major: 1, Minor: 7, Mode: 0o666},
		{Path: "/dev/random", Type: 'c', Major: 1, Minor: 8, Mode: 0o666},
		{Path: "/dev/urandom", Type: 'c', Major: 1, Minor: 9, Mode: 0o666},
		{Path: "/dev/tty", Type: 'c', Major: 5, Minor: 0, Mode: 0o666},
	}
}

// DefaultMasked are the paths that tell about the host, or let one control it,
// without belonging to any namespace.
func DefaultMasked() []string { return slices.Concat(masked, throttlePaths()) }

var masked = []string{
	"/proc/acpi",
	"/proc/asound",
	"/proc/interrupts",
	"/proc/kcore",
	"/proc/keys",
	"/proc/latency_stats",
	"/proc/sched_debug",
	"/proc/scsi",
	"/proc/timer_list",
	"/proc/timer_stats",
	"/sys/devices/virtual/powercap",
	"/sys/firmware",
	"/sys/fs/selinux",
}

// throttlePaths are one directory for each processor, which tell the load of the
// host. They are looked for once: processors that are plugged in later have
// theirs only in containers' /sys, masked or not, from the next start on.
var throttlePaths = sync.OnceValue(func() []string {
	paths, _ := filepath.Glob("/sys/devices/system/cpu/cpu*/thermal_throttle")
	return paths
})

// DefaultReadOnly are the paths of /proc that no container may write.
func DefaultReadOnly() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
