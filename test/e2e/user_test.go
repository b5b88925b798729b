//go:build e2e

package e2e

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/test/harness"
)

// TestStartAttached: start -a has all output of a run, from its first byte, and its exit status.
func TestStartAttached(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	e.Berth(t, "create", "--name", "att", img, "sh", "-c", "echo out; exit 3")
	for range 3 { // a stopped one too, without what it said before
		if r := e.Try("start", "-a", "att"); r.Code != 3 || r.Out != "out\n" {
			t.Errorf("start -a: exit %d, %q, %q; want 3 and out", r.Code, r.Out, r.Err)
		}
	}
	e.Fails(t, 1, []string{"att", "does not run"}, "attach", "att")
	e.Berth(t, "rm", "att")

	e.Berth(t, "create", "-i", "--name", "att", img, "cat")
	if r := e.TryStdin("in\n", "start", "-ai", "att"); r.Code != 0 || r.Out != "in\n" {
		t.Errorf("start -ai cat: exit %d, %q, %q", r.Code, r.Out, r.Err)
	}
	e.Berth(t, "rm", "att")

	e.Berth(t, "create", "--name", "att", img, "nosuch")
	e.Fails(t, 1, []string{"nosuch", "not found"}, "start", "-a", "att")
	e.Berth(t, "rm", "att")
}

// TestSignalsReachContainer: what ends the client is the container's to handle.
func TestSignalsReachContainer(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	cmd := e.Command("run", "--rm", "--name", "sig", img, "sh", "-c", "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 5*time.Second, func() bool { return strings.Contains(e.Try("logs", "sig").Out, "ready") }, "log line")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 || !strings.Contains(out.String(), "got") {
		t.Errorf("after SIGTERM: exit %d, %q; want 5 and got", code, out.String())
	}
}

func TestForcedRemovalOfNothing(t *testing.T) {
	e := harness.Shared(t)
	if r := e.Try("rm", "-f", "never-there"); r.Code != 0 || !strings.Contains(r.Err, "never-there") {
		t.Errorf("rm -f of nothing: exit %d, %q", r.Code, r.Err)
	}
	e.Fails(t, 1, []string{"never-there", "ps -a"}, "rm", "never-there")
}

// TestBindSourceMade: a directory that -v makes is open to every user, whatever the engine's umask.
func TestBindSourceMade(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	dir := filepath.Join(t.TempDir(), "a", "b")
	e.Berth(t, "run", "--rm", "-u", "www", "-v", dir+":/x", img, "ls", "/x")
	for _, p := range []string{dir, filepath.Dir(dir)} {
		if i, err := os.Stat(p); err != nil || i.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v; want mode 0755", p, i, err)
		}
	}
}

// TestJobSteps: a script gets the time of each step.
func TestJobSteps(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	e.Berth(t, "run", "--rm", "--name", "steps", img, "true")
	id := lines(e.Berth(t, "jobs", "-q", "--filter", "target=steps"))[0]
	if out := e.Berth(t, "jobs", "show", "--format", "json", id); !strings.Contains(out, `"DurationMicros":`) || !strings.Contains(out, `"Daemon":"execd"`) {
		t.Errorf("jobs show --format json: %s", out)
	}
}

func TestUnknownEventFilter(t *testing.T) {
	e := harness.Shared(t)
	e.Fails(t, 1, []string{"bogus=x", "type"}, "events", "--until", "0s", "--filter", "bogus=x")
}

// TestSignalsBeforeStart: with no container yet to pass them on to, signals end the client as they would any program, and
// with it the run.
func TestSignalsBeforeStart(t *testing.T) {
	e := harness.New(t)
	l, err := net.Listen("tcp", "127.0.0.1:0") // a registry that never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := e.Command("run", "--rm", l.Addr().String()+"/never:1", "true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 5*time.Second, func() bool { return e.Berth(t, "jobs", "--active", "-q") != "" }, "the run is under way")
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGINT {
		t.Errorf("after SIGINT: %s, want the signal", cmd.ProcessState)
	}
	harness.Eventually(t, 5*time.Second, func() bool { return e.Berth(t, "jobs", "--active", "-q") == "" }, "the run ends")
}
