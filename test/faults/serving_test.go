//go:build e2e

package faults

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth/test/harness"
)

// counter is a command that serves the page on port 80, writes a numbered line each 20 ms, and exits with 7 when told
// to stop.
const counter = "httpd -h /www; trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"

// complete checks that a container's log is the numbers from 0 on, none lost, none doubled, and returns how many.
func complete(t *testing.T, e *harness.Engine, name string) int {
	t.Helper()
	lines := strings.Split(e.Berth(t, "logs", name), "\n")
	for i, l := range lines {
		if l != strconv.Itoa(i) {
			t.Errorf("log of %s: line %d is %q, of %d lines", name, i, l, len(lines))
			return len(lines)
		}
	}
	return len(lines)
}

// TestTenServingWhileDaemonsDie: ten containers serve while each daemon is killed, then all at once. No request fails,
// no log line is lost, and the engine works afterwards.
func TestTenServingWhileDaemonsDie(t *testing.T) {
	e := harness.New(t)
	img := e.Busybox(t)
	const n, first = 10, 18600
	name := func(i int) string { return fmt.Sprintf("serving%d", i) }
	for i := range n {
		e.Berth(t, "run", "-d", "--name", name(i), "-p", fmt.Sprintf("%d:80", first+i), img, "sh", "-c", counter)
	}
	for i := range n {
		harness.Eventually(t, 5*time.Second, func() bool { return get(first+i) == nil }, "%s answers", name(i))
	}

	var requests, failed atomic.Int64
	var stop atomic.Bool
	var load sync.WaitGroup
	for w := range 2 {
		load.Go(func() {
			for i := w; !stop.Load(); i++ {
				requests.Add(1)
				if err := get(first + i%n); err != nil && failed.Add(1) <= 5 {
					t.Errorf("request to %s: %v", name(i%n), err)
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	for _, d := range harness.Daemons {
		e.Kill(t, d)
		began := time.Now()
		e.Ready(t)
		t.Logf("killed %s: whole again after %s", d, time.Since(began).Round(time.Millisecond))
	}
	var all sync.WaitGroup
	for _, d := range harness.Daemons {
		if pid := e.Pid(d); pid > 1 {
			all.Go(func() { syscall.Kill(pid, syscall.SIGKILL) })
		}
	}
	all.Wait()
	time.Sleep(50 * time.Millisecond)
	e.Ready(t)
	time.Sleep(300 * time.Millisecond)
	stop.Store(true)
	load.Wait()
	t.Logf("%d requests, %d failed", requests.Load(), failed.Load())
	if requests.Load() < 100 {
		t.Errorf("only %d requests were made", requests.Load())
	}

	if got := len(strings.Fields(e.Berth(t, "ps", "-q"))); got != n {
		t.Errorf("ps lists %d containers, want %d", got, n)
	}
	if out := e.Berth(t, "exec", name(3), "cat", "/www/index.html"); out != page {
		t.Errorf("exec printed %q", out)
	}
	for i := range n {
		e.Berth(t, "stop", name(i))
		if code := e.Berth(t, "wait", name(i)); code != "7" {
			t.Errorf("%s exited with %s, want 7", name(i), code)
		}
		if got := complete(t, e, name(i)); got < 20 {
			t.Errorf("the log of %s has %d lines", name(i), got)
		}
	}
}

// TestF02MonitorKilled: within a second containers have another monitor, or are dead with a reason and without
// processes. Here, with execd alive, they are handed on, and their logs go on.
func TestF02MonitorKilled(t *testing.T) {
	e := harness.New(t)
	img := e.Busybox(t)
	e.Berth(t, "run", "-d", "--name", "writer", "-p", "18650:80", img, "sh", "-c", counter)
	e.Berth(t, "run", "-d", "--rm", "--name", "silent", img, "sleep", "1000")
	e.Berth(t, "run", "-d", "--name", "short", img, "sh", "-c", "sleep 1.5; exit 3")
	time.Sleep(300 * time.Millisecond)
	for range 2 {
		e.Kill(t, "monitor")
		harness.Eventually(t, time.Second, func() bool { return e.Pid("monitor") != 0 }, "there is a monitor again")
		for _, name := range []string{"writer", "silent"} {
			if s := status(t, e, name); s != "running" {
				t.Errorf("%s is %s after the monitor was killed", name, s)
			}
		}
		if err := get(18650); err != nil {
			t.Errorf("published port: %v", err)
		}
		before := len(e.Berth(t, "logs", "writer"))
		harness.Eventually(t, 2*time.Second, func() bool { return len(e.Berth(t, "logs", "writer")) > before }, "the log goes on")
		if out := e.Berth(t, "exec", "writer", "echo", "in"); out != "in" {
			t.Errorf("exec printed %q", out)
		}
	}
	if code := e.Berth(t, "wait", "short"); code != "3" {
		t.Errorf("a container that ended after its monitor was killed has code %s, want 3: %s", code,
			e.Berth(t, "inspect", "-f", "{{.State.Error}}", "short"))
	}
	e.Berth(t, "stop", "writer")
	if code := e.Berth(t, "wait", "writer"); code != "7" {
		t.Errorf("writer exited with %s, want 7", code)
	}
	complete(t, e, "writer")
	e.Berth(t, "rm", "-f", "silent")
}

// TestF02MonitorAndExecdKilled: nobody holds the containers' descriptors any more. They must not be called running.
func TestF02MonitorAndExecdKilled(t *testing.T) {
	e := harness.New(t)
	img := e.Busybox(t)
	e.Berth(t, "run", "-d", "--name", "orphan", "-p", "18651:80", img, "sh", "-c", counter)
	pid, _ := strconv.Atoi(e.Berth(t, "inspect", "-f", "{{.State.Pid}}", "orphan"))
	execd, monitor := e.Pid("execd"), e.Pid("monitor")
	syscall.Kill(execd, syscall.SIGKILL)
	syscall.Kill(monitor, syscall.SIGKILL)
	harness.Eventually(t, 5*time.Second, func() bool { p := e.Pid("execd"); return p != 0 && p != execd }, "execd is back")
	e.Ready(t)
	if s := status(t, e, "orphan"); s == "running" {
		if e.Pid("monitor") == 0 {
			t.Error("the container is called running and there is no monitor")
		}
		e.Berth(t, "exec", "orphan", "true")
	} else {
		why := e.Berth(t, "inspect", "-f", "{{.State.Error}}", "orphan")
		if why == "" {
			t.Errorf("the container is %s and nothing says why", s)
		}
		t.Logf("the container is %s: %s", s, why)
		harness.Eventually(t, time.Second, func() bool { return harness.Gone(pid) }, "its process %d is gone", pid)
		harness.Eventually(t, 2*time.Second, func() bool { return closed(18651) }, "its port is free")
	}
	e.Berth(t, "rm", "-f", "orphan")
	if out := e.Berth(t, "run", "--rm", "-p", "18651:80", img, "echo", "works"); out != "works" {
		t.Errorf("run printed %q", out)
	}
}

// TestF03ExitsWhileAllDaemonsAreDead: every code, time and out-of-memory flag is known after the restart.
func TestF03ExitsWhileAllDaemonsAreDead(t *testing.T) {
	e := harness.New(t)
	img := e.Busybox(t)
	dir := t.TempDir()
	wait := "while [ ! -e /go/now ]; do sleep 0.02; done; echo last; "
	run := func(name string, args ...string) {
		args = append([]string{"run", "-d", "--name", name, "-v", dir + ":/go", "-p", "80"}, args...)
		e.Berth(t, args...)
	}
	run("zero", img, "sh", "-c", wait+"exit 0")
	run("three", img, "sh", "-c", wait+"exit 3")
	run("hog", "-m", "16m", "--memory-swap", "16m", img, "sh", "-c", wait+"exec dd if=/dev/zero of=/dev/null bs=64M count=1")
	run("gone", "--rm", img, "sh", "-c", wait+"exit 5")
	run("stays", img, "sh", "-c", counter)
	before := e.Pid("monitor")
	e.KillDaemons(t)
	began := time.Now()
	writeFile(t, dir+"/now", "")
	time.Sleep(700 * time.Millisecond)
	ended := time.Now()
	if e.Pid("monitor") != before {
		t.Fatal("the monitor did not outlive the daemons")
	}
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	e.Ready(t)
	for name, want := range map[string]string{"zero": "exited 0 false", "three": "exited 3 false", "hog": "exited 137 true"} {
		if got := e.Berth(t, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
		at, err := time.Parse(time.RFC3339Nano, e.Berth(t, "inspect", "-f", "{{.State.FinishedAt}}", name))
		if err != nil || at.Before(began) || at.After(ended) {
			t.Errorf("%s finished at %s, %v; it was between %s and %s", name, at, err, began, ended)
		}
		if out := e.Berth(t, "logs", name); out != "last" {
			t.Errorf("log of %s: %q", name, out)
		}
	}
	harness.Eventually(t, 3*time.Second, func() bool { return status(t, e, "gone") == "absent" }, "the --rm container is removed")
	if s := status(t, e, "stays"); s != "running" {
		t.Errorf("the container that goes on is %s", s)
	}
	e.Berth(t, "stop", "stays")
	complete(t, e, "stays")
}
