package libcontainer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
	"berth/libcontainer/initproc"
	"berth/libcontainer/mount"
	"berth/libcontainer/ns"
	"berth/libcontainer/seccomp"
)

// ways are the kernels that a test pretends to run on.
var ways = []struct {
	name  string
	force initproc.Force
	net   bool // made by the clone
}{
	{"today", 0, false},
	{"mount(2)", initproc.ForceMount, true},
	{"all fallbacks", initproc.ForceMount | initproc.ForceCloseRange | initproc.ForcePtsPath | initproc.ForceBindNodes, true},
}

// everyWay runs a test with each set of fallbacks.
func everyWay(t *testing.T, test func(t *testing.T, l *Launcher)) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			l := newLauncher(t)
			l.force, l.netByClone = way.force, way.net
			test(t, l)
		})
	}
}

func TestStartExitStatus(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "sh -c 'kill -9 $$'; exit $?": 137} {
		got, err := runIn(t, l, config(root, script), IO{})
		must(t, err)
		if got.Code != want {
			t.Errorf("%s: exit status %d, want %d", script, got.Code, want)
		}
	}
	p, err := l.Start(context.Background(), config(root, "sleep 1000"), IO{})
	must(t, err)
	defer p.Close()
	if _, done, err := p.Reap(); done || err != nil {
		t.Errorf("reaped a running process: %v", err)
	}
	must(t, p.Signal(unix.SIGKILL))
	if status, err := p.Wait(); err != nil || status.Code != 137 || status.Signal != unix.SIGKILL {
		t.Errorf("killed: %+v, %v", status, err)
	}
}

func TestStartCommandErrors(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	must(t, os.WriteFile(filepath.Join(root, "bin/plain"), []byte("text"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "bin/garbage"), []byte("\x01\x02\x03"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "bin/script"), []byte("#!/bin/sh\nexit 5\n"), 0o755))
	for _, c := range []struct {
		args []string
		want error
	}{
		{[]string{"nowhere"}, ErrNotFound},
		{[]string{"/bin/nowhere"}, ErrNotFound},
		{[]string{"/bin/true/x"}, ErrNotFound},
		{[]string{"plain"}, ErrNotExecutable},
		{[]string{"/bin/plain"}, ErrNotExecutable},
		{[]string{"/bin"}, ErrNotExecutable},
		{[]string{"garbage"}, ErrNotExecutable},
		{nil, ErrConfig},
		{[]string{"a\x00b"}, ErrConfig},
	} {
		config := config(root, "")
		config.Command.Args = c.args
		_, err := runIn(t, l, config, IO{})
		var step *StepError
		if !errors.Is(err, c.want) || !errors.As(err, &step) {
			t.Errorf("%q: %v, want %v", c.args, err, c.want)
		}
	}
	c := config(root, "")
	c.Command.Args = []string{"script"}
	if got, err := runIn(t, l, c, IO{}); err != nil || got.Code != 5 {
		t.Errorf("script: %d, %v", got.Code, err)
	}
	c.Command.User.Spec = "mallory"
	if _, err := runIn(t, l, c, IO{}); !errors.Is(err, ErrUser) {
		t.Errorf("unknown user: %v", err)
	}
}

// TestStepErrorText pins the form of messages.
func TestStepErrorText(t *testing.T) {
	l := newLauncher(t)
	c := config(busybox(t), "")
	c.Mounts = append(c.Mounts, Mount{Type: "tmpfs", Destination: "/x", Options: []string{"size=potato"}})
	_, err := runIn(t, l, c, IO{})
	if err == nil || !strings.HasPrefix(err.Error(), `mount tmpfs on "/x": invalid argument`) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v", err)
	}
	c.Mounts = []Mount{{Type: "bind", Source: "/nowhere", Destination: "/x"}}
	_, err = runIn(t, l, c, IO{})
	if want := `bind "/nowhere" on "/x": no such file or directory`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestMountTable(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		c := config(busybox(t), "cat /proc/self/mountinfo; stat -c '%t:%T %a %n' /dev/null /dev/tty /dev/ptmx; readlink /dev/fd")
		got := output(t, l, c, IO{})
		for point, want := range map[string]string{
			"/":             "rw,nodev",
			"/proc":         "rw,nosuid,nodev,noexec",
			"/dev":          "rw,nosuid",
			"/dev/pts":      "rw,nosuid,noexec",
			"/dev/shm":      "rw,nosuid,nodev,noexec",
			"/dev/mqueue":   "rw,nosuid,nodev,noexec",
			"/sys":          "ro,nosuid,nodev,noexec",
			"/proc/sys":     "ro,nosuid,nodev,noexec",
			"/proc/irq":     "ro,nosuid,nodev,noexec",
			"/sys/firmware": "ro,nosuid,nodev,noexec",
		} {
			if flags := mountFlags(got, point); flags != want+",relatime" {
				t.Errorf("%s is mounted %q, want %q", point, flags, want)
			}
		}
		if strings.Contains(got, "shared:") || strings.Contains(got, "master:") {
			t.Error("a mount propagates")
		}
		if !strings.Contains(got, "1:3 666 /dev/null") || !strings.Contains(got, "5:0 666 /dev/tty") || !strings.Contains(got, "/proc/self/fd") {
			t.Errorf("devices:\n%s", got)
		}
	})
}

