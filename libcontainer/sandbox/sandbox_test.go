package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
	"berth/libcontainer/landlock"
	"berth/libcontainer/seccomp"
	"berth/libcontainer/seccomp/filter"
)

const child = "BERTH_SANDBOX_TEST_DIR"

// TestEnter has a child shut itself in with a directory and try each wall.
func TestEnter(t *testing.T) {
	if dir := os.Getenv(child); dir != "" {
		inside(t, dir)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno == unix.ENOTSUP {
		t.Skip("SKIPPED: built with cgo, as for the race detector")
	}
	if landlock.Version() < landlock.Least {
		t.Log("this kernel has no Landlock that would do: the rest is tested")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestEnter$", "-test.v")
	cmd.Env = append(os.Environ(), child+"="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestEnter") {
		t.Errorf("%v\n%s", err, out)
	}
}

func inside(t *testing.T, path string) {
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	outside, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	p := seccomp.Profile{Fallback: seccomp.Allow, Rules: []seccomp.Rule{{Names: []string{"socket"}, Action: seccomp.Errno(unix.EACCES)}}}
	host, err := seccomp.Host()
	if err != nil {
		t.Fatal(err)
	}
	code, err := p.Compile(host)
	if err != nil {
		t.Fatal(err)
	}
	keep := caps.Of(unix.CAP_CHOWN, unix.CAP_MKNOD)
	s, err := Enter(Config{Dir: dir, Caps: keep, Filter: code, Limits: Limits{Memory: 1 << 30, FileSize: 1 << 20, Files: 100, Seconds: 60}})
	if err != nil {
		t.Fatal(err)
	}
	if want := landlock.Version(); s.Landlock != want && want >= landlock.Least || s.Seccomp != filter.Supported() {
		t.Errorf("%+v, the kernel has Landlock %d", s, want)
	}
	// A descriptor of what is outside leads past chroot, and not past Landlock.
	if fd, err := unix.Openat(int(outside.Fd()), "other", unix.O_CREAT|unix.O_WRONLY, 0o600); s.Landlock > 0 && !errors.Is(err, unix.EACCES) {
		t.Errorf("made a file outside: %d, %v", fd, err)
	}
	if _, err := os.Stat("/etc/passwd"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("names lead outside: %v", err)
	}
	if _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); s.Seccomp && err != unix.EACCES {
		t.Errorf("socket: %v", err)
	}
	// Hard links between directories are what Landlock's first version could not allow.
	if err := errors.Join(os.Mkdir("/a", 0o700), os.Mkdir("/b", 0o700), os.WriteFile("/a/f", nil, 0o600), os.Link("/a/f", "/b/f"),
		unix.Mknod("/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), os.Chown("/a/f", 5, 5), os.Remove("/a/f")); err != nil {
		t.Errorf("inside: %v", err)
	}
	if err := unix.Chroot("/a"); !errors.Is(err, unix.EPERM) {
		t.Errorf("chroot once more: %v", err)
	}
	var l syscall.Rlimit
	if err := syscall.Getrlimit(unix.RLIMIT_FSIZE, &l); err != nil || l.Max != 1<<20 {
		t.Errorf("limit of file size: %+v, %v", l, err)
	}
	if d, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); d != 0 {
		t.Error("it can be traced")
	}
	have, err := caps.Current()
	if want := (caps.Sets{Effective: keep, Permitted: keep, Bounding: keep}); err != nil || have != want {
		t.Errorf("capabilities %+v, %v; want %+v", have, err, want)
	}
}
