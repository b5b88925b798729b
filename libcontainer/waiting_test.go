package libcontainer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
	"berth/libcontainer/cgroup"
	"berth/libcontainer/initproc"
	"berth/libcontainer/mount"
	"berth/libcontainer/seccomp"
)

// TestWaiting starts containers in inits that wait.
func TestWaiting(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	group := testGroup(t, cgroup.Resources{})
	c := config(root, "echo $$; hostname; cat; cat /proc/self/cgroup")
	c.Mounts = DefaultMounts(DefaultShm)
	w, err := l.Prepare(c, group)
	must(t, err)
	defer w.Discard()
	other := *c
	other.Namespaces.Net = Namespace{}
	if _, err := w.Start(t.Context(), &other, IO{}); !errors.Is(err, ErrShape) {
		t.Errorf("other namespaces: %v", err)
	}
	in, out, err := os.Pipe()
	must(t, err)
	out.WriteString("from stdin\n")
	out.Close()
	got, err := capture(t, IO{Stdin: in}, func(io IO) (*Process, error) { return w.Start(t.Context(), c, io) })
	must(t, err)
	in.Close()
	if !strings.HasPrefix(got.out, "1\nbox\nfrom stdin\n") || strings.Contains(got.out, "berth-test") {
		t.Errorf("got %q", got.out)
	}
	for _, step := range got.proc.Trace {
		if step.Start < 0 || step.Duration < 0 || step.Start+step.Duration > time.Minute {
			t.Errorf("trace: %+v", step)
		}
	}
	unused, err := l.Prepare(c, nil)
	must(t, err)
	unused.Discard()
	if err := unix.Kill(unused.Pid(), 0); err != unix.ESRCH {
		t.Errorf("a discarded init: %v", err)
	}
}