// mountFlags finds the flags of a mountpoint in a mountinfo text.
func mountFlags(info, point string) string {
	flags := ""
	for line := range strings.Lines(info) {
		if f := strings.Fields(line); len(f) > 6 && f[4] == point {
			flags = f[5]
		}
	}
	return flags
}

// TestHostSeesNothing: no mount of a container appears on the host.
func TestHostSeesNothing(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		before, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		c := config(busybox(t), "")
		c.Mounts = append(c.Mounts, Mount{Type: "bind", Source: t.TempDir(), Destination: "/data", Recursive: true})
		startSleeper(t, l, c, IO{})
		after, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		if !bytes.Equal(before, after) {
			t.Errorf("mounts of the host changed:\n%s", after)
		}
	})
}

func TestOverlay(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		base, dir := busybox(t), t.TempDir()
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "")) // an upper directory may not be on overlay
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		lower := []string{base}
		for i := range 126 {
			layer := filepath.Join(dir, strconv.Itoa(i))
			must(t, os.Mkdir(layer, 0o755))
			must(t, os.WriteFile(filepath.Join(layer, fmt.Sprintf("f%d", i)), []byte("x"), 0o644))
			lower = append([]string{layer}, lower...)
		}
		// The page of mount(2) has to hold the relative names.
		if l.force&initproc.ForceMount != 0 {
			layer := filepath.Join(dir, "base")
			must(t, exec.Command("cp", "-a", base, layer).Run())
			lower[len(lower)-1] = layer
		}
		c := config("", "echo changed > /f0; ls / | grep -c ^f")
		c.Root = Root{Lower: lower, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
		must(t, os.Mkdir(c.Root.Upper, 0o755))
		must(t, os.Mkdir(c.Root.Work, 0o755))
		if got := output(t, l, c, IO{}); got != "126" {
			t.Errorf("%s layers visible, want 126", got)
		}
		changed, err := os.ReadFile(filepath.Join(c.Root.Upper, "f0"))
		if err != nil || string(changed) != "changed\n" {
			t.Errorf("upper directory: %q, %v", changed, err)
		}
	})
}

func TestReadOnlyRoot(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		c := config(busybox(t), "touch /file 2>/dev/null && exit 1; touch /tmp/file 2>/dev/null && exit 2; echo x > /data/file && echo x > /dev/shm/y")
		c.Root.Attr |= mount.ReadOnly
		c.Command.Cwd = "/made/for/it"
		c.Mounts = append(c.Mounts, Mount{Type: "tmpfs", Destination: "/data", Attr: mount.NoSuid | mount.NoDev})
		output(t, l, c, IO{})
	})
}

func TestVolumes(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644))
		sub := filepath.Join(dir, "sub")
		must(t, os.Mkdir(sub, 0o755))
		must(t, unix.Mount("tmpfs", sub, "tmpfs", 0, ""))
		t.Cleanup(func() { unix.Unmount(sub, unix.MNT_DETACH) })
		c := config(busybox(t), `cat /v/file /etc/one && echo more > /v/new &&
			! touch /ro/x 2>/dev/null && ! touch /ro/sub/x 2>/dev/null && touch /v/sub/y`)
		c.Mounts = append(c.Mounts,
			Mount{Type: "bind", Source: dir, Destination: "/v", Attr: mount.NoDev, Recursive: true},
			Mount{Type: "bind", Source: dir, Destination: "/ro", Attr: mount.NoDev | mount.ReadOnly, Recursive: true},
			Mount{Type: "bind", Source: filepath.Join(dir, "file"), Destination: "/etc/one", Attr: mount.ReadOnly})
		if got := output(t, l, c, IO{}); got != "contentcontent" {
			t.Errorf("got %q", got)
		}
		if _, err := os.Stat(filepath.Join(dir, "new")); err != nil {
			t.Error(err)
		}
	})
}

