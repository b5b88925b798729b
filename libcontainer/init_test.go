package libcontainer

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/mount"
	"berth/libcontainer/seccomp"
)

// withInit is the usual container with a resident init.
func withInit(root, script string) *Config {
	c := config(root, script)
	c.Command.Init = true
	return c
}

// TestInit: what the command sees, and how its end becomes the container's.
func TestInit(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		root := busybox(t)
		got := output(t, l, withInit(root, `test $$ != 1 && echo child; head -c 10 /proc/1/cmdline; echo; ls /proc/1/fd | tr '\n' ' '; echo $0 $HOME
			tr '\0' '\n' </proc/1/environ | grep ^PATH=; env | grep -c BERTH; readlink /proc/self/cwd`), IO{})
		if want := "child\nberth-init\n0 1 2 sh /root\nPATH=/bin\n0\n/"; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		for script, want := range map[string]int{"exit 7": 7, "kill -9 $$": 137, "kill -TERM $$": 143, "sleep 100 & exit 3": 3} {
			if got, err := runIn(t, l, withInit(root, script), IO{}); err != nil || got.Code != want {
				t.Errorf("%q: code %d, %v; want %d", script, got.Code, err, want)
			}
		}
	})
}

// TestInitStartErrors: a command that cannot be started is told as it is without init.
func TestInitStartErrors(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	must(t, os.WriteFile(filepath.Join(root, "text"), []byte("no program"), 0o644))
	for command := range map[string]error{"/missing": ErrNotFound, "missing": ErrNotFound, "/text": ErrNotExecutable, "/etc": ErrNotExecutable} {
		with, without := withInit(root, ""), config(root, "")
		with.Command.Args, without.Command.Args = []string{command}, []string{command}
		_, got := runIn(t, l, with, IO{})
		_, want := runIn(t, l, without, IO{})
		if got == nil || want == nil || got.Error() != want.Error() {
			t.Errorf("%s: %v; without init %v", command, got, want)
		}
	}
}

// TestInitConfined: every thread of the resident init is as confined as the command.
func TestInitConfined(t *testing.T) {
	l := newLauncher(t)
	target, err := seccomp.Host()
	must(t, err)
	filter, err := seccomp.Default().Compile(target)
	must(t, err)
	for name, change := range map[string]func(*Config){
		"root":            func(*Config) {},
		"user":            func(c *Config) { c.Command.User.Spec = "alice" },
		"read-only root":  func(c *Config) { c.Root.Attr |= mount.ReadOnly },
		"user namespace":  func(c *Config) { mapped(c) },
		"host's pids":     func(c *Config) { c.Namespaces.PID = Namespace{} },
		"no capabilities": func(c *Config) { c.Command.Caps = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			c := withInit(busybox(t), `echo ready; read x`)
			c.Command.NoNewPrivs, c.Command.Seccomp = true, filter
			change(c)
			p, lines, finish := conversation(t, l, c)
			if line := <-lines; line != "ready" {
				t.Fatalf("got %q", line)
			}
			children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.Pid, p.Pid))
			must(t, err)
			child := strings.TrimSpace(string(children))
			want := confinement(t, "/proc/"+child+"/status")
			tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.Pid))
			must(t, err)
			for _, task := range tasks {
				if got := confinement(t, task); got != want {
					t.Errorf("%s\n%s\nthe command has\n%s", task, got, want)
				}
			}
			t.Logf("%d threads, %s", len(tasks), memory(t, p.Pid))
			if status := finish(); status.Code != 0 {
				t.Errorf("exit code %d", status.Code)
			}
		})
	}
}

// conversation starts a container whose output comes line by line; finish gives it an
// empty line and waits for its end.
func conversation(t *testing.T, l *Launcher, c *Config) (*Process, <-chan string, func() Status) {
	t.Helper()
	in, stdin, err := os.Pipe()
	must(t, err)
	stdout, out, err := os.Pipe()
	must(t, err)
	p, err := l.Start(context.Background(), c, IO{Stdin: in, Stdout: out, Stderr: out})
	in.Close()
	out.Close()
	must(t, err)
	lines := make(chan string, 100)
	go func() {
		for s := bufio.NewScanner(stdout); s.Scan(); {
			lines <- s.Text()
		}
		close(lines)
	}()
	ended := false
	t.Cleanup(func() {
		if !ended {
			p.discard()
		}
		stdin.Close()
		stdout.Close()
	})
	return p, lines, func() Status {
		t.Helper()
		fmt.Fprintln(stdin)
		status, err := p.Wait()
		must(t, err)
		ended = true
		p.Close()
		return status
	}
}

// confinement is what a status file says of rights.
func confinement(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	var kept []string
	for line := range strings.Lines(string(b)) {
		switch key, _, _ := strings.Cut(line, ":"); key {
		case "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
			kept = append(kept, strings.TrimSpace(line))
		}
	}
	return strings.Join(kept, "\n")
}

