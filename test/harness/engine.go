package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"berth/internal/config"
)

// Engine is one running instance.
type Engine struct {
	Root, Run string
	dir       string
	instance  string // what its kernel objects' names end in
	env       []string
	bin       string
	before    Snapshot
}

// Result is what a command line printed and how it ended.
type Result struct {
	Args     []string
	Out, Err string
	Code     int
	Took     time.Duration
}

// New starts an engine for one test and stops and audits it at the test's end. env is added to the daemons'.
func New(t testing.TB, env ...string) *Engine {
	t.Helper()
	return NewWith(t, Options{Env: env})
}

// Options say how an engine differs from the usual one.
type Options struct {
	Env  []string // added to the daemons' and the client's
	Bin  string   // folder of the programs, instead of the project's bin/
	Root string   // state directory, instead of a fresh one; who names it removes it
	// Driver is the graph driver; empty: the one that is best here.
	Driver string
}

// NewWith is New with options.
func NewWith(t testing.TB, o Options) *Engine {
	t.Helper()
	if o.Bin == "" {
		o.Bin = filepath.Dir(Bin(t, "berth"))
	}
	e, err := start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, leak := range e.Close() {
			t.Errorf("leak: %s", leak)
		}
	})
	return e
}

var shared struct {
	once sync.Once
	e    *Engine
	err  error
}

