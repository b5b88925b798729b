package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup/devices"
)

func TestMemoryLimitKills(t *testing.T) {
	l, p, _ := testParent(t)
	need(t, p, "memory")
	g := testGroup(t, p, Resources{Memory: Memory{Limit: 48 << 20, Swap: 48 << 20}})
	notify, err := g.NotifyOOM()
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	notified := make(chan error, 1)
	go func() {
		_, err := notify.Read(make([]byte, 4096))
		notified <- err
	}()
	out, err := output(t, l, g, payload("hog"))
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("128 MiB within 48: %v, %q", err, out)
	}
	oom, err := g.OOM()
	if err != nil || oom.Kills == 0 || l.Mode == V2 && oom.Limit == 0 {
		t.Errorf("OOM: %+v, %v", oom, err)
	}
	select {
	case err := <-notified:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(slow * time.Second):
		t.Error("no notification")
	}
	stats, err := g.Stats()
	if err != nil || stats.Memory.Limit != 48<<20 {
		t.Errorf("limit reads %d, %v", stats.Memory.Limit, err)
	}

	// Raised while it lives, the same fits.
	if err := g.Set(Resources{Memory: Memory{Limit: 256 << 20}}); err != nil {
		t.Fatal(err)
	}
	if out, err := output(t, l, g, payload("hog")); err != nil || out != "survived\n" {
		t.Errorf("128 MiB within 256: %v, %q", err, out)
	}
	// And lowered again.
	if err := g.Set(Resources{Memory: Memory{Limit: 64 << 20, Swap: 64 << 20}}); err != nil {
		t.Error(err)
	}
}

func TestMemoryLimitBelowUsage(t *testing.T) {
	l, p, _ := testParent(t)
	need(t, p, "memory")
	g := testGroup(t, p, Resources{Memory: Memory{Limit: 256 << 20, Swap: 256 << 20}})
	cmd := exec.Command("/bin/sh", "-c", `x=$(head -c 30000000 /dev/zero | tr '\0' x); echo ready; read y`)
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	start(t, l, g, cmd)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	err := g.Set(Resources{Memory: Memory{Limit: 8 << 20, Swap: 8 << 20}})
	if !errors.Is(err, ErrBusy) {
		t.Errorf("8 MiB for a process of 30: %v, want ErrBusy", err)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil && strings.Contains(err.Error(), "killed") {
		t.Errorf("the process was killed by the attempt: %v", err)
	}
}

func TestPidsLimit(t *testing.T) {
	l, p, _ := testParent(t)
	need(t, p, "pids")
	g := testGroup(t, p, Resources{Pids: 30})
	out, err := output(t, l, g, payload("children"))
	n, _ := strconv.Atoi(strings.TrimSpace(out))
	if err != nil || n == 0 || n >= 30 {
		t.Errorf("%q children started, %v; want some, and less than 30", out, err)
	}
	if s, err := g.Stats(); err != nil || s.Pids.Limit != 30 || s.Pids.Current == 0 {
		t.Errorf("Stats: %+v, %v", s.Pids, err)
	}
}

func TestQuotaThrottles(t *testing.T) {
	l, p, _ := testParent(t)
	need(t, p, "cpu")
	g := testGroup(t, p, Resources{CPU: CPU{Quota: CPUs(0.1)}})
	cmd := payload("spin")
	start(t, l, g, cmd)
	const period = 2 * time.Second
	time.Sleep(period)
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.CPU.Throttled == 0 || s.CPU.ThrottledTime == 0 || s.CPU.Periods == 0 {
		t.Errorf("not throttled: %+v", s.CPU)
	}
	if s.CPU.Usage == 0 || s.CPU.Usage > period/2 {
		t.Errorf("a tenth of a processor used %v in %v", s.CPU.Usage, period)
	}
	if s.CPU.User == 0 {
		t.Errorf("no user time: %+v", s.CPU)
	}
}

func TestCpuset(t *testing.T) {
	l, p, _ := testParent(t)
	tree := need(t, p, "cpuset")
	g := testGroup(t, p, Resources{CPU: CPU{Cpus: "0", Mems: "0"}})
	out, err := output(t, l, g, exec.Command("/bin/grep", "Cpus_allowed_list", "/proc/self/status"))
	if f := strings.Fields(out); err != nil || len(f) != 2 || f[1] != "0" {
		t.Errorf("got %q, %v", out, err)
	}
	_, err = p.Create("too-many", Resources{CPU: CPU{Cpus: "0-4095"}})
	var field *FieldError
	if !errors.As(err, &field) || field.Field != "cpuset.cpus" {
		t.Errorf("4096 processors: %v", err)
	}
	// A group that asks for nothing has all there are.
	other := testGroup(t, p, Resources{})
	if !tree.V2 {
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			want, _ := tree.readText(f)
			got, err := tree.readText(other.Name() + "/" + f)
			if err != nil || got != want || got == "" {
				t.Errorf("%s is %q, %v; want the parent's %q", f, got, err, want)
			}
		}
	}
	if runtime.NumCPU() > 1 {
		out, err := output(t, l, other, exec.Command("/bin/grep", "Cpus_allowed_list", "/proc/self/status"))
		if f := strings.Fields(out); err != nil || len(f) != 2 || f[1] == "0" {
			t.Errorf("without cpuset: got %q, %v", out, err)
		}
	}
}

