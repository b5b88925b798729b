package libcontainer

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup"
	"berth/libcontainer/internal/spawn"
	"berth/libcontainer/seccomp"
)

// bothWays runs a test with commands started from inside the container, and with
// those that an init becomes, as before Linux 5.9.
func bothWays(t *testing.T, test func(t *testing.T, l *Launcher)) {
	for name, only := range map[string]bool{"inside": false, "init": true} {
		if !only && !spawn.Supported {
			continue
		}
		t.Run(name, func(t *testing.T) {
			l := newLauncher(t)
			l.initOnly = only
			test(t, l)
		})
	}
}

// withoutInit reports which way a process was started.
func withoutInit(p *Process) bool {
	return slices.ContainsFunc(p.Trace, func(s Step) bool { return s.Name == "clone and exec" })
}

// execIn runs a command in the container of p to its end.
func execIn(tb testing.TB, l *Launcher, p *Process, c *Command, files IO) (result, error) {
	tb.Helper()
	got, err := capture(tb, files, func(io IO) (*Process, error) {
		return l.Exec(context.Background(), Target{Pid: p.Pid, PidFD: p.PidFD}, c, io)
	})
	if err == nil && withoutInit(got.proc) == l.initOnly {
		tb.Errorf("started without init: %v, want %v", l.initOnly, !l.initOnly)
	}
	return got, err
}

// probe prints all that a command can know of itself.
const probe = `id; id -G; pwd; env | grep -v ^_; umask; ulimit -n; ulimit -H -n; cat /proc/self/oom_score_adj
ls -l /proc/self/fd | wc -l
grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp|SigBlk|SigIgn|SigCgt)' /proc/self/status
cat /proc/self/timerslack_ns 2>/dev/null; cat /proc/self/sessionid
for n in cgroup ipc mnt net pid uts user; do test "$(readlink /proc/self/ns/$n)" = "$(readlink /proc/1/ns/$n)" && echo $n; done
cat /proc/self/cgroup; tr '\0' ' ' </proc/self/cmdline`

// TestExecInside: a command that no init became is in every respect like one that
// an init became.
func TestExecInside(t *testing.T) {
	target, err := seccomp.Host()
	must(t, err)
	filter, err := seccomp.Default().Compile(target)
	must(t, err)
	adj := 500
	cases := map[string]func(c *Command){
		"plain":       func(c *Command) {},
		"user":        func(c *Command) { c.User = User{Spec: "alice", Groups: []string{"33"}} },
		"numbers":     func(c *Command) { c.User.Spec = "7:8" },
		"filter":      func(c *Command) { c.Seccomp = filter },
		"no new":      func(c *Command) { c.Seccomp, c.NoNewPrivs, c.User.Spec = filter, true, "alice" },
		"no caps":     func(c *Command) { c.Caps = 0 },
		"limits":      func(c *Command) { c.Rlimits = []Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 55, Hard: 66}} },
		"high limits": func(c *Command) { c.Rlimits = []Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 55, Hard: 1 << 40}} },
		"oom":         func(c *Command) { c.OOMScoreAdj, c.Umask = &adj, 0o77 },
		"directory":   func(c *Command) { c.Cwd = "/home/alice" },
	}
	group := testGroup(t, cgroup.Resources{Pids: 100})
	said := map[string][]string{}
	bothWays(t, func(t *testing.T, l *Launcher) {
		p := startSleeper(t, l, config(busybox(t), ""), IO{Cgroup: group})
		for name, change := range cases {
			c := config("/", probe).Command
			change(&c)
			got, err := execIn(t, l, p, &c, IO{Cgroup: group})
			if err != nil || got.Code != 0 {
				t.Errorf("%s: exit status %d, %v: %s", name, got.Code, err, got.out)
				continue
			}
			if name == "plain" && !strings.Contains(got.out, "cgroup\nipc\nmnt\nnet\npid\nuts\nuser") {
				t.Errorf("%s: is not in all namespaces of the container:\n%s", name, got.out)
			}
			said[name] = append(said[name], got.out+"\n"+strings.Join(got.proc.Warnings, "\n"))
		}
		p.discard() // leaves the group before it is removed
	})
	for name, outputs := range said {
		if len(outputs) == 2 && outputs[0] != outputs[1] {
			t.Errorf("%s: one way\n%s\nthe other\n%s", name, outputs[0], outputs[1])
		}
	}
}

