package cgroup

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Mode is how a host mixes the two versions.
type Mode int

const (
	V1     Mode = iota + 1 // v1 trees only
	Hybrid                 // v1 trees, and a v2 tree beside them
	V2                     // the v2 tree only
)

func (m Mode) String() string {
	return [...]string{"none", "v1", "hybrid", "v2"}[m]
}

// Hierarchy is one mounted tree.
type Hierarchy struct {
	V2          bool
	Controllers []string // v2: those the mounted root offers. Empty for a named v1 tree
	Name        string   // v1: "systemd" for name=systemd
	Mountpoint  string
	Root        string // the cgroup that is mounted there, seen from this process's cgroup namespace: mostly "/"
	Own         string // the cgroup this process is in, as /proc/self/cgroup has it
	ReadOnly    bool
	NSDelegate  bool // v2: a cgroup namespace is a delegation boundary
}

// Layout is what [Detect] found out about the host.
type Layout struct {
	Mode        Mode
	Hierarchies []Hierarchy
}

// Detect reads /proc/self/mountinfo, /proc/cgroups and /proc/self/cgroup. The error is ErrNotAvailable when no
// cgroup file system is mounted.
func Detect() (Layout, error) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Layout{}, err
	}
	subsystems, _ := os.ReadFile("/proc/cgroups") // absent on kernels without v1: then nothing there is of interest
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return Layout{}, err
	}
	l := parseLayout(string(mountinfo), string(subsystems), string(own))
	for i := range l.Hierarchies {
		if h := &l.Hierarchies[i]; h.V2 {
			b, _ := os.ReadFile(h.Mountpoint + "/cgroup.controllers")
			h.Controllers = strings.Fields(string(b))
		}
	}
	if len(l.Hierarchies) == 0 {
		return l, &NotAvailableError{Controller: "cgroup", Reason: "no cgroup file system is mounted; mount one, as with: mount -t cgroup2 none /sys/fs/cgroup"}
	}
	return l, nil
}

// Find returns the tree a controller ("memory", or "name=systemd") is in.
func (l Layout) Find(controller string) (Hierarchy, bool) {
	for _, h := range l.Hierarchies {
		if slices.Contains(h.Controllers, controller) || controller == "name="+h.Name {
			return h, true
		}
	}
	return Hierarchy{}, false
}

// Unified returns the v2 tree.
func (l Layout) Unified() (Hierarchy, bool) {
	for _, h := range l.Hierarchies {
		if h.V2 {
			return h, true
		}
	}
	return Hierarchy{}, false
}

// String is what the tree is known by in messages: "cpu,cpuacct", "name=systemd" or "v2".
func (h Hierarchy) String() string {
	switch {
	case h.V2:
		return "v2"
	case h.Name != "":
		return "name=" + h.Name
	}
	return strings.Join(h.Controllers, ",")
}

// dir is the directory of a cgroup. Paths count from the mounted root, with or without a leading slash.
func (h Hierarchy) dir(cgroup string) string {
	if cgroup = strings.Trim(cgroup, "/"); cgroup == "" {
		return h.Mountpoint
	}
	return h.Mountpoint + "/" + cgroup
}

// OwnDir is the directory of the cgroup this process is in. It may lie outside of what is mounted, when the
// mount shows a subtree (a container without a cgroup namespace) or the namespace was entered later ("/../x").
func (h Hierarchy) OwnDir() (string, error) {
	rel, under := strings.CutPrefix(h.Own, strings.TrimSuffix(h.Root, "/"))
	if !under || rel != "" && rel[0] != '/' || strings.HasPrefix(h.Own, "/..") || h.Own == "" {
		return "", errors.New("own cgroup " + strconv.Quote(h.Own) + " is outside of what is mounted on " + h.Mountpoint)
	}
	return h.dir(rel), nil
}

// parseLayout is Detect without the host.
func parseLayout(mountinfo, subsystems, own string) Layout {
	known := parseSubsystems(subsystems)
	membership := parseOwn(own)
	var l Layout
	for line := range strings.Lines(mountinfo) {
		h, ok := parseMount(strings.TrimSuffix(line, "\n"), known)
		if !ok {
			continue
		}
		h.Own = membership[h.key()]
		l.add(h)
	}
	v1 := slices.ContainsFunc(l.Hierarchies, func(h Hierarchy) bool { return !h.V2 })
	v2 := slices.ContainsFunc(l.Hierarchies, func(h Hierarchy) bool { return h.V2 })
	switch {
	case v1 && v2:
		l.Mode = Hybrid
	case v1:
		l.Mode = V1
	case v2:
		l.Mode = V2
	}
	return l
}

// add appends a tree, or replaces an earlier mount of the same tree if this one is the more useful:
// writable before read-only, the whole tree before a part. Equal ones: the first wins.
func (l *Layout) add(h Hierarchy) {
	for i, old := range l.Hierarchies {
		if old.key() != h.key() {
			continue
		}
		if old.ReadOnly && !h.ReadOnly || old.ReadOnly == h.ReadOnly && len(h.Root) < len(old.Root) {
			l.Hierarchies[i] = h
		}
		return
	}
	l.Hierarchies = append(l.Hierarchies, h)
}

// key names a tree as the second field of /proc/self/cgroup does, with the controllers in order.
func (h Hierarchy) key() string {
	if h.V2 {
		return ""
	}
	parts := slices.Clone(h.Controllers)
	if h.Name != "" {
		parts = append(parts, "name="+h.Name)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// parseMount takes one line of mountinfo apart, proc_pid_mountinfo(5):
//
//	36 35 98:0 /root /mountpoint rw,noatime shared:1 - cgroup cgroup rw,cpu,cpuacct
func parseMount(line string, known []string) (Hierarchy, bool) {
	before, after, ok := strings.Cut(line, " - ")
	left, right := strings.Fields(before), strings.Fields(after)
	if !ok || len(left) < 6 || len(right) < 3 {
		return Hierarchy{}, false
	}
	h := Hierarchy{
		V2:         right[0] == "cgroup2",
		Root:       unescape(left[3]),
		Mountpoint: unescape(left[4]),
	}
	if !h.V2 && right[0] != "cgroup" {
		return Hierarchy{}, false
	}
	super := strings.Split(right[2], ",")
	h.ReadOnly = slices.Contains(strings.Split(left[5], ","), "ro") || slices.Contains(super, "ro")
	for _, option := range super {
		name, named := strings.CutPrefix(option, "name=")
		switch {
		case h.V2:
			h.NSDelegate = h.NSDelegate || option == "nsdelegate"
		case named:
			h.Name = name
		case slices.Contains(known, option):
			h.Controllers = append(h.Controllers, option)
		}
	}
	if !h.V2 && h.Name == "" && len(h.Controllers) == 0 {
		return Hierarchy{}, false
	}
	return h, true
}

// parseSubsystems returns the first column of /proc/cgroups, and the controllers we know of in any case:
// the file is missing from kernels and containers that hide it.
func parseSubsystems(text string) []string {
	names := []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb",
		"net_cls", "net_prio", "perf_event", "rdma", "misc", "debug"}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "#") {
			names = append(names, f[0])
		}
	}
	return names
}

// parseOwn maps the trees of /proc/self/cgroup, by key, to the cgroup: "4:cpuacct,cpu:/user.slice".
func parseOwn(text string) map[string]string {
	own := map[string]string{}
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		parts := strings.Split(f[1], ",")
		slices.Sort(parts)
		own[strings.Join(parts, ",")] = f[2]
	}
	return own
}

// unescape undoes mountinfo's \040 and the like.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