// TestPropagation: a mount made on the host later appears in a slave volume and
// in no other.
func TestPropagation(t *testing.T) {
	l := newLauncher(t)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	must(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
	must(t, os.Mkdir(filepath.Join(dir, "late"), 0o755))
	c := config(busybox(t), "")
	c.Mounts = append(c.Mounts,
		Mount{Type: "bind", Source: dir, Destination: "/slave", Recursive: true, Propagation: mount.RSlave},
		Mount{Type: "bind", Source: dir, Destination: "/shared", Recursive: true, Propagation: mount.RShared},
		Mount{Type: "bind", Source: dir, Destination: "/private", Recursive: true})
	p := startSleeper(t, l, c, IO{})
	must(t, unix.Mount("late", filepath.Join(dir, "late"), "tmpfs", 0, ""))
	defer unix.Unmount(filepath.Join(dir, "late"), unix.MNT_DETACH)
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.Pid))
	must(t, err)
	for point, want := range map[string]bool{"/slave/late": true, "/shared/late": true, "/private/late": false} {
		if got := mountFlags(string(info), point) != ""; got != want {
			t.Errorf("%s mounted: %v, want %v", point, got, want)
		}
	}
}

func TestUser(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	for spec, want := range map[string]string{
		"":           "uid=0(root) gid=0(root) groups=0(root) /root",
		"alice":      "uid=1000(alice) gid=1000(alice) groups=29(audio),1000(alice) /home/alice",
		"1000:29":    "uid=1000(alice) gid=29(audio) groups=29(audio) /home/alice",
		"4242:4343":  "uid=4242 gid=4343 groups=4343 /",
		"root:audio": "uid=0(root) gid=29(audio) groups=29(audio) /root",
	} {
		c := config(root, "echo $(id) $HOME")
		c.Command.User.Spec = spec
		if got := output(t, l, c, IO{}); got != want {
			t.Errorf("%q: %s, want %s", spec, got, want)
		}
	}
}

// TestS21PrimaryGroup: a file that its group may not read is denied to a process
// with that primary group.
func TestS21PrimaryGroup(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	file := filepath.Join(root, "etc/secret")
	must(t, os.WriteFile(file, []byte("secret"), 0o604))
	must(t, os.Chmod(file, 0o604))
	must(t, os.Chown(file, 0, 4343))
	c := config(root, "cat /etc/secret 2>/dev/null")
	c.Command.User.Spec = "4242:4343"
	if got, err := runIn(t, l, c, IO{}); err != nil || got.Code == 0 {
		t.Errorf("read %q, %v", got.out, err)
	}
}

// TestS22Capabilities compares all five sets, of run and exec, for root and user.
func TestS22Capabilities(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	p := startSleeper(t, l, config(root, ""), IO{})
	const script = "grep ^Cap /proc/self/status | tr -d '\\t\\n'"
	def, none := uint64(caps.Default), uint64(0)
	for _, c := range []struct {
		user string
		caps caps.Set
		want [5]uint64 // Inh Prm Eff Bnd Amb
	}{
		{"", caps.Default, [5]uint64{0, def, def, def, 0}},
		{"alice", caps.Default, [5]uint64{0, 0, 0, def, 0}},
		{"", 0, [5]uint64{0, none, none, none, 0}},
		{"", AllCaps, [5]uint64{0, uint64(caps.Bounding()), uint64(caps.Bounding()), uint64(caps.Bounding()), 0}},
	} {
		want := fmt.Sprintf("CapInh:%016xCapPrm:%016xCapEff:%016xCapBnd:%016xCapAmb:%016x",
			c.want[0], c.want[1], c.want[2], c.want[3], c.want[4])
		cfg := config(root, script)
		cfg.Command.User.Spec, cfg.Command.Caps = c.user, c.caps
		if got := output(t, l, cfg, IO{}); got != want {
			t.Errorf("run as %q: %s, want %s", c.user, got, want)
		}
		if got := execOutput(t, l, p, &cfg.Command); got != want {
			t.Errorf("exec as %q: %s, want %s", c.user, got, want)
		}
	}
}

