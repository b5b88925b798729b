package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"berth/internal/account"
	"berth/internal/faultpoint"
)

// The test binary plays the daemon when this is set: "drop" prints the state of
// its threads after dropping privileges, "main" is a whole daemon.
const childEnv = "BERTH_DAEMON_TEST_CHILD"

var testPoint = faultpoint.Declare("testd.started", "the test daemon runs")

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "drop":
		dropAndPrint()
	case "main":
		if dir := os.Getenv("TEST_ETC"); dir != "" {
			replaceAccounts(dir)
		}
		Main(Spec{
			Name:    "imaged",
			User:    account.Imaged,
			Keep:    []string{"CHOWN"},
			Sockets: []Socket{{Name: ImagedSocket}},
			Run: func(ctx context.Context, env *Env) error {
				if err := testPoint.Hit(); err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(env.StateDir, "written"), nil, 0o600); err != nil {
					return err
				}
				return env.Serve(ctx, ImagedSocket, ServerOptions{}, func(*grpc.Server) {})
			},
		})
	}
	os.Exit(m.Run())
}

func dropAndPrint() {
	for range 4 { // some threads that exist before
		go func() { syscall.Nanosleep(&syscall.Timespec{Sec: 5}, nil) }()
	}
	time.Sleep(50 * time.Millisecond)
	err := dropPrivileges(Spec{User: "nobody", Keep: []string{"NET_ADMIN", "NET_BIND_SERVICE"}}, account.ID{UID: 65534, GID: 65534})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	threads, _ := filepath.Glob("/proc/self/task/*/status")
	for _, path := range threads {
		b, _ := os.ReadFile(path)
		os.Stdout.Write(b)
	}
	os.Exit(0)
}

// replaceAccounts gives this process's own mount namespace the account files in dir.
func replaceAccounts(dir string) {
	for _, m := range []struct {
		source, target string
		flags          uintptr
	}{
		{"none", "/", syscall.MS_REC | syscall.MS_PRIVATE},
		{dir + "/passwd", "/etc/passwd", syscall.MS_BIND},
		{dir + "/group", "/etc/group", syscall.MS_BIND},
	} {
		if err := syscall.Mount(m.source, m.target, "", m.flags, ""); err != nil {
			fmt.Fprintln(os.Stderr, "mount", m.target, err)
			os.Exit(1)
		}
	}
}

type instance struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
}

func startInstance(t *testing.T, dir, etc string, args ...string) *instance {
	t.Helper()
	i := &instance{cmd: exec.Command(os.Args[0], append([]string{"--root", dir + "/root", "--run", dir + "/run"}, args...)...)}
	i.cmd.Env = append(os.Environ(), childEnv+"=main", "TEST_ETC="+etc)
	i.cmd.Stderr = &i.stderr
	i.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := i.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.cmd.Process.Kill(); i.cmd.Wait() })
	return i
}

func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	// The daemon's user has to reach it.
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func writeAccounts(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	os.WriteFile(dir+"/passwd", []byte("root:x:0:0::/:/bin/sh\nberth-imaged:x:64201:64202::/:/bin/false\nberth-apid:x:64203:64202::/:/bin/false\nberth-netd:x:64204:64202::/:/bin/false\n"), 0o644)
	os.WriteFile(dir+"/group", []byte("root:x:0:\nberth:x:64200:\nberth-engine:x:64202:\n"), 0o644)
	return dir
}

func waitServing(t *testing.T, i *instance, dir string) {
	t.Helper()
	conn := dial(t, filepath.Join(dir, "run", ImagedSocket))
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := healthy(conn)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not serving: %v\n%s", err, i.stderr.String())
		}
	}
}