// Each node of the default policy opens, and others do not, whoever made them and with whatever capability.
func TestDevices(t *testing.T) {
	l, p, _ := testParent(t)
	dir := t.TempDir()
	nodes := map[string][2]uint32{
		"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, // allowed
		"mem": {1, 1}, "kmsg": {1, 11}, // denied
	}
	var paths []string
	for name, n := range nodes {
		path := filepath.Join(dir, name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(n[0], n[1]))); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	slices.Sort(paths)
	try := func(g *Group) string {
		out, err := output(t, l, g, payload("open", paths...))
		if err != nil {
			t.Fatal(err, out)
		}
		return out
	}
	const allDenied = "full 1\nkmsg 1\nmem 1\nnull 1\nrandom 1\nurandom 1\nzero 1\n"
	const byDefault = "full 0\nkmsg 1\nmem 1\nnull 0\nrandom 0\nurandom 0\nzero 0\n"

	g := testGroup(t, p, Resources{})
	if got := try(g); got != byDefault {
		t.Errorf("default policy (0 is success, 1 EPERM):\n%s", got)
	}
	// More, and less, while it lives.
	more := devices.Default().With(devices.Rule{Type: 'c', Major: 1, Minor: 11, Access: devices.Read | devices.Write})
	if err := g.Set(Resources{Devices: &more}); err != nil {
		t.Fatal(err)
	}
	if got := try(g); got != strings.Replace(byDefault, "kmsg 1", "kmsg 0", 1) {
		t.Errorf("with kmsg:\n%s", got)
	}
	if err := g.Set(Resources{Devices: &devices.Policy{}}); err != nil {
		t.Fatal(err)
	}
	if got := try(g); got != allDenied {
		t.Errorf("empty policy:\n%s", got)
	}
	if err := g.Set(Resources{Pids: 100}); err != nil && !errors.Is(err, ErrNotAvailable) {
		t.Error(err)
	}
	if got := try(g); got != allDenied {
		t.Errorf("a change of another limit changed the devices:\n%s", got)
	}
	// Read only is not enough for read and write.
	if err := g.Set(Resources{Devices: &devices.Policy{Allow: []devices.Rule{{Type: 'c', Major: 1, Minor: devices.Any, Access: devices.Read}}}}); err != nil {
		t.Fatal(err)
	}
	if got := try(g); got != allDenied {
		t.Errorf("read only:\n%s", got)
	}
	all := devices.Policy{AllowAll: true}
	if err := g.Set(Resources{Devices: &all}); err != nil {
		t.Fatal(err)
	}
	privileged := testGroup(t, p, Resources{Devices: &all})
	if got := try(privileged); strings.Contains(got, "kmsg 1\n") || strings.Contains(got, "null 1\n") {
		t.Errorf("all allowed:\n%s", got)
	}
	if a, b := try(g), try(privileged); a != b {
		t.Errorf("all allowed later:\n%s", a)
	}
}

