package execd

import (
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"berth/libcontainer/cgroup"
)

// A monitor that nobody needs any more ends, and takes its cgroups along.
func TestUnusedMonitorEnds(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: waits for the monitor's idle time, 15 s")
	}
	e := start(t)
	s := script("true")
	s.AutoRemove = true
	if _, err := e.runIn(e.held(), s, nil); err != nil {
		t.Fatal(err)
	}
	pid := e.monitorPid()
	e.cmd.Process.Signal(syscall.SIGTERM)
	e.cmd.Wait()
	layout, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(25 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		left := 0
		for _, h := range layout.Hierarchies {
			if _, err := os.Stat(h.Mountpoint + "/" + e.cgroup); err == nil {
				left++
			}
		}
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if left == 0 && (err != nil || len(b) == 0) { // gone, or a zombie of whoever is process 1
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d cgroups are left, monitor %d: %q", left, pid, b)
		}
	}
	e.up()
}