// execOutput is what a command in the container of p prints; the same, whether an
// init becomes it or none is needed.
func execOutput(tb testing.TB, l *Launcher, p *Process, c *Command) string {
	tb.Helper()
	var said []string
	for _, only := range []bool{true, false} {
		way := *l
		way.initOnly = only
		got, err := capture(tb, IO{}, func(io IO) (*Process, error) {
			return way.Exec(context.Background(), Target{Pid: p.Pid, PidFD: p.PidFD}, c, io)
		})
		if err != nil {
			tb.Fatalf("exec: %v", err)
		}
		if got.Code != 0 {
			tb.Fatalf("exec: exit status %d: %s", got.Code, got.out)
		}
		said = append(said, got.out)
	}
	if said[0] != said[1] {
		tb.Errorf("exec with an init: %s; without: %s", said[0], said[1])
	}
	return said[1]
}

// TestS01Descriptors: the command has descriptors 0 to 2, whatever the launcher
// had open, and cannot use /proc/self/fd to start outside.
func TestS01Descriptors(t *testing.T) {
	leak, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0) // not close-on-exec
	must(t, err)
	defer unix.Close(leak)
	everyWay(t, func(t *testing.T, l *Launcher) {
		root := busybox(t)
		p := startSleeper(t, l, config(root, ""), IO{})
		e, err := l.Exec(context.Background(), Target{Pid: p.Pid, PidFD: p.PidFD}, &config(root, "exec sleep 1000").Command, IO{})
		must(t, err)
		defer e.discard()
		for _, pid := range []int{p.Pid, e.Pid} {
			open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			if err != nil || len(open) != 3 {
				t.Errorf("descriptors of %d: %v, %v", pid, open, err)
			}
		}
		for fd := range 40 {
			for _, dir := range []string{"self", "1", "thread-self"} {
				c := config(root, "pwd; ls /")
				c.Command.Cwd = fmt.Sprintf("/proc/%s/fd/%d", dir, fd)
				if dir == "1" && fd%8 != 0 {
					continue // each costs a launch
				}
				got, err := runIn(t, l, c, IO{})
				if err == nil && !strings.HasPrefix(got.out, "/") {
					t.Errorf("cwd %s: started at %q", c.Command.Cwd, got.out)
				}
				if fd > 2 && err == nil {
					t.Errorf("cwd %s: accepted", c.Command.Cwd)
				}
				if fd > 8 {
					break
				}
			}
		}
	})
}

// TestS02Binary: what a container sees as the executable of init can be neither
// written nor is it the file on the host.
func TestS02Binary(t *testing.T) {
	l := newLauncher(t)
	before, err := os.ReadFile(initBinary)
	must(t, err)
	fd := int(l.binary.Fd())
	if _, err := unix.Pwrite(fd, []byte("x"), 0); err != unix.EPERM {
		t.Errorf("write: %v, want EPERM", err)
	}
	if err := unix.Ftruncate(fd, 0); err != unix.EPERM {
		t.Errorf("truncate: %v, want EPERM", err)
	}
	root := busybox(t)
	must(t, os.WriteFile(filepath.Join(root, "bin/self"), []byte("#!/proc/self/exe\n"), 0o755))
	for _, args := range [][]string{{"/proc/self/exe"}, {"/bin/self"}} {
		c := config(root, "")
		c.Command.Args = args
		// It may start init itself, which has no socket there and ends.
		if got, err := runIn(t, l, c, IO{}); err == nil && got.Code == 0 {
			t.Errorf("%v: ran: %s", args, got.out)
		}
	}
	after, err := os.ReadFile(initBinary)
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Error("the init binary changed")
	}
}