// Shared is the engine that the tests of a package share; it ends with the package.
func Shared(t testing.TB) *Engine {
	t.Helper()
	bin := filepath.Dir(Bin(t, "berth"))
	shared.once.Do(func() { shared.e, shared.err = start(Options{Bin: bin}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.e
}

func stopShared() {
	if shared.e == nil {
		return
	}
	for _, leak := range shared.e.Close() {
		fmt.Fprintln(os.Stderr, "FAIL: leak:", leak)
		defer os.Exit(1)
	}
}

func start(o Options) (*Engine, error) {
	// Short: the path of a unix socket has at most 107 bytes (unix(7)).
	dir, err := os.MkdirTemp("/tmp", "berth-e2e.")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	e := &Engine{Root: dir + "/root", Run: dir + "/run", dir: dir, bin: o.Bin}
	if o.Root != "" {
		e.Root = o.Root
	}
	e.instance = (&config.Config{Root: e.Root}).Instance()
	e.before = take(e.instance)
	e.env = append(os.Environ(), "BERTH_ROOT="+e.Root, "BERTH_RUN="+e.Run, "BERTH_HOST=", "HOME="+dir, "DOCKER_CONFIG="+dir+"/docker", "XDG_CONFIG_HOME="+dir+"/config")
	if o.Driver != "" {
		file := dir + "/berth.toml"
		if err := os.WriteFile(file, []byte("[imaged]\ndriver = "+strconv.Quote(o.Driver)+"\n"), 0o644); err != nil {
			return nil, err
		}
		e.env = append(e.env, "BERTH_CONFIG="+file)
	}
	e.env = append(e.env, o.Env...)
	if err := e.Up(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return e, nil
}

// Up starts the daemons again after Down.
func (e *Engine) Up() error {
	if r := e.berth(nil, "up", "--detach"); r.Code != 0 {
		return fmt.Errorf("berth up: %s%s\n%s", r.Out, r.Err, e.Logs(5))
	}
	return nil
}

// Close removes what tests left, stops the engine, and returns what it leaked.
func (e *Engine) Close() (leaks []string) {
	ids := e.berth(nil, "ps", "-aq")
	if names := strings.Fields(ids.Out); len(names) > 0 {
		e.berth(nil, append([]string{"rm", "-f"}, names...)...)
	}
	if r := e.berth(nil, "down"); r.Code != 0 {
		leaks = append(leaks, "berth down: "+r.Err)
	}
	leaks = append(leaks, e.leaks()...)
	if len(leaks) > 0 {
		leaks = append(leaks, "logs:\n"+e.Logs(10))
	}
	_ = exec.Command("rm", "-rf", "--one-file-system", e.dir).Run()
	return leaks
}

// Logs is the end of each daemon's log.
func (e *Engine) Logs(lines int) string {
	out, _ := exec.Command("sh", "-c", "tail -n "+strconv.Itoa(lines)+" "+e.Root+"/log/*.log").CombinedOutput()
	return string(out)
}

// Berth runs the CLI and expects success; it returns stdout without the last newline.
func (e *Engine) Berth(t testing.TB, args ...string) string {
	t.Helper()
	r := e.berth(nil, args...)
	if r.Code != 0 {
		t.Fatalf("berth %s: exit %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.Code, r.Out, r.Err)
	}
	return strings.TrimSuffix(r.Out, "\n")
}

// Try runs the CLI and returns what came of it.
func (e *Engine) Try(args ...string) Result { return e.berth(nil, args...) }

// TryStdin is Try with input.
func (e *Engine) TryStdin(in string, args ...string) Result { return e.berth([]byte(in), args...) }

// Fails runs the CLI and expects this exit code and a message that contains all the words.
func (e *Engine) Fails(t testing.TB, code int, words []string, args ...string) {
	t.Helper()
	r := e.berth(nil, args...)
	if r.Code != code {
		t.Errorf("berth %s: exit %d, want %d\nstderr: %s", strings.Join(args, " "), r.Code, code, r.Err)
	}
	for _, w := range words {
		if !strings.Contains(r.Err, w) {
			t.Errorf("berth %s: message lacks %q: %s", strings.Join(args, " "), w, r.Err)
		}
	}
	if !strings.HasPrefix(r.Err, "error: ") && !strings.Contains(r.Err, "\nerror: ") {
		t.Errorf("berth %s: no line that begins with error: %q", strings.Join(args, " "), r.Err)
	}
}

// Command prepares a CLI process, for tests that talk to it while it runs.
func (e *Engine) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(e.bin, "berth"), args...)
	cmd.Env, cmd.Dir = e.env, e.dir
	return cmd
}

const commandTime = 2 * time.Minute

func (e *Engine) berth(in []byte, args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(e.bin, "berth"), args...)
	cmd.Env, cmd.Dir = e.env, e.dir
	cmd.WaitDelay = time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if in != nil {
		cmd.Stdin = bytes.NewReader(in)
	}
	began := time.Now()
	err := cmd.Run()
	r := Result{Args: args, Out: out.String(), Err: errs.String(), Took: time.Since(began)}
	var x *exec.ExitError
	switch {
	case ctx.Err() != nil:
		r.Code, r.Err = -1, r.Err+"\n(no answer in "+commandTime.String()+")"
	case errors.As(err, &x):
		r.Code = x.ExitCode()
	case err != nil:
		r.Code, r.Err = -1, r.Err+err.Error()
	}
	return r
}

// Dial connects to apid as any gRPC client does.
func (e *Engine) Dial(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+e.Run+"/apid.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Pid is the process of a daemon ("apid"), or of the monitor ("monitor"), 0 when it does not run.
func (e *Engine) Pid(daemon string) int {
	lock := daemon
	if daemon == "monitor" {
		return findProcess("berth-monitor", e.Run)
	}
	b, err := os.ReadFile(filepath.Join(e.Run, "lock", lock+".lock"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	if syscall.Kill(pid, 0) != nil {
		return 0
	}
	return pid
}

// Children are the processes of that name that a daemon has started.
func (e *Engine) Children(daemon, name string) (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", e.Pid(daemon)))
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		for _, f := range strings.Fields(string(b)) {
			comm, _ := os.ReadFile("/proc/" + f + "/comm")
			if pid, err := strconv.Atoi(f); err == nil && strings.TrimSpace(string(comm)) == name {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// Kill sends SIGKILL to a daemon and waits until it is gone. `berth up` starts it again.
func (e *Engine) Kill(t testing.TB, daemon string) {
	t.Helper()
	pid := e.Pid(daemon)
	if pid == 0 {
		t.Fatalf("kill %s: it does not run", daemon)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %s: %v", daemon, err)
	}
	Eventually(t, 5*time.Second, func() bool { return syscall.Kill(pid, 0) != nil || e.Pid(daemon) != pid }, "%s (pid %d) is gone", daemon, pid)
}

// Ready waits until every daemon serves.
func (e *Engine) Ready(t testing.TB) {
	t.Helper()
	Eventually(t, 20*time.Second, func() bool {
		r := e.berth(nil, "version", "-f", "{{range .Server.Daemons}}{{.Status}} {{end}}")
		return r.Code == 0 && strings.Count(r.Out, "serving") == 4 && strings.Count(r.Out, " ") == 4
	}, "all daemons serve")
}

// Eventually waits for a condition.
func Eventually(t testing.TB, limit time.Duration, ok func() bool, what string, args ...any) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, fmt.Sprintf(what, args...))
		}
	}
}

// findProcess is the pid of the process of that name whose command line or environment names dir.
func findProcess(name, dir string) int {
	for _, p := range processes() {
		if p.name == name && strings.Contains(p.cmdline, dir) {
			return p.pid
		}
	}
	return 0
}
