//go:build e2e

package faults

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	apiv1 "berth/proto/berth/api/v1"
	"berth/test/harness"
)

// TestF06BackendAway: while a backend cannot be started, and while it is stopped, apid answers within a second and says
// which daemon is away, other backends' calls work, and all is well once the backend is back. On a machine that is too busy
// for anything within a second apid takes its time, rather than a starved daemon for one that hangs; it answers all the same.
func TestF06BackendAway(t *testing.T) {
	bin := harness.FaultBin(t)
	e := harness.NewWith(t, harness.Options{Bin: bin})
	img := e.Busybox(t)
	e.Berth(t, "run", "-d", "--name", "runs", "-p", "18660:80", img, "httpd", "-f", "-h", "/www")
	conn := e.Dial(t)
	probes := map[string]func(context.Context) error{
		"imaged": func(ctx context.Context) error {
			_, err := apiv1.NewImageServiceClient(conn).List(ctx, new(apiv1.ImageServiceListRequest))
			return err
		},
		"netd": func(ctx context.Context) error {
			_, err := apiv1.NewNetworkServiceClient(conn).List(ctx, new(apiv1.NetworkServiceListRequest))
			return err
		},
		"execd": func(ctx context.Context) error {
			_, err := apiv1.NewContainerServiceClient(conn).List(ctx, new(apiv1.ListRequest))
			return err
		},
	}
	ask := func(name string) (code codes.Code, text string, took, starved time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		before, began := waited(e), time.Now()
		s := grpcstatus.Convert(probes[name](ctx))
		took = time.Since(began)
		return s.Code(), s.Message(), took, max(0, waited(e)-before)
	}
	for _, away := range []string{"imaged", "netd", "execd"} {
		for _, way := range []string{"cannot start", "is stopped"} {
			script := filepath.Join(bin, away)
			if way == "cannot start" {
				if err := os.Rename(script, script+".away"); err != nil {
					t.Fatal(err)
				}
				e.Kill(t, away)
			} else {
				pid := e.Pid(away)
				syscall.Kill(pid, syscall.SIGSTOP)
				harness.Eventually(t, 10*time.Second, func() bool { return isStopped(pid) }, "%s is stopped", away)
			}
			for name := range probes {
				code, text, took, starved := ask(name)
				switch {
				case name != away && code != codes.OK:
					t.Errorf("%s %s: a call to %s says %s: %s", away, way, name, code, text)
				case name == away && (code != codes.Unavailable || !strings.Contains(text, away)):
					t.Errorf("%s %s: a call to it says %s: %s; want Unavailable and its name", away, way, code, text)
				}
				switch {
				case took > time.Second+starved:
					t.Errorf("%s %s: a call to %s took %s, for %s of which it or this test waited for a processor", away, way, name, took, starved)
				case took > time.Second:
					t.Logf("%s %s: a call to %s took %s, as it or this test waited %s for a processor", away, way, name, took, starved)
				}
			}
			if err := get(18660); err != nil {
				t.Errorf("%s %s: published port: %v", away, way, err)
			}
			// Work that needs the backend fails, or waits for it; it does not hang beyond that.
			run := e.Command("run", "--rm", img, "echo", "ran")
			var text strings.Builder
			run.Stdout, run.Stderr = &text, &text
			began := time.Now()
			if err := run.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- run.Wait() }()
			time.Sleep(300 * time.Millisecond)

			if way == "cannot start" {
				if err := os.Rename(script+".away", script); err != nil {
					t.Fatal(err)
				}
			} else {
				syscall.Kill(e.Pid(away), syscall.SIGCONT)
			}
			back := time.Now()
			e.Ready(t)
			t.Logf("%s %s: whole again after %s", away, way, time.Since(back).Round(time.Millisecond))
			select {
			case err := <-ended:
				t.Logf("%s %s: run meanwhile took %s: %v %s", away, way, time.Since(began).Round(time.Millisecond), err, strings.TrimSpace(text.String()))
			case <-time.After(10 * time.Second):
				t.Errorf("%s %s: a run of meanwhile hangs", away, way)
				run.Process.Kill()
			}
			if out := e.Berth(t, "run", "--rm", img, "echo", "ran"); out != "ran" {
				t.Errorf("%s %s: run afterwards printed %q", away, way, out)
			}
		}
	}
	harness.Eventually(t, 5*time.Second, func() bool { return len(strings.Fields(e.Berth(t, "ps", "-aq"))) == 1 }, "only the first container is left")
}

// waited is how long the engine's threads and ours have waited for a processor so far (schedstat of proc(5)).
func waited(e *harness.Engine) (sum time.Duration) {
	pids := []int{os.Getpid(), e.Pid("monitor")}
	for _, d := range harness.Daemons {
		pids = append(pids, e.Pid(d))
	}
	for _, pid := range pids {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, file := range threads {
			b, _ := os.ReadFile(file)
			var ran, waited time.Duration
			fmt.Sscan(string(b), &ran, &waited)
			sum += waited
		}
	}
	return sum
}

// isStopped reports whether a signal has stopped every thread of a process. The one that is to see to it may have to wait
// for a processor, and until then others go on.
func isStopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, file := range threads {
		b, _ := os.ReadFile(file)
		_, rest, _ := strings.Cut(string(b), ") ")
		if !strings.HasPrefix(rest, "T") {
			return false
		}
	}
	return len(threads) > 0
}