// TestS03Masks looks at every masked path from outside: it is the null device of
// the host or the empty read-only tmpfs, also if the image brings a /dev/null of
// its own.
func TestS03Masks(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		root := busybox(t)
		must(t, os.WriteFile(filepath.Join(root, "dev/null"), []byte("image's own"), 0o644))
		must(t, os.Symlink("/proc/kcore", filepath.Join(root, "dev/zero")))
		c := config(root, "")
		must(t, os.WriteFile(filepath.Join(root, "etc/hidden"), []byte("x"), 0o644))
		c.Masked = append(c.Masked, "/etc/hidden", "/nowhere", "/etc/passwd/below-a-file")
		p := startSleeper(t, l, c, IO{})
		var null unix.Stat_t
		must(t, unix.Stat("/dev/null", &null))
		files, dirs := 0, 0
		for _, path := range c.Masked {
			inside := fmt.Sprintf("/proc/%d/root%s", p.Pid, path)
			var st unix.Stat_t
			if unix.Stat(inside, &st) != nil {
				continue
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				dirs++
				entries, err := os.ReadDir(inside)
				var fs unix.Statfs_t
				must(t, unix.Statfs(inside, &fs))
				if err != nil || len(entries) > 0 || fs.Type != unix.TMPFS_MAGIC || fs.Flags&unix.ST_RDONLY == 0 {
					t.Errorf("%s: %d entries, type %x, flags %x", path, len(entries), fs.Type, fs.Flags)
				}
				continue
			}
			files++
			if st.Dev != null.Dev || st.Ino != null.Ino || st.Rdev != null.Rdev {
				t.Errorf("%s is not the null device of the host: %+v", path, st)
			}
		}
		if files < 2 || dirs < 2 {
			t.Errorf("checked %d files and %d directories only", files, dirs)
		}
	})
}

func TestTerminal(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		root := busybox(t)
		for _, user := range []string{"", "alice"} {
			c := config(root, "tty; stty size; stat -c %t:%T:%u /dev/console; test -t 0 -a -t 1 -a -t 2 && echo isatty; echo hello > /dev/tty; echo again > /dev/stdout; cat /proc/$$/fd/9 2>/dev/null; echo /proc/$$/fd/*")
			c.Command.Terminal = &ConsoleSize{Rows: 33, Cols: 77}
			c.Command.User.Spec = user
			p, err := l.Start(context.Background(), c, IO{})
			must(t, err)
			defer p.Close()
			text := readConsole(p)
			status, err := p.Wait()
			must(t, err)
			for _, want := range []string{"/dev/pts/0", "33 77", "88:0:", "isatty", "hello", "again"} {
				if !strings.Contains(text, want) {
					t.Errorf("as %q: no %q in %q", user, want, text)
				}
			}
			if status.Code != 0 {
				t.Errorf("exit status %d", status.Code)
			}
		}
	})
}

// readConsole reads until the other side is gone, which is EIO.
func readConsole(p *Process) string {
	defer p.Console.Close()
	var text []byte
	buf := make([]byte, 4096)
	for {
		n, err := p.Console.Read(buf)
		text = append(text, buf[:n]...)
		if err != nil {
			return string(text)
		}
	}
}

// TestS04Console: the terminal is an inode of the container's own devpts, also of
// one that an exec opens later, and also if the image is full of links.
func TestS04Console(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		root := busybox(t)
		must(t, os.Remove(filepath.Join(root, "dev")))
		must(t, os.Symlink("/tmp/elsewhere", filepath.Join(root, "dev")))
		c := config(root, "")
		c.Command.Terminal = &ConsoleSize{Rows: 24, Cols: 80}
		p := startSleeper(t, l, c, IO{})
		defer p.Console.Close()
		cmd := Command{Args: []string{"sh", "-c", "tty; sleep 1000"}, Env: []string{"PATH=/bin"}, Terminal: &ConsoleSize{Rows: 5, Cols: 6}}
		e, err := l.Exec(context.Background(), Target{Pid: p.Pid, PidFD: p.PidFD}, &cmd, IO{})
		must(t, err)
		defer e.discard()
		var pts unix.Stat_t
		dev := fmt.Sprintf("/proc/%d/root/tmp/elsewhere", p.Pid)
		must(t, unix.Stat(dev+"/pts", &pts))
		for _, file := range []string{
			fmt.Sprintf("/proc/%d/fd/0", p.Pid), dev + "/console", fmt.Sprintf("/proc/%d/fd/0", e.Pid),
		} {
			var st unix.Stat_t
			must(t, unix.Stat(file, &st))
			if st.Dev != pts.Dev || unix.Major(uint64(st.Rdev)) != 136 {
				t.Errorf("%s is not of the container's devpts", file)
			}
		}
	})
}

