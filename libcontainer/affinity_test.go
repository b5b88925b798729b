package libcontainer

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup"
)

const showProcessors = "grep Cpus_allowed_list /proc/self/status"

// TestProcessors: init starts on one processor, and the command may run on all
// that its group has, now and later.
func TestProcessors(t *testing.T) {
	text, err := os.ReadFile("/sys/devices/system/cpu/online")
	must(t, err)
	online := strings.TrimSpace(string(text))
	l := newLauncher(t)
	if !l.pin {
		t.Skip("SKIP: this process may not run on all processors")
	}
	root := busybox(t)
	c := config(root, showProcessors)
	check := func(what, got, want string) {
		t.Helper()
		if got := strings.TrimSpace(strings.TrimPrefix(got, "Cpus_allowed_list:")); got != want {
			t.Errorf("%s: may run on %q, want %q", what, got, want)
		}
	}
	check("start", output(t, l, c, IO{}), online)
	resident := *c
	resident.Command.Init = true
	check("with a resident init", output(t, l, &resident, IO{}), online)
	p := startSleeper(t, l, config(root, ""), IO{})
	check("exec", execOutput(t, l, p, &c.Command), online)
	old := newLauncher(t)
	old.initOnly = true
	check("exec by an init", execOutput(t, old, p, &c.Command), online)
	w, err := l.Prepare(c, nil)
	must(t, err)
	got, err := capture(t, IO{}, func(io IO) (*Process, error) { return w.Start(t.Context(), c, io) })
	must(t, err)
	check("in an init that waits", got.out, online)
	private := config(root, showProcessors)
	private.Namespaces.User.Private = true
	private.UIDMappings, private.GIDMappings = []IDMap{{0, 100000, 65536}}, []IDMap{{0, 100000, 65536}}
	if got, err := runIn(t, l, private, IO{}); err == nil {
		check("in a user namespace", got.out, online)
	}
	if online == "0" {
		return // one processor is all there is
	}
	group := testGroup(t, cgroup.Resources{CPU: cgroup.CPU{Cpus: "0"}})
	in, out, err := os.Pipe()
	must(t, err)
	defer in.Close()
	defer out.Close()
	more := config(root, showProcessors+"; read line; "+showProcessors)
	got, err = capture(t, IO{Stdin: in, Cgroup: group}, func(io IO) (*Process, error) {
		p, err := l.Start(t.Context(), more, io)
		must(t, group.Set(cgroup.Resources{CPU: cgroup.CPU{Cpus: online}}))
		out.WriteString("\n")
		return p, err
	})
	must(t, err)
	first, second, _ := strings.Cut(got.out, "\n")
	if !strings.HasSuffix(first, ":\t0") && !strings.HasSuffix(first, ":\t"+online) { // the group may have been quicker
		t.Errorf("in a group of one processor: %q", first)
	}
	check("given more", second, online)
}

// TestChosenProcessors: somebody has chosen processors for a launcher, and it does not
// take itself for free.
func TestChosenProcessors(t *testing.T) {
	var all, one unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &all))
	if all.Count() == 1 {
		t.Skip("SKIP: needs two processors")
	}
	one.Set(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and no more: the thread ends with this goroutine
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			t.Error(err)
		}
		if anyProcessor() {
			t.Error("a thread on one processor of several is said to be free")
		}
	}()
	<-done
}

func TestCountList(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-1": 2, "0-3,8-9": 6, "0,2,4": 3} {
		if n, err := countList(list); err != nil || n != want {
			t.Errorf("%q: %d, %v; want %d", list, n, err, want)
		}
	}
	for _, list := range []string{"", "0-", "x"} {
		if n, err := countList(list); err == nil {
			t.Errorf("%q: %d", list, n)
		}
	}
}
