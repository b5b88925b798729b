//go:build e2e

package faults

import (
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

// TestF47ClientVanishes kills the client at random moments of each command. What the engine began is finished or
// undone; nothing is left.
func TestF47ClientVanishes(t *testing.T) {
	w := newWorld(t, harness.New(t))
	const times = 4
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, name := range []string{"pull", "import", "rmi", "run -d", "run --rm", "start", "stop", "rm", "rm -f", "exec"} {
		op := operations[name]
		done := 0
		for range times {
			if op.prepare != nil {
				op.prepare(w)
			}
			w.vanish(random, 80, op.args(w)...)
			// A container of a run --rm that had started goes on without its client, and then is removed.
			if op.check(w, harness.Result{Code: -1}) {
				done++
			}
			w.undisturbed()
		}
		t.Logf("%s: %d done, %d undone", name, done, times-done)
		if t.Failed() {
			t.Fatalf("the above was %s", name)
		}
	}
	// Streams that only watch.
	w.e.Berth(t, w.serve("run", "-d")...)
	for range times {
		w.vanish(random, 80, "logs", "-f", subject)
		w.vanish(random, 80, "attach", "--no-stdin", subject)
		w.vanish(random, 80, "events")
		w.vanish(random, 80, "stats", subject)
	}
	if !w.container("running") {
		t.Error("watching a container stopped it")
	}
	// Push: the registry has it after as many tries as it takes.
	w.e.Berth(t, "import", w.tar, made)
	ref := strings.Replace(w.remote, "remote:1", "pushed:1", 1)
	w.e.Berth(t, "tag", made, ref)
	for range times {
		w.vanish(random, 80, "push", ref)
	}
	w.e.Berth(t, "push", "-q", ref)
	w.e.Berth(t, "rmi", "-f", ref, made)
	w.e.Berth(t, "pull", "-q", ref)
	w.imageThere(ref, "imported")
	w.undisturbed()
}

// vanish starts a client, kills it within so many milliseconds, and waits until no job is left.
func (w *world) vanish(random *rand.Rand, ms int, args ...string) {
	w.t.Helper()
	cmd := w.e.Command(args...)
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	time.Sleep(time.Duration(random.IntN(ms*1000)) * time.Microsecond)
	cmd.Process.Kill()
	cmd.Wait()
	harness.Eventually(w.t, 15*time.Second, func() bool { return w.e.Berth(w.t, "jobs", "--active", "-q") == "" }, "no job is active after %v", args)
}

// throttle passes connections on to a server at so many bytes a second.
func throttle(t *testing.T, server string, rate int) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", server)
			if err != nil {
				c.Close()
				return
			}
			go func() { io.Copy(s, c); s.Close() }()
			go func() {
				defer c.Close()
				buf := make([]byte, rate/50)
				for {
					n, err := s.Read(buf)
					if n > 0 {
						if _, err := c.Write(buf[:n]); err != nil {
							return
						}
						time.Sleep(20 * time.Millisecond)
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// TestJobsOutliveClients: a slow pull goes on when its client is killed, and leaves nothing when it is cancelled.
func TestJobsOutliveClients(t *testing.T) {
	e := harness.New(t)
	e.Busybox(t)
	reg := registrytest.Start(t, registrytest.Options{})
	slow := throttle(t, reg.Host, 4<<20) + "/big:1"
	e.Berth(t, "import", otherTar(t, "big", 6<<20), reg.Ref("big:1"))
	e.Berth(t, "push", "-q", reg.Ref("big:1"))
	e.Berth(t, "rmi", reg.Ref("big:1"))
	before := settledStore(t, e)

	begin := func() string {
		cmd := e.Command("pull", slow)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var id string
		harness.Eventually(t, 5*time.Second, func() bool {
			id = e.Berth(t, "jobs", "--active", "-q")
			return id != "" && len(storeFiles(e)) > len(before)
		}, "the pull is under way")
		cmd.Process.Kill()
		cmd.Wait()
		return id
	}

	id := begin()
	e.Berth(t, "jobs", "cancel", id)
	harness.Eventually(t, 2*time.Second, func() bool { return e.Berth(t, "jobs", "--active", "-q") == "" }, "the cancelled job ends")
	if r := e.Try("image", "inspect", slow); r.Code == 0 {
		t.Error("the image of a cancelled pull is there")
	}
	sameStore(t, e, before)

	id = begin()
	harness.Eventually(t, 30*time.Second, func() bool { return e.Berth(t, "jobs", "--active", "-q") == "" }, "the pull ends by itself")
	if out := e.Berth(t, "run", "--rm", slow, "cat", "/mark"); out != "big" {
		t.Errorf("the image of a pull without client says %q", out)
	}
	if out := e.Berth(t, "jobs", "show", id); !strings.Contains(out, "succeeded") {
		t.Errorf("the job's end: %s", out)
	}
	e.Berth(t, "rmi", slow)
	sameStore(t, e, before)
}
