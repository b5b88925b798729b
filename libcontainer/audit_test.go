package libcontainer

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup"
	"berth/libcontainer/initproc"
	"berth/libcontainer/mount"
)

// TestConfigIsData: a Config written as JSON and read back is the same.
func TestConfigIsData(t *testing.T) {
	c := mapped(config("/root", "true"))
	adj := 100
	c.Mounts = append(c.Mounts, Mount{Type: "bind", Source: "/a", Destination: "/b", Attr: mount.ReadOnly, Propagation: mount.RSlave, Recursive: true, IDMap: true})
	c.Command.OOMScoreAdj, c.Command.Terminal = &adj, &ConsoleSize{Rows: 1, Cols: 2}
	c.Command.Seccomp, c.Command.Rlimits = make([]byte, 8), []Rlimit{{Resource: 1, Soft: 2, Hard: ^uint64(0)}}
	c.Sysctls = map[string]string{"net.x": "1"}
	text, err := json.Marshal(c)
	must(t, err)
	var got Config
	must(t, json.Unmarshal(text, &got))
	if !reflect.DeepEqual(&got, c) {
		t.Errorf("%s\nbecame %+v", text, got)
	}
}

// TestImports: the library knows nothing of the engine, and init, which starts once
// per container, nothing that is slow to start.
func TestImports(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("SKIP: needs go")
	}
	out, err := exec.Command("go", "list", "-deps", "./...").Output()
	must(t, err)
	for dep := range strings.Lines(string(out)) {
		if dep = strings.TrimSpace(dep); strings.HasPrefix(dep, "berth/") && !strings.HasPrefix(dep, "berth/libcontainer") {
			t.Errorf("libcontainer imports %s", dep)
		}
	}
	out, err = exec.Command("go", "list", "-deps", "./cmd/berth-init").Output()
	must(t, err)
	for dep := range strings.Lines(string(out)) {
		switch dep = strings.TrimSpace(dep); dep {
		case "fmt", "os", "net", "encoding/json", "context", "runtime/debug":
			t.Errorf("init imports %s", dep)
		}
	}
}

