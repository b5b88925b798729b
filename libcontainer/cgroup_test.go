package libcontainer

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/libcontainer/cgroup"
)

// TestS32Cgroup: a container is in its group from birth, in every hierarchy, sees
// only that, and cannot write it. The launcher's threads are not left in it.
func TestS32Cgroup(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		group := testGroup(t, cgroup.Resources{})
		c := config(busybox(t), "")
		c.Mounts = DefaultMounts(DefaultShm)
		p := startSleeper(t, l, c, IO{Cgroup: group})
		membership, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.Pid))
		must(t, err)
		for _, dir := range group.Paths() {
			if path := dir[strings.Index(dir, "/berth-test"):]; !strings.Contains(string(membership), ":"+path+"\n") {
				t.Errorf("not in %s:\n%s", path, membership)
			}
		}
		if strings.Count(string(membership), "/berth-test") != len(slices.Compact(slices.Sorted(maps.Values(group.Paths())))) {
			t.Errorf("not in every group:\n%s", membership)
		}
		script := config("/", `cat /proc/self/cgroup; cd /sys/fs/cgroup && for d in . */; do
			[ -e $d/cgroup.procs ] && head -1 $d/cgroup.procs >/dev/null && echo see $d
			echo 1 2>/dev/null > $d/cgroup.procs && echo wrote $d; echo x 2>/dev/null > $d/release_agent && echo wrote $d
			mkdir $d/sub 2>/dev/null && echo made $d; done; mount | grep -c "type cgroup"; true`).Command
		got := execOutput(t, l, p, &script)
		if strings.Contains(got, "wrote") || strings.Contains(got, "made") {
			t.Errorf("cgroups are writable:\n%s", got)
		}
		if strings.Count(got, "see") == 0 {
			t.Errorf("no group is visible:\n%s", got)
		}
		procs, err := group.Procs()
		if err != nil || len(procs) != 1 || procs[0] != p.Pid {
			t.Errorf("in the group: %v, %v; want %d alone", procs, err, p.Pid)
		}
		tasks, _ := filepath.Glob("/proc/self/task/*/cgroup")
		for _, task := range tasks {
			text, _ := os.ReadFile(task)
			if strings.Contains(string(text), group.Name()+"\n") && strings.Contains(string(text), "berth-test") {
				t.Errorf("%s is still in a group of the container", task)
			}
		}
	})
}

// TestExecCgroup: what Exec starts is in the group it was given.
func TestExecCgroup(t *testing.T) {
	l := newLauncher(t)
	group := testGroup(t, cgroup.Resources{})
	p := startSleeper(t, l, config(busybox(t), ""), IO{Cgroup: group})
	got, err := capture(t, IO{Cgroup: group}, func(io IO) (*Process, error) {
		return l.Exec(t.Context(), Target{Pid: p.Pid, PidFD: p.PidFD}, &config("/", "cat /proc/self/cgroup").Command, io)
	})
	must(t, err)
	for line := range strings.Lines(got.out) {
		// Seen from the cgroup namespace of the container, its group is the root.
		if path := strings.TrimSpace(line[strings.LastIndex(line, ":")+1:]); path != "/" {
			t.Errorf("outside the group: %s", line)
		}
	}
}