// TestWaitingSeesTheSame: whatever init has made ahead, and whether it fits or
// not, the container looks as one that was built from scratch.
func TestWaitingSeesTheSame(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	must(t, os.MkdirAll(filepath.Join(root, "volume"), 0o755))
	// Mounts without their ids and the numbers of their devices, nodes without
	// their times, what the masked and read-only paths let through.
	const look = `alias sed='busybox sed' ls='busybox ls' wc='busybox wc'
sed -E 's/^[0-9]+ [0-9]+ [0-9:]+ //' /proc/self/mountinfo | busybox sort
ls -lnR /dev | sed -E 's/[A-Z][a-z]{2} +[0-9]+ +[0-9:]+ / /; /^l.*fd$/d'
for f in /proc/kcore /proc/keys /proc/interrupts /proc/timer_list; do echo $f $(busybox head -c1 <$f 2>&1 | wc -c); done
for d in /proc/acpi /proc/scsi /proc/asound /sys/firmware; do echo $d $(ls $d 2>&1); done
for f in /proc/sys/kernel/domainname /proc/sysrq-trigger /proc/irq/x /sys/fs/cgroup/memory/x; do echo $f $( (echo x >$f) 2>&1); done
cat /proc/1/comm /proc/self/cgroup; ls /sys/class/net`
	usual := func() *Config {
		c := config(root, look)
		c.Mounts, c.Masked, c.ReadOnly, c.Devices = DefaultMounts(DefaultShm), DefaultMasked(), DefaultReadOnly(), DefaultDevices()
		return c
	}
	for name, change := range map[string]func(*Config){
		"the usual":  func(*Config) {},
		"larger shm": func(c *Config) { c.Mounts = DefaultMounts(2 * DefaultShm) },
		"one device more": func(c *Config) {
			c.Devices = append(c.Devices, Device{Path: "/dev/fuse", Type: 'c', Major: 10, Minor: 229, Mode: 0o600})
		},
		"no masks":           func(c *Config) { c.Masked, c.ReadOnly = nil, nil },
		"other masks":        func(c *Config) { c.Masked = append(c.Masked, "/proc/meminfo", "/dev/full") },
		"a tmpfs below /dev": func(c *Config) { c.Mounts = append(c.Mounts, Mount{Type: "tmpfs", Destination: "/dev/more"}) },
		"a volume on shm": func(c *Config) {
			c.Mounts[3] = Mount{Type: "bind", Source: filepath.Join(root, "volume"), Destination: "/dev/shm"}
		},
		"no groups to see":  func(c *Config) { c.Mounts = c.Mounts[:6] },
		"a read-only root":  func(c *Config) { c.Root.Attr |= mount.ReadOnly },
		"nothing but /proc": func(c *Config) { c.Mounts = c.Mounts[:1] },
		"a slave volume": func(c *Config) {
			c.Mounts = append(c.Mounts, Mount{Type: "bind", Source: filepath.Join(root, "volume"), Destination: "/volume", Propagation: mount.Slave})
		},
		"a volume": func(c *Config) {
			c.Mounts = append(c.Mounts, Mount{Type: "bind", Source: filepath.Join(root, "volume"), Destination: "/volume", Recursive: true,
				Attr: mount.ReadOnly, Propagation: mount.RPrivate})
		},
		"nothing to bind": func(c *Config) {
			c.Mounts = append(c.Mounts, Mount{Type: "bind", Source: "/nowhere", Destination: "/volume", Propagation: mount.RPrivate})
		},
		"groups writable":     func(c *Config) { c.Mounts[6].Attr &^= mount.ReadOnly },
		"a relative /dev":     func(c *Config) { c.Mounts[1].Destination = "/dev/" },
		"two mounts of /proc": func(c *Config) { c.Mounts = append(c.Mounts, c.Mounts[0]) },
	} {
		group := testGroup(t, cgroup.Resources{})
		c := usual()
		change(c)
		cold, coldErr := capture(t, IO{Cgroup: group}, func(io IO) (*Process, error) { return l.Start(t.Context(), c, io) })
		w, err := l.Prepare(usual(), group)
		must(t, err)
		warm, warmErr := capture(t, IO{}, func(io IO) (*Process, error) { return w.Start(t.Context(), c, io) })
		w.Discard()
		w, err = l.Prepare(usual(), group)
		must(t, err)
		built, builtErr := capture(t, IO{}, func(io IO) (*Process, error) {
			if err := w.Build(t.Context(), c, io); err != nil {
				return nil, err
			}
			return w.Run(t.Context(), &c.Command, io)
		})
		w.Discard()
		if fmt.Sprint(builtErr) != fmt.Sprint(warmErr) || builtErr == nil && built.out != warm.out {
			t.Errorf("%s: warm %v, built %v\nwarm:\n%s\n\nbuilt:\n%s", name, warmErr, builtErr, warm.out, built.out)
		}
		switch {
		case name == "a slave volume":
			if !errors.Is(warmErr, ErrShape) {
				t.Errorf("%s: got %v, want ErrShape: the mounts of a waiting init follow the host's no more", name, warmErr)
			}
		case fmt.Sprint(coldErr) != fmt.Sprint(warmErr):
			t.Errorf("%s: cold %v, warm %v", name, coldErr, warmErr)
		case coldErr != nil:
		case cold.out != warm.out || !strings.Contains(cold.out, "/dev"):
			t.Errorf("%s:\ncold:\n%s\n\nwarm:\n%s", name, cold.out, warm.out)
		}
		for _, step := range warm.trace() {
			moved := strings.HasPrefix(step, "move ")
			if name == "the usual" && step == "mount proc" || name == "no masks" && moved && strings.Contains(step, "/proc") {
				t.Errorf("%s: %s", name, step)
			}
		}
	}
}

