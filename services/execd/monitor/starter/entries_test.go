package starter

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup"
)

// TestEntries keeps the groups of containers that are alive, eight at most, and each for one at a time.
func TestEntries(t *testing.T) {
	layout, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	parent, err := cgroup.OpenParent(layout, fmt.Sprintf("berth-test-entries-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := parent.Delete(); err != nil {
			t.Error(err)
		}
		parent.Close()
	})
	group := func(name string) *cgroup.Group {
		g, err := parent.Create(name, cgroup.Resources{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { g.Delete() })
		return g
	}
	first := exec.Command("sleep", "60")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	pid := first.Process.Pid
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Skip("SKIPPED: no pidfds: " + err.Error())
	}
	defer unix.Close(pidfd)
	files := func() (n int) { // of groups
		all, _ := filepath.Glob("/proc/self/fd/*")
		for _, fd := range all {
			if path, err := os.Readlink(fd); err == nil && strings.Contains(path, "berth-test-entries") && strings.Contains(path, "/g") {
				n++
			}
		}
		return n
	}
	groups := make([]*cgroup.Group, maxEntries+1)
	for i := range groups {
		groups[i] = group(fmt.Sprint("g", i))
	}
	if n := files(); n != 0 {
		t.Errorf("%d descriptors of groups before", n)
	}
	var s entries
	if s.take("g0", pid) != nil {
		t.Error("there is an entry of nothing")
	}
	for i, g := range groups {
		s.put(fmt.Sprint("g", i), &entry{pid: pid, group: g}, pidfd)
	}
	if len(s.kept) != maxEntries || s.take("g0", pid) != nil {
		t.Errorf("%d are kept, want %d and not the oldest", len(s.kept), maxEntries)
	}
	e := s.take("g1", pid)
	if e == nil || e.group != groups[1] {
		t.Fatalf("got %+v", e)
	}
	if s.take("g1", pid) != nil {
		t.Error("two have the same entry")
	}
	if s.take("g2", pid+1) != nil {
		t.Error("the entry of another process was given")
	}
	s.put("g1", e, pidfd)
	again, err := parent.Open("g1")
	if err != nil {
		t.Fatal(err)
	}
	s.put("g1", &entry{pid: pid, group: again}, pidfd) // of one who found it taken
	if len(s.kept) != maxEntries {
		t.Errorf("%d are kept", len(s.kept))
	}
	s.forget("g2")
	if s.take("g2", pid) != nil || len(s.kept) != maxEntries-1 {
		t.Error("what ended is kept")
	}
	e = s.take("g3", pid)
	first.Process.Kill()
	first.Wait()
	if s.put("g3", e, pidfd); s.take("g3", pid) != nil {
		t.Error("what has ended meanwhile is kept")
	}
	for i := range groups {
		s.forget(fmt.Sprint("g", i))
	}
	if n := files(); n != 0 {
		t.Errorf("%d descriptors of groups in the end", n)
	}
}
