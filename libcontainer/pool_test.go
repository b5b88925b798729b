package libcontainer

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/libcontainer/cgroup"
)

// testPool is a pool for containers like c, below a control group of the test's own.
func testPool(t *testing.T, l *Launcher, c *Config, size int) (*Pool, *cgroup.Parent) {
	t.Helper()
	layout, err := cgroup.Detect()
	if err != nil {
		t.Skipf("SKIP: no control groups: %v", err)
	}
	name := fmt.Sprintf("berth-test-%x", rand.Uint64())
	parent, err := cgroup.OpenParent(layout, "/"+name)
	must(t, err)
	t.Cleanup(func() {
		for _, h := range layout.Hierarchies {
			os.Remove(filepath.Join(h.Mountpoint, name))
		}
		parent.Close()
	})
	p := l.NewPool(PoolConfig{Usual: *c, Parent: parent, Prefix: "waits-", Size: size})
	t.Cleanup(p.Close)
	return p, parent
}

// filled waits until so many inits wait.
func filled(t *testing.T, p *Pool, size int) {
	t.Helper()
	for range 500 {
		if p.len() == size {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%d inits wait, want %d", p.len(), size)
}

// TestPool: containers of the pool's kind begin in its inits, with limits of their own; those of another kind, and those
// that find none, from scratch; and none has anything of the one before.
func TestPool(t *testing.T) {
	l := newLauncher(t)
	c := config(busybox(t), "echo $$; cat /tmp/mark /dev/shm/mark 2>/dev/null; echo x >/tmp/mark; echo x >/dev/shm/mark; grep pids /proc/self/cgroup; ls /sys/class/net")
	c.Mounts = append(DefaultMounts(DefaultShm), Mount{Type: "tmpfs", Destination: "/tmp"})
	pool, parent := testPool(t, l, c, 2)
	filled(t, pool, 2)
	left, err := parent.Create(fmt.Sprintf("waits-%d", pool.made.Load()+3), cgroup.Resources{})
	must(t, err)
	other := *c
	other.Namespaces.UTS, other.Hostname = Namespace{}, ""
	run := func(name string, c *Config, waiting bool) {
		t.Helper()
		var group *cgroup.Group
		got, err := capture(t, IO{}, func(io IO) (p *Process, err error) {
			p, group, err = pool.Start(t.Context(), c, cgroup.Resources{Pids: 17}, io)
			return p, err
		})
		must(t, err)
		if !strings.HasPrefix(got.out, "1\n") || strings.Contains(got.out, "x\n") || !strings.Contains(got.out, "lo") {
			t.Errorf("%s: got %q", name, got.out)
		}
		cloned := false
		for _, s := range got.proc.Trace {
			cloned = cloned || s.Name == "clone"
		}
		if cloned == waiting {
			t.Errorf("%s: an init waited: %t, want %t", name, !cloned, waiting)
		}
		if !strings.HasPrefix(group.Name(), "waits-") {
			t.Errorf("%s: group %q", name, group.Name())
		}
		for _, dir := range group.Paths() {
			if b, err := os.ReadFile(filepath.Join(dir, "pids.max")); err == nil && string(b) != "17\n" {
				t.Errorf("%s: pids.max is %q", name, b)
			}
		}
		must(t, group.Delete())
		must(t, group.Close())
	}
	for i := range 3 {
		filled(t, pool, 2)
		run(fmt.Sprint("usual ", i), c, true)
	}
	run("other namespaces", &other, false)
	filled(t, pool, 2)
	for r := pool.Take(); r != nil; r = pool.Take() {
		r.Discard()
	}
	run("empty", c, false)
	filled(t, pool, 2)
	wrong := *c
	wrong.Command.Args = []string{"/no/such"}
	if _, _, err := pool.Start(t.Context(), &wrong, cgroup.Resources{}, IO{}); err == nil {
		t.Error("a command that is not there was started")
	}

	pool.Close()
	pool.Close()
	must(t, left.Delete())
	left.Close()
	if names, err := parent.List(); err != nil || len(names) > 0 {
		t.Errorf("after Close there are groups: %v, %v", names, err)
	}
	if pool.Take() != nil {
		t.Error("a closed pool gives inits")
	}
}