// TestExecErrors: what cannot be run is told the same way, and nothing is left.
func TestExecErrors(t *testing.T) {
	bothWays(t, func(t *testing.T, l *Launcher) {
		root := busybox(t)
		must(t, os.WriteFile(filepath.Join(root, "bin/plain"), []byte("text"), 0o644))
		must(t, os.WriteFile(filepath.Join(root, "bin/garbage"), []byte("\x01\x02\x03"), 0o755))
		must(t, os.MkdirAll(filepath.Join(root, "more"), 0o755))
		must(t, os.WriteFile(filepath.Join(root, "more/plain"), []byte("#!/bin/sh\nexit 5\n"), 0o755))
		p := startSleeper(t, l, config(root, ""), IO{})
		before := openFDs(t)
		for _, c := range []struct {
			args []string
			want error
			text string
		}{
			{[]string{"nowhere"}, ErrNotFound, `start "nowhere": executable file not found in PATH`},
			{[]string{"/bin/nowhere"}, ErrNotFound, `start "/bin/nowhere": no such file or directory`},
			{[]string{"/bin/true/x"}, ErrNotFound, `start "/bin/true/x": no such file or directory`},
			{[]string{"plain"}, ErrNotExecutable, `start "plain": permission denied`},
			{[]string{"garbage"}, ErrNotExecutable, `start "garbage": exec format error`},
			{[]string{"/bin"}, ErrNotExecutable, `start "/bin": permission denied`},
		} {
			command := config("/", "").Command
			command.Args = c.args
			_, err := execIn(t, l, p, &command, IO{})
			if !errors.Is(err, c.want) || err.Error() != c.text {
				t.Errorf("%q: %v, want %s", c.args, err, c.text)
			}
		}
		command := config("/", "").Command
		command.User.Spec = "mallory"
		if _, err := execIn(t, l, p, &command, IO{}); !errors.Is(err, ErrUser) {
			t.Errorf("unknown user: %v", err)
		}
		command = config("/", "").Command
		command.Cwd = "/nowhere"
		if _, err := execIn(t, l, p, &command, IO{}); !errors.Is(err, ErrNotExecutable) {
			t.Errorf("missing directory: %v", err)
		}
		command = config("/", "").Command
		command.Args, command.Env = []string{"plain"}, []string{"PATH=/bin:/nowhere:/more"}
		if got, err := execIn(t, l, p, &command, IO{}); err != nil || got.Code != 5 {
			t.Errorf("further on in PATH: %d, %v", got.Code, err)
		}
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	})
}

// TestExecTerminal: the terminal is the container's, controls the session and
// belongs to the command's user.
func TestExecTerminal(t *testing.T) {
	bothWays(t, func(t *testing.T, l *Launcher) {
		p := startSleeper(t, l, config(busybox(t), ""), IO{})
		c := config("/", "tty; stat -c '%u %a' $(tty); stty size; echo x >/dev/tty").Command
		c.Terminal, c.User.Spec = &ConsoleSize{Rows: 12, Cols: 34}, "alice"
		e, err := l.Exec(t.Context(), Target{Pid: p.Pid, PidFD: p.PidFD}, &c, IO{})
		must(t, err)
		defer e.Close()
		defer e.Console.Close()
		status, err := e.Wait()
		must(t, err)
		said, _ := io.ReadAll(e.Console) // EIO at the end
		got := strings.ReplaceAll(strings.TrimSpace(string(said)), "\r", "")
		if lines := strings.Split(got, "\n"); status.Code != 0 || len(lines) != 4 || !strings.HasPrefix(lines[0], "/dev/pts/") ||
			!strings.HasPrefix(lines[1], "1000 6") || lines[2] != "12 34" || lines[3] != "x" {
			t.Errorf("exit status %d:\n%s", status.Code, got)
		}
		if withoutInit(e) == l.initOnly {
			t.Error("started the other way")
		}
	})
}

// TestExecInsideRefused: whose processes could trace a child that shares memory with
// the launcher, and a launcher that everybody may trace, get an init.
func TestExecInsideRefused(t *testing.T) {
	l := newLauncher(t)
	c := config(busybox(t), "")
	c.Command.Caps |= 1 << unix.CAP_SYS_PTRACE
	tracer := startSleeper(t, l, c, IO{})
	plain := startSleeper(t, l, config(busybox(t), ""), IO{})
	command := config("/", "true").Command
	started := func(p *Process) bool {
		e, err := l.Exec(t.Context(), Target{Pid: p.Pid, PidFD: p.PidFD}, &command, IO{})
		must(t, err)
		defer e.Close()
		if s, err := e.Wait(); err != nil || s.Code != 0 {
			t.Errorf("%+v, %v", s, err)
		}
		return withoutInit(e)
	}
	if started(tracer) {
		t.Error("no init although the container has CAP_SYS_PTRACE")
	}
	if !started(plain) {
		t.Error("an init although none is needed")
	}
	must(t, unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
	defer unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if started(plain) {
		t.Error("no init although the launcher can be traced")
	}
}