// TestRefusals: what cannot be is refused before anything is made.
func TestRefusals(t *testing.T) {
	l := newLauncher(t)
	for name, spoil := range map[string]func(c *Config){
		"no root":           func(c *Config) { c.Root.Bind = "" },
		"two roots":         func(c *Config) { c.Root.Lower = []string{"/x"} },
		"relative root":     func(c *Config) { c.Root.Bind = "x" },
		"upper, no work":    func(c *Config) { c.Root = Root{Lower: []string{"/a"}, Upper: "/b"} },
		"mount on /":        func(c *Config) { c.Mounts = []Mount{{Type: "tmpfs", Destination: "/x/.."}} },
		"relative mount":    func(c *Config) { c.Mounts = []Mount{{Type: "tmpfs", Destination: "x"}} },
		"relative source":   func(c *Config) { c.Mounts = []Mount{{Type: "bind", Source: "x", Destination: "/x"}} },
		"no type":           func(c *Config) { c.Mounts = []Mount{{Destination: "/x"}} },
		"two options":       func(c *Config) { c.Mounts[0].Options = []string{"hidepid=2,gid=5"} },
		"propagation":       func(c *Config) { c.Mounts[0].Propagation = "sideways" },
		"no cgroup":         func(c *Config) { c.Mounts = []Mount{{Type: "cgroup", Destination: "/c"}} },
		"device type":       func(c *Config) { c.Devices = []Device{{Path: "/dev/x", Type: 'x'}} },
		"device path":       func(c *Config) { c.Devices = []Device{{Path: "x", Type: 'c'}} },
		"long hostname":     func(c *Config) { c.Hostname = strings.Repeat("x", 65) },
		"host's hostname":   func(c *Config) { c.Namespaces.UTS = Namespace{} },
		"user, no mappings": func(c *Config) { c.Namespaces.User.Private = true },
		"mappings, no user": func(c *Config) { c.UIDMappings = []IDMap{{Size: 1}}; c.GIDMappings = c.UIDMappings },
		"0 not mapped": func(c *Config) {
			c.Namespaces.User.Private = true
			c.UIDMappings = []IDMap{{Container: 1, Host: 1, Size: 1}}
			c.GIDMappings = c.UIDMappings
		},
		"many mappings": func(c *Config) {
			c.Namespaces.User.Private = true
			for i := range uint32(10000) {
				c.UIDMappings = append(c.UIDMappings, IDMap{Container: i, Host: shift + i, Size: 1})
			}
			c.GIDMappings = c.UIDMappings
		},
		"relative cwd":  func(c *Config) { c.Command.Cwd = "x" },
		"long argument": func(c *Config) { c.Command.Args = append(c.Command.Args, strings.Repeat("x", 128<<10)) },
		"NUL":           func(c *Config) { c.Command.Env = []string{"A=\x00"} },
		"odd filter":    func(c *Config) { c.Command.Seccomp = make([]byte, 9) },
	} {
		c := config("/nowhere", "true")
		spoil(c)
		p, err := l.Start(t.Context(), c, IO{})
		if err == nil {
			p.discard()
		}
		if !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
}

func openFDs(tb testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	must(tb, err)
	return len(entries)
}

// TestNothingLeft: starts, execs and failures leave no descriptor, goroutine,
// thread, child or mount behind.
func TestNothingLeft(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	group := testGroup(t, cgroup.Resources{})
	p := startSleeper(t, l, config(root, ""), IO{})
	round := func() {
		output(t, l, config(root, "true"), IO{Cgroup: group})
		output(t, l, mapped(config(root, "true")), IO{})
		c := config(root, "true")
		execOutput(t, l, p, &c.Command)
		bad := config(root, "true")
		bad.Command.Args = []string{"nowhere"}
		if _, err := runIn(t, l, bad, IO{Cgroup: group}); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		bad = mapped(config(root, "true"))
		bad.Mounts = append(bad.Mounts, Mount{Type: "bind", Source: "/nowhere", Destination: "/x"})
		if _, err := runIn(t, l, bad, IO{Cgroup: group}); !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
		bad = config(root, "true")
		bad.Command.AppArmor, bad.Command.Terminal = "no-such-profile", &ConsoleSize{Rows: 1, Cols: 1}
		if _, err := runIn(t, l, bad, IO{}); err == nil {
			t.Fatal("a profile that cannot be had was no error")
		}
		w, err := l.Prepare(bad, nil)
		must(t, err)
		w.Discard()
	}
	round()
	fds, goroutines := openFDs(t), runtime.NumGoroutine()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for range 8 {
		round()
	}
	time.Sleep(20 * time.Millisecond) // for goroutines that have answered and end
	if got := openFDs(t); got != fds {
		t.Errorf("%d descriptors, before %d", got, fds)
	}
	if got := runtime.NumGoroutine(); got > goroutines {
		t.Errorf("%d goroutines, before %d", got, goroutines)
	}
	if after, _ := os.ReadFile("/proc/self/mountinfo"); string(after) != string(mounts) {
		t.Error("mounts of the host changed")
	}
	children, err := filepath.Glob("/proc/self/task/*/children")
	must(t, err)
	var pids []string
	for _, file := range children {
		text, _ := os.ReadFile(file)
		pids = append(pids, strings.Fields(string(text))...)
	}
	if len(pids) != 1 || pids[0] != fmt.Sprint(p.Pid) {
		t.Errorf("children %v, want %d alone", pids, p.Pid)
	}
}

// TestLabelsAreErrors: a label that cannot be applied fails the start.
func TestLabelsAreErrors(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	for _, set := range []func(*Command){
		func(c *Command) { c.AppArmor = "no-such-profile" },
		func(c *Command) { c.SELinux = "no_u:no_r:no_t:s0" },
	} {
		c := config(root, "true")
		set(&c.Command)
		var step *StepError
		if _, err := runIn(t, l, c, IO{}); !errors.As(err, &step) || !strings.HasPrefix(step.Step, "apply ") {
			t.Errorf("got %v", err)
		}
	}
}

// TestS01Reader: while many execs enter it, a container never sees a path of the
// host, nor the init binary, in /proc.
func TestS01Reader(t *testing.T) {
	l := newLauncher(t)
	c := config(busybox(t), `while :; do for p in /proc/[0-9]*; do for f in root exe cwd fd/0 fd/3 fd/4 fd/5 fd/6; do
		readlink $p/$f >> /tmp/seen 2>/dev/null; done; done; done`)
	group := testGroup(t, cgroup.Resources{})
	seen := filepath.Join(c.Root.Bind, "tmp/seen")
	c.Masked, c.ReadOnly = nil, nil
	p, err := l.Start(t.Context(), c, IO{Cgroup: group})
	must(t, err)
	defer p.discard()
	for range 60 {
		command := Command{Args: []string{"true"}, Env: []string{"PATH=/bin"}, Caps: c.Command.Caps}
		execOutput(t, l, p, &command)
	}
	must(t, p.Signal(unix.SIGKILL))
	text, err := os.ReadFile(seen)
	must(t, err)
	links := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		links[strings.TrimSpace(line)] = true
	}
	for link := range links {
		switch {
		case link == "/", link == "/bin/busybox", link == "/tmp/seen", link == "/dev/null", strings.HasPrefix(link, "pipe:"):
		default:
			t.Errorf("the container saw %q", link)
		}
	}
	if !links["/bin/busybox"] {
		t.Error("the reader saw nothing at all")
	}
}