func TestRlimits(t *testing.T) {
	l := newLauncher(t)
	var now unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &now))
	c := config(busybox(t), "ulimit -Sn; ulimit -Hn; ulimit -c")
	c.Command.Rlimits = []Rlimit{
		{Resource: unix.RLIMIT_NOFILE, Soft: 100, Hard: 200},
		{Resource: unix.RLIMIT_CORE, Soft: 0, Hard: 0},
	}
	if got := output(t, l, c, IO{}); got != "100\n200\n0" {
		t.Errorf("got %q", got)
	}
	c.Command.Rlimits = []Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 1 << 20, Hard: 1 << 20}}
	low := -1000
	c.Command.OOMScoreAdj = &low
	got, err := runIn(t, l, c, IO{})
	must(t, err)
	if caps.Bounding().Has(unix.CAP_SYS_RESOURCE) {
		t.Skip("SKIP the rest: this host permits every limit")
	}
	want := strconv.FormatUint(now.Max, 10)
	if len(got.proc.Warnings) != 2 || !strings.HasPrefix(got.out, want+"\n"+want) {
		t.Errorf("limits %q, warnings %q", got.out, got.proc.Warnings)
	}
}

// TestSignalsAreReset: signals that the launcher ignores are not ignored inside.
func TestSignalsAreReset(t *testing.T) {
	signal.Ignore(unix.SIGHUP, unix.SIGUSR1)
	defer signal.Reset(unix.SIGHUP, unix.SIGUSR1)
	l := newLauncher(t)
	p := startSleeper(t, l, config(busybox(t), ""), IO{})
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
	must(t, err)
	for _, want := range []string{"SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "SigCgt:\t0000000000000000"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
}

// TestS31Sysctls: the container's own are set, anything else is refused before
// anything is made, and the host's do not change.
func TestS31Sysctls(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	c := config(root, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/msg_max")
	c.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.msgmax": "4321", "fs.mqueue.msg_max": "7"}
	if got := output(t, l, c, IO{}); got != "0\n4321\n7" {
		t.Errorf("got %q", got)
	}
	host, err := os.ReadFile("/proc/sys/kernel/msgmax")
	must(t, err)
	if strings.TrimSpace(string(host)) == "4321" {
		t.Error("the host's value changed")
	}
	for _, name := range []string{
		"kernel.core_pattern", "kernel.sem+kernel.core_pattern", "net.../../kernel.core_pattern", "net/../kernel/core_pattern",
		"net..kernel", "net", "", "kernel.shm_rmid_forced\nkernel.x", "vm.swappiness", "fs.mqueue", "kernel.msgmax.x",
		"kernel.hostname", "net.ipv4/ip_forward", "/net.ipv4.ip_forward", "net.ipv4.", "fs.mqueue.../x", "kernel.domainname", "kernel.msgfoo",
	} {
		c := config(root, "true")
		c.Sysctls = map[string]string{name: "1"}
		if _, err := runIn(t, l, c, IO{}); !errors.Is(err, ErrConfig) {
			t.Errorf("%q: %v, want a refusal", name, err)
		}
	}
	c = config(root, "true")
	c.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	c.Namespaces.Net = Namespace{}
	if _, err := runIn(t, l, c, IO{}); !errors.Is(err, ErrConfig) {
		t.Errorf("host network: %v, want a refusal", err)
	}
	c.Sysctls = map[string]string{"kernel.msgmax": "1\n2"}
	if _, err := runIn(t, l, c, IO{}); !errors.Is(err, ErrConfig) {
		t.Errorf("two lines: %v, want a refusal", err)
	}
}

// TestS05KernelFS: volumes at /proc and /sys and below are refused, however the
// place is spelled.
func TestS05KernelFS(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		root := busybox(t)
		must(t, os.Symlink("/proc", filepath.Join(root, "link")))
		must(t, os.Symlink("../proc/self", filepath.Join(root, "etc/link")))
		for _, dest := range []string{"/proc", "/proc/", "/proc/self", "/proc/self/attr", "/proc/sys/kernel", "/tmp/../proc", "/link", "/link/sys", "/etc/link", "/sys", "/sys/fs/cgroup", "/sys/kernel"} {
			for _, kind := range []string{"bind", "tmpfs"} {
				c := config(root, "true")
				c.Mounts = append(c.Mounts, Mount{Type: kind, Source: root, Destination: dest})
				if _, err := runIn(t, l, c, IO{}); err == nil || !strings.Contains(err.Error(), "refused") {
					t.Errorf("%s on %s: %v, want a refusal", kind, dest, err)
				}
			}
		}
		c := config(root, "cat /proc/uptime")
		fake := filepath.Join(t.TempDir(), "uptime")
		must(t, os.WriteFile(fake, []byte("42"), 0o644))
		c.Mounts = append(c.Mounts, Mount{Type: "bind", Source: fake, Destination: "/proc/uptime"})
		if got := output(t, l, c, IO{}); got != "42" {
			t.Errorf("uptime %q", got)
		}
		// An image whose /proc is a link.
		must(t, os.Remove(filepath.Join(root, "proc")))
		must(t, os.Symlink("/tmp", filepath.Join(root, "proc")))
		if _, err := runIn(t, l, config(root, "true"), IO{}); err == nil || !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("link at /proc: %v", err)
		}
	})
}