func TestWholeDaemon(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	dir, etc := openDir(t), writeAccounts(t)
	first := startInstance(t, dir, etc)
	waitServing(t, first, dir)

	for _, want := range []struct {
		path     string
		mode     fs.FileMode
		uid, gid uint32
	}{
		{"root", fs.ModeDir | 0o711, 0, 0},
		{"root/imaged", fs.ModeDir | 0o700, 64201, 64202},
		{"root/imaged/written", 0o600, 64201, 64202},
		{"run", fs.ModeDir | 0o711, 0, 0},
		{"run/engine", fs.ModeDir | 0o750, 0, 64202},
		{"run/engine/imaged.sock", fs.ModeSocket | 0o660, 0, 64202},
		{"run/lock", fs.ModeDir | fs.ModeSticky | 0o770, 0, 64202},
		{"run/lock/imaged.lock", 0o600, 0, 0},
	} {
		info, err := os.Lstat(filepath.Join(dir, want.path))
		if err != nil {
			t.Error(err)
			continue
		}
		st := info.Sys().(*syscall.Stat_t)
		if info.Mode() != want.mode || st.Uid != want.uid || st.Gid != want.gid {
			t.Errorf("%s: %v %d:%d, want %v %d:%d", want.path, info.Mode(), st.Uid, st.Gid, want.mode, want.uid, want.gid)
		}
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", first.cmd.Process.Pid))
	for _, want := range []string{"Uid:\t64201\t64201\t64201\t64201", "Gid:\t64202\t64202\t64202\t64202", "Groups:\t64202",
		"CapEff:\t0000000000000001", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Umask:\t0077"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}

	// F-49: a second instance names the first and changes nothing.
	second := startInstance(t, dir, etc)
	if err := second.cmd.Wait(); err == nil {
		t.Error("a second instance started")
	}
	if want := fmt.Sprintf("as process %d", first.cmd.Process.Pid); !strings.Contains(second.stderr.String(), want) {
		t.Errorf("second instance said %q, want %q in it", second.stderr.String(), want)
	}
	waitServing(t, first, dir)

	first.cmd.Process.Signal(syscall.SIGTERM)
	if err := first.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, first.stderr.String())
	}

	// F-49: a killed one leaves lock and socket behind; the next takes them over.
	third := startInstance(t, dir, etc)
	waitServing(t, third, dir)
	third.cmd.Process.Kill()
	third.cmd.Wait()
	waitServing(t, startInstance(t, dir, etc), dir)
}

func TestMissingAccountsAreExplained(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	etc := t.TempDir()
	os.WriteFile(etc+"/passwd", []byte("root:x:0:0::/:/bin/sh\n"), 0o644)
	os.WriteFile(etc+"/group", []byte("root:x:0:\n"), 0o644)
	i := startInstance(t, openDir(t), etc)
	if err := i.cmd.Wait(); err == nil {
		t.Fatal("started without its user")
	}
	if s := i.stderr.String(); !strings.Contains(s, "error: user berth-imaged does not exist") || !strings.Contains(s, "hint: ") {
		t.Errorf("said %q", s)
	}
}

func TestInheritedSocketIsUsed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	dir, etc := openDir(t), writeAccounts(t)
	path := filepath.Join(dir, "run", ImagedSocket)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := bind(path+"x", Socket{Name: "elsewhere"})
	if err == nil { // only where the group berth-engine exists
		l.Close()
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 16); err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(path)
	i := &instance{cmd: exec.Command(os.Args[0], "--root", dir+"/root", "--run", dir+"/run")}
	i.cmd.Env = append(os.Environ(), childEnv+"=main", "TEST_ETC="+etc, "LISTEN_FDS=1")
	i.cmd.ExtraFiles = []*os.File{f}
	i.cmd.Stderr = &i.stderr
	i.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := i.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.cmd.Process.Kill(); i.cmd.Wait() })
	waitServing(t, i, dir)
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the inherited socket was replaced: %v", err)
	}
}

func TestFaultPointsAreListedAndArmed(t *testing.T) {
	cmd := exec.Command(os.Args[0], "--list-fault-points")
	cmd.Env = append(os.Environ(), childEnv+"=main")
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "testd.started\t") {
		t.Errorf("list: %v\n%s", err, out)
	}
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=main", faultpoint.Env+"=testd.nosuch=kill")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), `"testd.nosuch"`) {
		t.Errorf("unknown point: %v\n%s", err, out)
	}
}