// TestS27Parallel: containers that start at the same time do not get each other's
// environment, name or volumes.
func TestS27Parallel(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			id := fmt.Sprintf("box%d", i)
			c := config(root, "echo $(hostname) $ID $(ls /data)")
			c.Hostname = id
			c.Command.Env = append(c.Command.Env, "ID="+id)
			dir := t.TempDir()
			os.WriteFile(filepath.Join(dir, id), nil, 0o644)
			c.Mounts = append(c.Mounts, Mount{Type: "bind", Source: dir, Destination: "/tmp/" + id}, Mount{Type: "bind", Source: dir, Destination: "/data"})
			got, err := runIn(t, l, c, IO{})
			if want := id + " " + id + " " + id; err != nil || got.out != want {
				t.Errorf("got %q, %v; want %q", got.out, err, want)
			}
		})
	}
	all.Wait()
}

// TestS47FewDescriptors: with no descriptors left a start fails by name, and works
// again afterwards.
func TestS47FewDescriptors(t *testing.T) {
	l := newLauncher(t)
	c := config(busybox(t), "true")
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	// Descriptors are numbered from the lowest free one.
	free, err := unix.Dup(0)
	must(t, err)
	unix.Close(free)
	for left := range 20 {
		must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free + left), Max: old.Max}))
		p, err := l.Start(t.Context(), c, IO{})
		must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
		if err == nil {
			if status, err := p.Wait(); err != nil || status.Code != 0 {
				t.Errorf("%d left: %+v, %v", left, status, err)
			}
			p.Close()
			continue
		}
		var step *StepError
		if !errors.As(err, &step) {
			t.Errorf("%d left: %v", left, err)
		}
	}
	output(t, l, c, IO{})
}

// TestS46Lengths: long strings and long lists arrive whole, with all namespaces made.
func TestS46Lengths(t *testing.T) {
	l := newLauncher(t)
	c := mapped(config(busybox(t), "echo ${#BIG} $(hostname) $(echo /many/* | wc -w) $$; readlink /proc/self/ns/user"))
	c.UIDMappings, c.GIDMappings = nil, nil
	for i := range uint32(300) {
		c.UIDMappings = append(c.UIDMappings, IDMap{Container: i, Host: shift + i, Size: 1})
	}
	c.GIDMappings = c.UIDMappings
	c.Command.Env = append(c.Command.Env, "BIG="+strings.Repeat("x", 100<<10))
	for range 10 {
		c.Command.Env = append(c.Command.Env, "MORE="+strings.Repeat("y", 100<<10))
	}
	c.Mounts = append(c.Mounts, Mount{Type: "tmpfs", Destination: "/many", Options: []string{"size=1m"}})
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o644))
	for i := range 200 {
		c.Mounts = append(c.Mounts, Mount{Type: "bind", Source: file, Destination: fmt.Sprintf("/many/%s%d", strings.Repeat("z", 200), i)})
	}
	own, err := os.Readlink("/proc/self/ns/user")
	must(t, err)
	if got := output(t, l, c, IO{}); !strings.HasPrefix(got, "102400 box 200 1\n") || strings.Contains(got, own) {
		t.Errorf("got %q", got)
	}
	for i := range 100 {
		c.Mounts = append(c.Mounts, Mount{Type: "bind", Source: file, Destination: fmt.Sprintf("/many/x%d", i)})
	}
	if _, err := runIn(t, l, c, IO{}); !errors.Is(err, initproc.ErrTooManyFDs) {
		t.Errorf("300 volumes in a user namespace: %v", err)
	}
}