// TestS06Links: images in which every directory the engine mounts on or writes to
// is a link, absolute or climbing. A canary on the host must not change.
func TestS06Links(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		for _, up := range []string{"", "../../../../../../../.."} {
			root := busybox(t)
			canary := t.TempDir()
			for dir, target := range map[string]string{"dev": "d", "work": "w", "data": "v", "etc/hosts": "h"} {
				os.RemoveAll(filepath.Join(root, dir))
				must(t, os.Symlink(up+filepath.Join(canary, target), filepath.Join(root, dir)))
			}
			c := config(root, "pwd; echo x > /data/made; echo y > made; echo z > /dev/null; test -c /dev/null && test -d /dev/shm && cat /etc/hosts")
			volume := t.TempDir()
			hosts := filepath.Join(t.TempDir(), "hosts")
			must(t, os.WriteFile(hosts, []byte("127.0.0.1 box"), 0o644))
			c.Mounts = append(c.Mounts,
				Mount{Type: "bind", Source: volume, Destination: "/data"},
				Mount{Type: "bind", Source: hosts, Destination: "/etc/hosts"})
			c.Command.Cwd = "/work/deep"
			c.Command.Terminal = nil
			got := output(t, l, c, IO{})
			if want := filepath.Join(canary, "w/deep") + "\n127.0.0.1 box"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if entries, err := os.ReadDir(canary); err != nil || len(entries) > 0 {
				t.Errorf("the canary has %v, %v", entries, err)
			}
			if _, err := os.Stat(filepath.Join(volume, "made")); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestS06Race swaps a directory of a volume with a link to the host while
// containers mount below it.
func TestS06Race(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		root, canary, volume := busybox(t), t.TempDir(), t.TempDir()
		must(t, os.WriteFile(filepath.Join(canary, "mark"), nil, 0o644))
		a, b := filepath.Join(volume, "a"), filepath.Join(volume, "b")
		must(t, os.Mkdir(a, 0o755))
		must(t, os.Symlink("../../../../../../.."+canary, b))
		stop := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-stop:
					return
				default:
					unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
				}
			}
		}()
		before, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		starts := 0
		for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
			c := config(root, "true")
			c.Mounts = append(c.Mounts,
				Mount{Type: "bind", Source: volume, Destination: "/v"},
				Mount{Type: "tmpfs", Destination: "/v/a/made"})
			if _, err := runIn(t, l, c, IO{}); err == nil {
				starts++
			}
		}
		close(stop)
		<-done
		if entries, _ := os.ReadDir(canary); len(entries) != 1 {
			t.Errorf("the canary has %v", entries)
		}
		if after, _ := os.ReadFile("/proc/self/mountinfo"); !bytes.Equal(before, after) {
			t.Error("mounts of the host changed")
		}
		if starts == 0 {
			t.Error("not one start succeeded")
		}
	})
}

// TestS53HostKnobs: what controls the host cannot be written.
func TestS53HostKnobs(t *testing.T) {
	l := newLauncher(t)
	c := config(busybox(t), `for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/kernel/modprobe /sys/kernel/uevent_helper /proc/sys/fs/binfmt_misc/register; do
		[ -e $f ] && echo x 2>/dev/null > $f && echo wrote $f; done; true`)
	if got := output(t, l, c, IO{}); strings.Contains(got, "wrote") {
		t.Error(got)
	}
}