// memory is what a process costs.
func memory(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	must(t, err)
	var kept []string
	for line := range strings.Lines(string(b)) {
		if key, value, _ := strings.Cut(line, ":"); key == "Pss" || key == "Rss" || key == "Private_Dirty" {
			kept = append(kept, key+" "+strings.TrimSpace(value))
		}
	}
	return strings.Join(kept, ", ")
}

// TestInitSignals: what is sent to the container arrives at the command, once.
func TestInitSignals(t *testing.T) {
	l := newLauncher(t)
	p, lines, finish := conversation(t, l, withInit(busybox(t), `
		for s in HUP INT QUIT USR1 USR2 TERM WINCH TSTP TTIN TTOU; do trap "echo $s" $s; done
		echo ready; while ! read -t 1 x; do :; done; exit 5`))
	next := func() string {
		select {
		case line := <-lines:
			return line
		case <-time.After(10 * time.Second):
			return "nothing"
		}
	}
	if line := next(); line != "ready" {
		t.Fatalf("got %q", line)
	}
	for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM, unix.SIGWINCH, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU} {
		must(t, p.Signal(s))
		if got, want := next(), strings.TrimPrefix(unix.SignalName(s), "SIG"); got != want {
			t.Errorf("after %s the command says %q", want, got)
		}
	}
	if status := finish(); status.Code != 5 {
		t.Errorf("exit code %d, want 5", status.Code)
	}
	for line := range lines {
		t.Errorf("the command also said %q", line)
	}
}

// TestInitStopped: SIGTSTP stops a command, which process 1 of a PID namespace it would
// not, and SIGCONT lets it go on.
func TestInitStopped(t *testing.T) {
	l := newLauncher(t)
	c := withInit(busybox(t), "")
	c.Command.Args = []string{"sleep", "1000"}
	p, err := l.Start(t.Context(), c, IO{})
	must(t, err)
	t.Cleanup(p.discard)
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.Pid, p.Pid))
	must(t, err)
	state := func() string {
		b, _ := os.ReadFile("/proc/" + strings.TrimSpace(string(children)) + "/stat")
		_, rest, _ := strings.Cut(string(b), ") ")
		return rest[:min(1, len(rest))]
	}
	for _, step := range []struct {
		signal unix.Signal
		state  string
	}{{unix.SIGTSTP, "T"}, {unix.SIGCONT, "S"}, {unix.SIGTTOU, "T"}, {unix.SIGCONT, "S"}} {
		must(t, p.Signal(step.signal))
		for deadline := time.Now().Add(5 * time.Second); state() != step.state; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("after %s the command is %q, want %q", unix.SignalName(step.signal), state(), step.state)
			}
		}
	}
}

// TestInitTerminal: the command has the terminal's foreground; what is typed reaches it
// and not init.
func TestInitTerminal(t *testing.T) {
	l := newLauncher(t)
	c := withInit(busybox(t), `trap "echo interrupted" INT; stty size; read x; echo "read $x"; tty; until read y; do :; done; exit 9`)
	c.Command.Terminal = &ConsoleSize{Rows: 11, Cols: 22}
	p, err := l.Start(t.Context(), c, IO{})
	must(t, err)
	defer p.Close()
	defer p.Console.Close()
	r := bufio.NewReader(p.Console)
	expect := func(want string) {
		t.Helper()
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				p.Signal(unix.SIGKILL)
				t.Fatalf("no %q: %v", want, err)
			}
			if strings.HasSuffix(strings.TrimSpace(line), want) { // the echo of what was typed may come before
				return
			}
		}
	}
	expect("11 22")
	p.Console.WriteString("typed\n")
	expect("read typed")
	expect("/dev/pts/0")
	p.Console.WriteString("\x03") // interrupt: the shell's read ends with its trap
	expect("interrupted")
	p.Console.WriteString("\n")
	status, err := p.Wait()
	must(t, err)
	if status.Code != 9 {
		t.Errorf("exit code %d", status.Code)
	}
}

// TestF32Orphans: ten thousand orphans are all reaped, and their exits are not taken for
// the command's.
func TestF32Orphans(t *testing.T) {
	const orphans = 10_000
	l := newLauncher(t)
	root := busybox(t)
	for _, shared := range []bool{false, true} {
		// Each "(true &)" leaves an orphan: its parent ends at once.
		c := withInit(root, fmt.Sprintf(`i=0; while [ $i -lt %d ]; do (true &); i=$((i+1)); done
			for n in 1 2 3 4 5 6 7 8 9 10; do [ $(ps -o stat,ppid | grep -c '^Z') = 0 ] && break; sleep 0.2; done
			ps -o stat,ppid | grep -c '^Z'; exit 6`, orphans))
		if shared {
			c.Namespaces.PID = Namespace{}
			c.Command.Args[2] = strings.ReplaceAll(c.Command.Args[2], "'^Z'", `"^Z *$PPID$"`)
		}
		got, err := runIn(t, l, c, IO{})
		if err != nil || got.Code != 6 || got.out != "0" {
			t.Errorf("shared PID namespace %v: code %d, %q zombies, %v", shared, got.Code, got.out, err)
		}
	}
}
