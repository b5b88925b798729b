package libcontainer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
	"berth/libcontainer/cgroup"
	"berth/libcontainer/mount"
)

// initBinary is built once for all tests.
var initBinary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "SKIP: every test of libcontainer needs root")
		return 0
	}
	// As the monitor is; without, Exec would take an init always.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "prctl:", err)
		return 1
	}
	// Where there is no Go, as in a virtual machine of another kernel, the binary
	// comes along.
	if initBinary = os.Getenv("BERTH_INIT"); initBinary != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "berth-init-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	initBinary = filepath.Join(dir, "berth-init")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", initBinary, "./cmd/berth-init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build init: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func newLauncher(tb testing.TB) *Launcher {
	tb.Helper()
	l, err := New(initBinary)
	must(tb, err)
	tb.Cleanup(func() { l.Close() })
	return l
}

// busybox makes a root file system with one binary in it and returns the
// directory.
func busybox(tb testing.TB) string {
	tb.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		tb.Skip("SKIP: needs busybox-static")
	}
	// Images are readable to everybody, which temporary directories are not.
	root := filepath.Join(tb.TempDir(), "root")
	for dir := filepath.Dir(root); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		must(tb, os.Chmod(dir, 0o755))
	}
	for _, dir := range []string{"bin", "etc", "proc", "sys", "dev", "root", "home/alice"} {
		must(tb, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	must(tb, os.Mkdir(filepath.Join(root, "tmp"), 0o777))
	must(tb, os.Chmod(filepath.Join(root, "tmp"), 0o1777))
	binary, err := os.ReadFile(path)
	must(tb, err)
	must(tb, os.WriteFile(filepath.Join(root, "bin/busybox"), binary, 0o755))
	for _, name := range []string{"sh", "true", "false", "cat", "ls", "id", "echo", "sleep", "stat", "mount", "tty", "stty", "pwd", "env", "readlink", "hostname", "mknod", "touch", "grep", "head", "dd", "kill", "test", "chmod", "nsenter", "mkdir", "wc", "tr", "ps"} {
		must(tb, os.Symlink("busybox", filepath.Join(root, "bin", name)))
	}
	must(tb, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n"), 0o644))
	must(tb, os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\nalice:x:1000:\naudio:x:29:alice\n"), 0o644))
	return root
}

// config is the usual container over root, with a shell command; the host's
// cgroups stay out of it.
func config(root string, script string) *Config {
	c := &Config{
		Root:       Root{Bind: root, Attr: mount.NoDev},
		Namespaces: PrivateNamespaces(),
		Hostname:   "box",
		Masked:     DefaultMasked(),
		ReadOnly:   DefaultReadOnly(),
		Devices:    DefaultDevices(),
		Command: Command{
			Args: []string{"sh", "-c", script},
			Env:  []string{"PATH=/bin"},
			Caps: caps.Default,
		},
	}
	for _, m := range DefaultMounts(DefaultShm) {
		if m.Type != "cgroup" {
			c.Mounts = append(c.Mounts, m)
		}
	}
	return c
}

// result is what a command did.
type result struct {
	Status
	out  string
	proc *Process
}

// runIn starts a container and waits for it.
func runIn(tb testing.TB, l *Launcher, c *Config, io IO) (result, error) {
	tb.Helper()
	return capture(tb, io, func(io IO) (*Process, error) { return l.Start(context.Background(), c, io) })
}

func capture(tb testing.TB, files IO, start func(IO) (*Process, error)) (result, error) {
	tb.Helper()
	r, w, err := os.Pipe()
	must(tb, err)
	defer r.Close()
	var buf bytes.Buffer
	var reader sync.WaitGroup
	reader.Go(func() { io.Copy(&buf, r) })
	files.Stdout, files.Stderr = w, w
	proc, err := start(files)
	w.Close()
	if err != nil {
		reader.Wait()
		return result{}, err
	}
	defer proc.Close()
	status, err := proc.Wait()
	must(tb, err)
	reader.Wait()
	return result{Status: status, out: strings.TrimSpace(buf.String()), proc: proc}, nil
}

// output runs a script that must succeed and returns what it printed.
func output(tb testing.TB, l *Launcher, c *Config, io IO) string {
	tb.Helper()
	got, err := runIn(tb, l, c, io)
	if err != nil {
		tb.Fatalf("start: %v", err)
	}
	if got.Code != 0 {
		tb.Fatalf("exit status %d: %s", got.Code, got.out)
	}
	return got.out
}

// testGroup makes a control group below one of this test's own.
func testGroup(tb testing.TB, r cgroup.Resources) *cgroup.Group {
	tb.Helper()
	layout, err := cgroup.Detect()
	if err != nil {
		tb.Skipf("SKIP: no control groups: %v", err)
	}
	name := fmt.Sprintf("berth-test-%x", rand.Uint64())
	parent, err := cgroup.OpenParent(layout, "/"+name)
	must(tb, err)
	group, err := parent.Create("c", r)
	must(tb, err)
	tb.Cleanup(func() {
		if err := group.Delete(); err != nil {
			tb.Errorf("delete control group: %v", err)
		}
		for _, h := range layout.Hierarchies {
			os.Remove(filepath.Join(h.Mountpoint, name))
		}
		parent.Close()
	})
	return group
}

// startSleeper starts a container that waits to be killed, and kills it in the
// end.
func startSleeper(tb testing.TB, l *Launcher, c *Config, io IO) *Process {
	tb.Helper()
	c.Command.Args = []string{"sleep", "1000"}
	p, err := l.Start(context.Background(), c, io)
	must(tb, err)
	tb.Cleanup(p.discard)
	return p
}