// TestJoinNet: a network namespace by descriptor, for the run and the exec after.
func TestJoinNet(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	holder := startSleeper(t, l, config(root, ""), IO{})
	fd, err := ns.Open(holder.Pid, ns.Net)
	must(t, err)
	defer unix.Close(fd)
	want, err := ns.Identify(fd)
	must(t, err)
	c := config(root, "readlink /proc/self/ns/net")
	c.Namespaces.Net = Namespace{}
	got := output(t, l, c, IO{Join: map[ns.Kind]int{ns.Net: fd}})
	if got != fmt.Sprintf("net:[%d]", want.Ino) {
		t.Errorf("joined %s, want %d", got, want.Ino)
	}
	// The pid namespace is the launching thread's business, and must not stick.
	c = config(root, "readlink /proc/self/ns/pid; echo $$")
	c.Namespaces.PID = Namespace{Path: ns.PID.Path(holder.Pid)}
	got = output(t, l, c, IO{})
	link, err := os.Readlink(ns.PID.Path(holder.Pid))
	must(t, err)
	if !strings.HasPrefix(got, link) || strings.HasSuffix(got, "\n1") {
		t.Errorf("joined %s, want %s", got, link)
	}
	if got := output(t, l, config(root, "echo $$"), IO{}); got != "1" {
		t.Errorf("the next container's first process is %s", got)
	}
}

func TestCancel(t *testing.T) {
	l := newLauncher(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if p, err := l.Start(ctx, config(busybox(t), "sleep 100"), IO{}); !errors.Is(err, context.Canceled) {
		if err == nil {
			p.discard()
		}
		t.Errorf("got %v", err)
	}
}

func TestSeccomp(t *testing.T) {
	l := newLauncher(t)
	// uname(2) is EPERM, all else allowed.
	filter := program(
		bpf(0x20, 0, 0, 0),                        // load the number
		bpf(0x15, 0, 1, uint32(unix.SYS_SYSINFO)), // equal: next, else skip one
		bpf(0x06, 0, 0, 0x00050000|uint32(unix.EPERM)),
		bpf(0x06, 0, 0, 0x7fff0000))
	for _, nnp := range []bool{false, true} {
		for _, user := range []string{"", "alice"} {
			c := config(busybox(t), "grep -E '^(Seccomp|NoNewPrivs):' /proc/$$/status | tr -d '\\t\\n'")
			c.Command.Seccomp, c.Command.NoNewPrivs, c.Command.User.Spec = filter, nnp, user
			want := "NoNewPrivs:0Seccomp:2"
			if nnp {
				want = "NoNewPrivs:1Seccomp:2"
			}
			if got := output(t, l, c, IO{}); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	}
}

// TestDefaultProfile: the built-in seccomp profile lets a launch finish and denies
// what it is there for.
func TestDefaultProfile(t *testing.T) {
	l := newLauncher(t)
	target, err := seccomp.Host()
	must(t, err)
	target.Caps = caps.Default
	filter, err := seccomp.Default().Compile(target)
	must(t, err)
	root := busybox(t)
	must(t, os.Symlink("busybox", filepath.Join(root, "bin/unshare")))
	const script = "unshare -U true 2>/dev/null && echo unshared; mount -t tmpfs x /tmp 2>/dev/null && echo mounted; grep ^Seccomp: /proc/self/status | tr -d '\\t'"
	for _, nnp := range []bool{false, true} {
		for _, user := range []string{"", "alice"} {
			for _, userns := range []bool{false, true} {
				c := config(root, script)
				if userns {
					mapped(c)
				}
				c.Command.Seccomp, c.Command.NoNewPrivs, c.Command.User.Spec = filter, nnp, user
				if got := output(t, l, c, IO{}); got != "Seccomp:2" {
					t.Errorf("nnp %v, user %q, user namespace %v: %s", nnp, user, userns, got)
				}
				p := startSleeper(t, l, c, IO{})
				command := c.Command
				command.Args = []string{"sh", "-c", script}
				if got := execOutput(t, l, p, &command); got != "Seccomp:2" {
					t.Errorf("exec, nnp %v, user %q, user namespace %v: %s", nnp, user, userns, got)
				}
			}
		}
	}
}

func bpf(code uint16, jt, jf uint8, k uint32) []byte {
	return append([]byte{byte(code), byte(code >> 8), jt, jf}, byte(k), byte(k>>8), byte(k>>16), byte(k>>24))
}

func program(instructions ...[]byte) []byte { return bytes.Join(instructions, nil) }