// S-35: who has CAP_MKNOD makes any node, and opens none that is not allowed.
func TestS35DeviceMadeIsNotOpened(t *testing.T) {
	l, p, _ := testParent(t)
	g := testGroup(t, p, Resources{})
	path := filepath.Join(t.TempDir(), "kmsg")
	if out, err := output(t, l, g, exec.Command("mknod", path, "c", "1", "11")); err != nil {
		t.Errorf("mknod: %v, %q", err, out)
	}
	if out, err := output(t, l, g, exec.Command("sh", "-c", "exec 3<"+path)); err == nil {
		t.Errorf("opening a denied device: %q", out)
	}
	none := testGroup(t, p, Resources{Devices: &devices.Policy{}})
	if out, err := output(t, l, none, exec.Command("mknod", path+"2", "c", "1", "11")); err == nil {
		t.Errorf("mknod with a policy that denies all: %q", out)
	}
}

// Huge pages are switched on in the tree when first asked for. On a hybrid host that would change the host's v2
// root for good, so it is tried on pure v2 only.
func TestHugePages(t *testing.T) {
	l, p, _ := testParent(t)
	if l.Mode != V2 {
		t.Skip("SKIPPED: not on pure v2")
	}
	if h, _ := l.Unified(); !slices.Contains(h.Controllers, "hugetlb") {
		t.Skip("SKIPPED: no hugetlb controller")
	}
	g := testGroup(t, p, Resources{HugePages: []HugePages{{Size: "2MB", Limit: 4 << 20}}})
	b, err := os.ReadFile(g.Paths()[""] + "/hugetlb.2MB.max")
	if err != nil || string(b) != "4194304\n" {
		t.Errorf("hugetlb.2MB.max: %q, %v", b, err)
	}
}

func TestIOThrottle(t *testing.T) {
	l, p, _ := testParent(t)
	tree := need(t, p, "io")
	dir := t.TempDir()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	sys, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		t.Skipf("SKIPPED: %s is on no block device", dir)
	}
	if _, err := os.Stat(sys + "/partition"); err == nil {
		sys = filepath.Dir(sys)
	}
	number, err := os.ReadFile(sys + "/dev")
	if err != nil {
		t.Fatal(err)
	}
	throttle := Throttle{WriteBPS: 1 << 20}
	if _, err := fmt.Sscanf(string(number), "%d:%d", &throttle.Major, &throttle.Minor); err != nil {
		t.Fatal(err)
	}
	g := testGroup(t, p, Resources{IO: IO{Throttles: []Throttle{throttle}}})
	file := "io.max"
	if !tree.V2 {
		file = "blkio.throttle.write_bps_device"
	}
	if text, err := tree.readText(g.Name() + "/" + file); err != nil || !strings.Contains(text, throttle.device()) {
		t.Errorf("%s: %q, %v", file, text, err)
	}
	begin := time.Now()
	dd := exec.Command("dd", "if=/dev/zero", "of="+dir+"/file", "bs=1M", "count=3", "oflag=direct")
	if out, err := output(t, l, g, dd); err != nil {
		t.Skipf("SKIPPED: direct I/O: %v, %s", err, out)
	}
	if took := time.Since(begin); took < 1500*time.Millisecond {
		t.Errorf("3 MiB at 1 MiB/s took %v", took)
	}
	if s, err := g.Stats(); err != nil || s.IO.WriteBytes < 3<<20 || s.IO.WriteOps == 0 {
		t.Errorf("Stats: %+v, %v", s.IO, err)
	}
}
