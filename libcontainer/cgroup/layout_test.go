package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLayout(t *testing.T) {
	for _, test := range []struct {
		host, want string // want: mode, then a line a tree: name mountpoint own flags
	}{
		{"centos7", `v1
name=systemd /sys/fs/cgroup/systemd /system.slice/berth-execd.service
hugetlb /sys/fs/cgroup/hugetlb /
cpuset /sys/fs/cgroup/cpuset /
memory /sys/fs/cgroup/memory /system.slice/berth-execd.service
freezer /sys/fs/cgroup/freezer /
blkio /sys/fs/cgroup/blkio /system.slice/berth-execd.service
cpuacct,cpu /sys/fs/cgroup/cpu,cpuacct /system.slice/berth-execd.service
perf_event /sys/fs/cgroup/perf_event /
net_prio,net_cls /sys/fs/cgroup/net_cls,net_prio /
devices /sys/fs/cgroup/devices /system.slice/berth-execd.service
pids /sys/fs/cgroup/pids /`},
		{"ubuntu-hybrid", `hybrid
v2 /sys/fs/cgroup/unified /user.slice/user-1000.slice/session-3.scope nsdelegate
name=systemd /sys/fs/cgroup/systemd /user.slice/user-1000.slice/session-3.scope
cpu,cpuacct /sys/fs/cgroup/cpu,cpuacct /user.slice
cpuset /sys/fs/cgroup/cpuset /
perf_event /sys/fs/cgroup/perf_event /
pids /sys/fs/cgroup/pids /user.slice/user-1000.slice/session-3.scope
freezer /sys/fs/cgroup/freezer /
rdma /sys/fs/cgroup/rdma /
memory /sys/fs/cgroup/memory /user.slice/user-1000.slice/session-3.scope
net_cls,net_prio /sys/fs/cgroup/net_cls,net_prio /
devices /sys/fs/cgroup/devices /user.slice
hugetlb /sys/fs/cgroup/hugetlb /
blkio /sys/fs/cgroup/blkio /user.slice`},
		{"debian-v1", `v1
name=systemd /sys/fs/cgroup/systemd /system.slice/berth-execd.service
net_cls,net_prio /sys/fs/cgroup/net_cls,net_prio /
freezer /sys/fs/cgroup/freezer /
hugetlb /sys/fs/cgroup/hugetlb /
rdma /sys/fs/cgroup/rdma /
pids /sys/fs/cgroup/pids /system.slice/berth-execd.service
misc /sys/fs/cgroup/misc /
cpu,cpuacct /sys/fs/cgroup/cpu,cpuacct /system.slice/berth-execd.service
perf_event /sys/fs/cgroup/perf_event /
devices /sys/fs/cgroup/devices /system.slice/berth-execd.service
memory /sys/fs/cgroup/memory /system.slice/berth-execd.service
cpuset /sys/fs/cgroup/cpuset /
blkio /sys/fs/cgroup/blkio /`},
		{"debian-v2", `v2
v2 /sys/fs/cgroup /system.slice/berth-execd.service nsdelegate`},
		{"inside-container", `v1
cpu,cpuacct /sys/fs/cgroup/cpu,cpuacct /docker/4f1c/payload ro
memory /mnt/with space /docker/4f1c`},
		{"microvm-hybrid", `hybrid
cpu /sys/fs/cgroup/cpu /
cpuacct /sys/fs/cgroup/cpuacct /
cpuset /sys/fs/cgroup/cpuset /
memory /sys/fs/cgroup/memory /user/31280f33
devices /sys/fs/cgroup/devices /
freezer /sys/fs/cgroup/freezer /
blkio /sys/fs/cgroup/blkio /
pids /sys/fs/cgroup/pids /
name=systemd /sys/fs/cgroup/systemd /
v2 /sys/fs/cgroup/unified /`},
	} {
		t.Run(test.host, func(t *testing.T) {
			l := parseLayout(testdata(t, test.host, "mountinfo"), testdata(t, test.host, "cgroups"), testdata(t, test.host, "cgroup"))
			lines := []string{l.Mode.String()}
			for _, h := range l.Hierarchies {
				line := h.String() + " " + h.Mountpoint + " " + h.Own
				if h.NSDelegate {
					line += " nsdelegate"
				}
				if h.ReadOnly {
					line += " ro"
				}
				lines = append(lines, line)
			}
			if got := strings.Join(lines, "\n"); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
		})
	}
}

func testdata(t *testing.T, host, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata/layout", host, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestOwnDir(t *testing.T) {
	for _, test := range []struct{ root, own, want string }{
		{"/", "/", "/cg"},
		{"/", "/system.slice/a.service", "/cg/system.slice/a.service"},
		{"/docker/4f1c", "/docker/4f1c", "/cg"},
		{"/docker/4f1c", "/docker/4f1c/payload", "/cg/payload"},
		{"/docker/4f1c", "/other", ""},
		{"/docker/4f1c", "/docker/4f1cdead", ""},
		{"/", "/../sibling", ""},
		{"/", "", ""},
	} {
		h := Hierarchy{Mountpoint: "/cg", Root: test.root, Own: test.own}
		got, err := h.OwnDir()
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("own %q of mounted %q: got %q, %v; want %q", test.own, test.root, got, err, test.want)
		}
	}
}

func TestParseMountRefuses(t *testing.T) {
	for _, line := range []string{
		"",
		"31 22 0:26 / /sys/fs/cgroup rw",
		"31 22 0:26 / /sys/fs/cgroup rw - cgroup2",
		"31 22 0:26 / /tmp rw - tmpfs tmpfs rw,memory",
		"31 22 0:26 / /sys/fs/cgroup rw - cgroup cgroup rw,unheard_of",
	} {
		if h, ok := parseMount(line, parseSubsystems("")); ok {
			t.Errorf("%q was taken for %v", line, h)
		}
	}
}