// TestWaitingSeesLaterMounts: what is mounted on the host while an init waits is in
// the container that binds it.
func TestWaitingSeesLaterMounts(t *testing.T) {
	l := newLauncher(t)
	dir := t.TempDir()
	c := config(busybox(t), "cat /volume/disk/file")
	c.Mounts = append(DefaultMounts(DefaultShm), Mount{Type: "bind", Source: dir, Destination: "/volume", Recursive: true, Propagation: mount.RPrivate})
	group := testGroup(t, cgroup.Resources{})
	w, err := l.Prepare(c, group)
	must(t, err)
	defer w.Discard()
	must(t, os.Mkdir(filepath.Join(dir, "disk"), 0o755))
	l.force = initproc.ForceMount
	if _, err := w.Start(t.Context(), c, IO{}); !errors.Is(err, ErrShape) {
		t.Errorf("no way to copy a mount: %v, want ErrShape", err)
	}
	l.force = 0
	// The mount is one of this thread's only: not of the init's, and not of the host's.
	var got result
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			unix.Mount("disk", filepath.Join(dir, "disk"), "tmpfs", 0, ""),
			os.WriteFile(filepath.Join(dir, "disk/file"), []byte("later"), 0o644))
		if err == nil {
			got, err = capture(t, IO{}, func(io IO) (*Process, error) { return w.Start(t.Context(), c, io) })
		}
		done <- err
	}()
	if err := <-done; err != nil || got.out != "later" {
		t.Errorf("%q, %v", got.out, err)
	}
}

// trace is the names of the steps of the start.
func (r result) trace() (names []string) {
	if r.proc != nil {
		for _, s := range r.proc.Trace {
			names = append(names, s.Name)
		}
	}
	return names
}

