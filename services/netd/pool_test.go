package netd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/fault"
	networkv1 "berth/proto/berth/network/v1"
)

// A pool slot belongs to nobody after a crash, and is swept.
func TestSweepAfterKill(t *testing.T) {
	r := newRig(t, "pool_size = 3")
	r.eventually("the pool is full", func() bool { return len(r.execd.List()) == 3 })
	r.attach("a", nil)
	r.killNetd()
	r.startNetd()
	r.eventually("only a and a fresh pool are left", func() bool { return len(r.execd.List()) == 4 && len(r.slotInterfaces()) == 4 })
	time.Sleep(100 * time.Millisecond)
	if n := len(r.execd.List()); n != 4 {
		t.Errorf("%d namespaces, want 4", n)
	}
}

// The pool is filled in batches; whoever dies meanwhile, and at whatever step,
// nothing is lost and nothing stays.
func TestKilledWhileThePoolFills(t *testing.T) {
	const size = 6
	r := newRig(t, fmt.Sprintf("pool_size = %d", size))
	full := func() bool {
		return len(r.execd.List()) == size && len(r.slotInterfaces()) == size && strings.Count(r.ruleset(), `"bv`) == size+1 // the rule itself
	}
	r.eventually("the pool is full", full)
	for _, point := range []string{"netd.address-taken", "netd.netns-made"} {
		r.killNetd()
		r.launchNetd(point + "=1*kill")
		select {
		case <-r.netdEnd:
		case <-time.After(5 * time.Second):
			t.Fatalf("%s=kill was not met", point)
		}
		r.startNetd()
		r.eventually("after "+point+" the pool is full, and that is all", full)
	}
	r.killNetd()
	r.startNetd()
	r.stopExecd()
	r.startExecd()
	r.eventually("after a restart of execd the pool is full, and that is all", full)
	a := r.attach("a", nil)
	b := r.attach("b", nil)
	r.serveTCP(a.ns, 80, "a")
	r.reach(b.ns, "tcp4", a.ip.String()+":80", "a")
}

// A slot is given to one container only, and what the firewall knew of it goes.
func TestSlotsAreNotReused(t *testing.T) {
	r := newRig(t, "pool_size = 2")
	seen := map[string]string{}
	for i := range 20 {
		id := fmt.Sprint("c", i)
		c := r.attach(id, nil)
		if other := seen[c.resp.Namespace.Id]; other != "" {
			t.Errorf("%s has the namespace that %s had", id, other)
		}
		seen[c.resp.Namespace.Id] = id
		name := c.resp.Namespace.Id
		c.ns.Close()
		r.detach(id)
		if i%5 == 4 {
			r.eventually("the firewall has forgotten "+id, func() bool { return !strings.Contains(r.ruleset(), name) })
		}
	}
}

// A bridge has a limited number of ports. Those that the pool keeps go to who
// needs them, and then the refusal says why.
func TestFullBridge(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: fills a bridge with 1,023 containers")
	}
	r := newRig(t)
	const ports = 1023
	var attached, refused atomic.Int64
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			for n := i; n < ports; n += 4 {
				_, err := r.endpoints.Attach(context.Background(), &networkv1.AttachRequest{ContainerId: fmt.Sprint("c", n)})
				switch {
				case err == nil:
					attached.Add(1)
				case errors.Is(err, fault.ResourceExhausted) && n > ports-100: // the pool had them for a moment
					refused.Add(1)
				default:
					t.Errorf("container %d: %v", n, err)
				}
			}
		})
	}
	clients.Wait()
	for refused.Load() > 0 {
		_, err := r.tryAttach(fmt.Sprint("again", refused.Load()), nil)
		if err != nil {
			t.Logf("%d attached, then %v", attached.Load(), err)
			break
		}
		refused.Add(-1)
		attached.Add(1)
	}
	if attached.Load() < ports-100 {
		t.Errorf("%d containers were attached, want some %d", attached.Load(), ports)
	}
	var err error
	for i := 0; err == nil && i < 30; i++ {
		_, err = r.tryAttach(fmt.Sprint("over", i), nil)
	}
	if !errors.Is(err, fault.ResourceExhausted) || !strings.Contains(err.Error(), "1,023 ports") {
		t.Errorf("a full bridge refuses with %v", err)
	}
	r.detach("c0")
	r.eventually("a port is free again", func() bool {
		_, err := r.tryAttach("last", nil)
		return err == nil
	})
}

// Once its pool is full netd sleeps.
func TestIdle(t *testing.T) {
	r := newRig(t)
	r.eventually("the pool is full", func() bool { return r.ready() == 16 })
	time.Sleep(2 * time.Second) // the runtime's own threads come to rest
	const watched, window = 4 * time.Second, 100 * time.Millisecond
	awake, before := 0, r.netdWakeups()
	for begin := time.Now(); time.Since(begin) < watched; time.Sleep(window) {
		if now := r.netdWakeups(); now != before { // the runtime sleeps a dozen times before it is still
			awake, before = awake+1, now
		}
	}
	if awake > 4 {
		t.Errorf("awake %d times in %v of doing nothing, want at most once a second", awake, watched)
	}
}

// netdWakeups counts how often threads of netd have gone to sleep.
func (r *rig) netdWakeups() (n int) {
	r.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", r.netd.Process.Pid))
	r.must(err)
	for _, name := range files {
		status, _ := os.ReadFile(name)
		for line := range strings.Lines(string(status)) {
			var switches int
			if k, _ := fmt.Sscanf(line, "voluntary_ctxt_switches: %d", &switches); k == 1 {
				n += switches
			}
		}
	}
	return n
}