// TestBuilt starts commands in containers that stand already.
func TestBuilt(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	usual := config(root, "")
	usual.Mounts, usual.Masked = DefaultMounts(DefaultShm), DefaultMasked()
	usual.Command.Cwd = "/made/for/it"
	usual.KeepMounts = true
	build := func(t *testing.T) *Waiting {
		w, err := l.Prepare(usual, testGroup(t, cgroup.Resources{}))
		must(t, err)
		t.Cleanup(w.Discard)
		must(t, w.Build(t.Context(), usual, IO{}))
		return w
	}
	t.Run("what Run says counts", func(t *testing.T) {
		w := build(t)
		if root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", w.Pid())); err != nil || root != "/" {
			t.Errorf("root is %q, %v", root, err)
		}
		in, out, err := os.Pipe()
		must(t, err)
		out.WriteString("from stdin\n")
		out.Close()
		c := config(root, "pwd; cat; echo $MORE; ulimit -n; busybox id -u").Command
		c.Cwd, c.Env, c.User.Spec, c.Rlimits = "/made/for/it", []string{"PATH=/bin", "MORE=more"}, "7", []Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 77, Hard: 77}}
		got, err := capture(t, IO{Stdin: in}, func(io IO) (*Process, error) { return w.Run(t.Context(), &c, io) })
		must(t, err)
		in.Close()
		if want := "/made/for/it\nfrom stdin\nmore\n77\n7"; got.out != want {
			t.Errorf("got %q, want %q", got.out, want)
		}
		if got.proc.Mounts == nil {
			t.Error("the mount namespace was not handed over")
		}
		for _, step := range got.trace() {
			if strings.HasPrefix(step, "mount") || step == "pivot root" {
				t.Errorf("%s is a step of the start", step)
			}
		}
	})
	t.Run("under the filter already", func(t *testing.T) {
		target, err := seccomp.Host()
		must(t, err)
		filter, err := seccomp.Default().Compile(target)
		must(t, err)
		early := *usual
		early.Command.Seccomp, early.ConfineEarly = filter, true
		bounding := fmt.Sprintf("CapBnd:\t%016x", uint64(early.Command.Caps&caps.Bounding()))
		for _, c := range []struct {
			name   string
			change func(*Command)
			err    error
		}{
			{"as it was", func(c *Command) { c.Seccomp = nil }, nil},
			{"given again", func(*Command) {}, nil},
			{"as a user", func(c *Command) { c.User = User{Spec: "7:8", Groups: []string{"9"}} }, nil},
			{"another", func(c *Command) { c.Seccomp = append(slices.Clone(filter), filter[:8]...) }, ErrShape},
			{"no new privileges", func(c *Command) { c.NoNewPrivs = true }, ErrShape},
			{"more capabilities", func(c *Command) { c.Caps |= caps.Of(unix.CAP_NET_RAW) }, ErrShape},
			{"fewer capabilities", func(c *Command) { c.Caps &^= caps.Of(unix.CAP_KILL) }, ErrShape},
		} {
			w, err := l.Prepare(usual, testGroup(t, cgroup.Resources{}))
			must(t, err)
			must(t, w.Build(t.Context(), &early, IO{}))
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.Pid()))
			for _, line := range []string{"Seccomp:\t2", bounding} {
				if err != nil || !strings.Contains(string(status), line) {
					t.Errorf("%s: while it waits: no %s in %v, %s", c.name, line, err, status)
				}
			}
			command := config(root, "grep -E '^(Seccomp|Seccomp_filters|NoNewPrivs|CapBnd):' /proc/self/status | tr -d '\\t\\n'; ulimit -n; cat /proc/self/oom_score_adj").Command
			adj := 5
			command.Caps = early.Command.Caps
			command.Cwd, command.Seccomp, command.Rlimits, command.OOMScoreAdj = usual.Command.Cwd, filter, []Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 77, Hard: 77}}, &adj
			c.change(&command)
			got, err := capture(t, IO{}, func(io IO) (*Process, error) { return w.Run(t.Context(), &command, io) })
			want := strings.ReplaceAll(bounding, "\t", "")
			if !errors.Is(err, c.err) {
				t.Errorf("%s: %v, want %v", c.name, err, c.err)
			} else if err == nil && got.out != want+"NoNewPrivs:0Seccomp:2Seccomp_filters:177\n5" && got.out != want+"NoNewPrivs:0Seccomp:277\n5" { // before Linux 5.9
				t.Errorf("%s: got %q", c.name, got.out)
			}
			w.Discard()
		}
		early.Root.Attr |= mount.ReadOnly
		w, err := l.Prepare(usual, testGroup(t, cgroup.Resources{}))
		must(t, err)
		defer w.Discard()
		if err := w.Build(t.Context(), &early, IO{}); !errors.Is(err, ErrShape) {
			t.Errorf("with a read-only root: %v", err)
		}
	})
	t.Run("what cannot be had", func(t *testing.T) {
		w := build(t)
		for name, change := range map[string]func(*Command){
			"another directory": func(c *Command) { c.Cwd = "/" },
			"a terminal":        func(c *Command) { c.Terminal = &ConsoleSize{Rows: 24, Cols: 80} },
			"a resident init":   func(c *Command) { c.Init = true },
		} {
			c := usual.Command
			change(&c)
			if _, err := w.Run(t.Context(), &c, IO{}); !errors.Is(err, ErrShape) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := w.Start(t.Context(), usual, IO{}); !errors.Is(err, ErrShape) {
			t.Errorf("Start: %v", err)
		}
		c := usual.Command
		c.Args = []string{"nothing-of-that-name"}
		if _, err := w.Run(t.Context(), &c, IO{}); !errors.Is(err, ErrNotFound) {
			t.Errorf("a command that does not exist: %v", err)
		}
	})
	t.Run("given up", func(t *testing.T) {
		w := build(t)
		w.Discard()
		if err := unix.Kill(w.Pid(), 0); err != unix.ESRCH {
			t.Errorf("after Discard: %v", err)
		}
	})
	t.Run("a container that cannot be built", func(t *testing.T) {
		w, err := l.Prepare(usual, testGroup(t, cgroup.Resources{}))
		must(t, err)
		bad := *usual
		bad.Root = mount.Root{Bind: "/nowhere"}
		var step *StepError
		if err := w.Build(t.Context(), &bad, IO{}); !errors.As(err, &step) || !errors.Is(err, unix.ENOENT) {
			t.Errorf("got %v", err)
		}
		if err := unix.Kill(w.Pid(), 0); err != unix.ESRCH {
			t.Errorf("its init: %v", err)
		}
	})
}
