//go:build e2e

package security

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
	"berth/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// probe builds the program that runs inside.
func probe(t *testing.T) string {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("the probe knows the numbers of amd64 only")
	}
	path := filepath.Join(t.TempDir(), "probe")
	out, err := exec.Command("go", "build", "-o", path, "./probe").CombinedOutput()
	if err != nil {
		t.Fatalf("build the probe: %v\n%s", err, out)
	}
	return path
}

func TestS01WorkingDirectoryAndDescriptors(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	host := hostMarks(t)
	for _, cwd := range []string{"/proc/self/fd/3", "/proc/self/fd/7", "/proc/self/fd/8", "/proc/1/fd/9", "/proc/thread-self/fd/4", "/proc/self/cwd", "/proc/1/root", "/proc/self/fd/1023"} {
		r := e.Try("run", "--rm", "-w", cwd, img, "sh", "-c", "pwd -P; ls -di /; ls -di . ; ls -d ../../../../../../../tmp/berth-e2e.* 2>/dev/null")
		if strings.Contains(r.Out, "berth-e2e") || strings.Contains(r.Out, host) {
			t.Errorf("-w %s sees the host: %s", cwd, r.Out)
		}
	}
	fds := e.Berth(t, "run", "--rm", img, "sh", "-c", "exec ls /proc/self/fd")
	// ls itself has the directory open.
	if got := strings.Fields(fds); len(got) != 4 || got[2] != "2" {
		t.Errorf("descriptors inside: %v, want 0 to 2 and ls's own", got)
	}
	e.Berth(t, "run", "-d", "--name", "s01", img, "sleep", "1000")
	for range 20 {
		fds = e.Berth(t, "exec", "s01", "ls", "/proc/self/fd")
		if got := strings.Fields(fds); len(got) != 4 {
			t.Fatalf("descriptors in exec: %v", got)
		}
	}
	e.Berth(t, "rm", "-f", "s01")
}

// hostMarks is something only the host's root shows.
func hostMarks(t *testing.T) string {
	t.Helper()
	st, err := os.Stat("/")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d /\n%d .", st.Sys().(*syscall.Stat_t).Ino, st.Sys().(*syscall.Stat_t).Ino)
}

func TestS02HostBinaries(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	before := hashes(t)
	dir := t.TempDir()
	script := filepath.Join(dir, "shebang")
	if err := os.WriteFile(script, []byte("#!/proc/self/exe\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	e.Try("run", "--rm", "--entrypoint", "/proc/self/exe", img)
	e.Try("run", "--rm", "-v", dir+":/d", img, "/d/shebang")
	e.Try("run", "--rm", img, "sh", "-c", "for p in /proc/[0-9]*; do echo x > $p/exe; done")
	e.Berth(t, "run", "-d", "--name", "s02", img, "sh", "-c", "while :; do for p in /proc/[0-9]*; do (exec 9<>$p/exe && echo broken >&9) 2>/dev/null; readlink $p/exe; done; done")
	for range 10 {
		e.Try("exec", "s02", "true")
	}
	out := e.Try("logs", "s02").Out
	e.Berth(t, "rm", "-f", "s02")
	for _, name := range []string{"berth-init", "berth-monitor", "execd"} {
		if strings.Contains(out, "/"+name) {
			t.Errorf("%s is visible from inside", name)
		}
	}
	if hashes(t) != before {
		t.Error("a binary of the engine has changed")
	}
}

func hashes(t *testing.T) string {
	t.Helper()
	var all string
	for _, n := range []string{"berth", "apid", "imaged", "netd", "execd", "berth-monitor", "berth-init", "berth-unpack"} {
		b, err := os.ReadFile(harness.Bin(t, n))
		if err != nil {
			t.Fatal(err)
		}
		all += fmt.Sprintf("%x", sha256.Sum256(b))
	}
	return all
}

// TestS22ImagedHandsOn: what imaged has only for berth-unpack is not effective in it, on any thread.
func TestS22ImagedHandsOn(t *testing.T) {
	e := harness.Shared(t)
	aside := caps.Of(unix.CAP_SETFCAP, unix.CAP_MKNOD, unix.CAP_SYS_CHROOT)
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", e.Pid("imaged")))
	if len(tasks) == 0 {
		t.Fatal("imaged has no threads")
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		sets := map[string]caps.Set{}
		for line := range strings.Lines(string(b)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.HasPrefix(key, "Cap") {
				n, _ := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
				sets[key] = caps.Set(n)
			}
		}
		if sets["CapPrm"]&aside != aside || sets["CapEff"] != sets["CapPrm"]&^aside || sets["CapAmb"] != 0 {
			t.Errorf("%s: permitted %s; effective %s; ambient %s", task, sets["CapPrm"], sets["CapEff"], sets["CapAmb"])
		}
	}
}

// Paths that must give nothing away: S-03 and S-33.
var masked = []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
	"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/selinux"}

func TestS03Masks(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	for _, p := range masked {
		out := e.Berth(t, "run", "--rm", img, "sh", "-c", "if [ -d "+p+" ]; then ls -A "+p+"; elif [ -e "+p+" ]; then head -c 100 "+p+"; fi")
		if out != "" {
			t.Errorf("%s shows %q", p, out)
		}
	}
	for _, p := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/kernel", "/sys/fs/cgroup"} {
		r := e.Try("run", "--rm", img, "sh", "-c", "[ -e "+p+" ] || exit 0; if [ -d "+p+" ]; then touch "+p+"/x; else echo x > "+p+"; fi")
		if r.Code == 0 && r.Err != "" {
			t.Errorf("writing %s: %q", p, r.Err)
		}
		exists := e.Try("run", "--rm", img, "test", "-e", p).Code == 0
		if exists && r.Code == 0 {
			t.Errorf("%s is writable", p)
		}
	}
}

func TestS05MountsOverKernelFileSystems(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	for _, target := range []string{"/proc", "/proc/sys", "/proc/self/attr", "/sys", "/sys/fs/cgroup"} {
		r := e.Try("run", "--rm", "-v", t.TempDir()+":"+target, img, "true")
		if r.Code == 0 {
			t.Errorf("a bind over %s is accepted", target)
		}
	}
}

func TestS06LinksInTheImage(t *testing.T) {
	e := harness.Shared(t)
	dir := t.TempDir()
	root := filepath.Join(dir, "fs")
	harness.Sh(t, "sh", "-c", "mkdir "+root+" && tar -C "+root+" -xf "+harness.BusyboxTar(t))
	canary := filepath.Join(dir, "canary")
	harness.Sh(t, "sh", "-c", "mkdir "+canary+" && echo safe > "+canary+"/file")
	// The image's /data and /w lead, seen from the host, to the canary; inside they must stay inside.
	for _, l := range []string{"data", "w"} {
		if err := os.Symlink(canary, filepath.Join(root, l)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(root, "dev")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../.."+canary, filepath.Join(root, "dev")); err != nil {
		t.Fatal(err)
	}
	tarball := filepath.Join(dir, "evil.tar")
	harness.Sh(t, "tar", "-C", root, "-cf", tarball, ".")
	e.Berth(t, "import", tarball, "evil:links")
	before := tree(t, canary)
	share := t.TempDir()
	for _, args := range [][]string{
		{"-v", share + ":/data/sub"}, {"-v", share + ":/data"}, {"-w", "/w/made"}, {"--tmpfs", "/data/t"}, {"-v", "vs06:/w/vol"},
	} {
		r := e.Try(append(append([]string{"run", "--rm"}, args...), "evil:links", "sh", "-c", "echo in > /data/x; echo in > /w/y; true")...)
		_ = r
		if after := tree(t, canary); after != before {
			t.Fatalf("run %v changed the host:\n%s", args, after)
		}
	}
	e.Try("volume", "rm", "vs06")
	e.Berth(t, "rmi", "evil:links")
}

func tree(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Lstat(p)
		if err != nil {
			return err
		}
		s := st.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&out, "%s %o %d:%d %d %d\n", p, s.Mode, s.Uid, s.Gid, s.Size, s.Mtim.Nano())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestS18LabelsAreInert(t *testing.T) {
	e := harness.Shared(t)
	e.Berth(t, "import", "-c", "LABEL berth.privileged=true", "-c", "LABEL berth.security.privileged=true", "-c", "LABEL io.berth.cap-add=ALL",
		"-c", "LABEL org.opencontainers.image.ref.name=/etc/passwd", harness.BusyboxTar(t), "evil:labels")
	plain := e.Berth(t, "run", "--rm", e.Busybox(t), "grep", "Cap", "/proc/self/status")
	if got := e.Berth(t, "run", "--rm", "evil:labels", "grep", "Cap", "/proc/self/status"); got != plain {
		t.Errorf("labels change capabilities:\n%s\nwant\n%s", got, plain)
	}
	e.Berth(t, "rmi", "evil:labels")
}

func TestS20UserStrings(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	for _, u := range []string{"2147483648", "4294967295", "4294967296", "-1", "+0", "0x0", " 0", "0 ", "٠", "0\n", ":", "a:b:c", "33:", "1e3", "00"} {
		r := e.Try("run", "--rm", "-u", u, img, "id", "-u")
		if r.Code == 0 && strings.TrimSpace(r.Out) == "0" {
			t.Errorf("--user %q runs as root", u)
		}
	}
}

func TestS21SupplementaryGroups(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "denied")
	if err := os.WriteFile(file, []byte("secret"), 0o604); err != nil {
		t.Fatal(err)
	}
	harness.Sh(t, "chmod", "0604", file)
	harness.Sh(t, "chown", "0:33", file)
	harness.Sh(t, "chmod", "0755", dir)
	if r := e.Try("run", "--rm", "-u", "www", "-v", dir+":/d", img, "cat", "/d/denied"); r.Code == 0 {
		t.Error("a member of the group reads a file that denies the group")
	}
}

// want11 is CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT SETFCAP.
const want11 = "00000000800405fb"

func TestS22Capabilities(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	e.Berth(t, "run", "-d", "--name", "s22", img, "sleep", "1000")
	defer e.Berth(t, "rm", "-f", "s22")
	const none = "0000000000000000"
	for _, tc := range []struct {
		what string
		args []string
		sets [5]string // Inh Prm Eff Bnd Amb
	}{
		{"run as root", []string{"run", "--rm", img}, [5]string{none, want11, want11, want11, none}},
		{"run as www", []string{"run", "--rm", "-u", "www", img}, [5]string{none, none, none, want11, none}},
		{"exec as root", []string{"exec", "s22"}, [5]string{none, want11, want11, want11, none}},
		{"exec as www", []string{"exec", "-u", "www", "s22"}, [5]string{none, none, none, want11, none}},
		{"drop all", []string{"run", "--rm", "--cap-drop", "ALL", img}, [5]string{none, none, none, none, none}},
		{"drop all, add one", []string{"run", "--rm", "--cap-drop", "ALL", "--cap-add", "NET_ADMIN", img}, [5]string{none, "0000000000001000", "0000000000001000", "0000000000001000", none}},
	} {
		out := e.Berth(t, append(tc.args, "grep", "Cap", "/proc/self/status")...)
		var got [5]string
		for _, l := range strings.Split(out, "\n") {
			k, v, _ := strings.Cut(l, ":\t")
			for i, n := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
				if k == n {
					got[i] = v
				}
			}
		}
		if got != tc.sets {
			t.Errorf("%s: %v, want %v", tc.what, got, tc.sets)
		}
	}
}

func TestS25ControlSockets(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	var sockets []string
	_ = filepath.WalkDir(e.Run, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSocket != 0 {
			sockets = append(sockets, p)
		}
		return nil
	})
	if len(sockets) < 5 {
		t.Fatalf("only %d sockets below %s", len(sockets), e.Run)
	}
	// As another user of the host.
	for _, s := range sockets {
		cmd := exec.Command("/usr/bin/python3", "-c", "import socket,sys\ns=socket.socket(socket.AF_UNIX, int(sys.argv[2]))\ns.connect(sys.argv[1])", s, sockType(s))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Permission denied") {
			t.Errorf("uid 65534 connects to %s: %v %s", s, err, out)
		}
	}
	// From inside, as root and in the host's network namespace, where abstract sockets would be in reach.
	names := e.Berth(t, "run", "--rm", "--network", "host", img, "cat", "/proc/net/unix")
	sc := bufio.NewScanner(strings.NewReader(names))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if name := f[len(f)-1]; strings.HasPrefix(name, "@") && strings.Contains(name, "berth") {
			t.Errorf("abstract socket %s", name)
		}
	}
	// A user of the host who is in no group of ours is told what to do.
	cmd := e.Command("ps")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "permission denied") || !strings.Contains(string(out), "group berth") {
		t.Errorf("berth ps as uid 65534: %v %s", err, out)
	}
}

func sockType(path string) string {
	if c, err := net.Dial("unixpacket", path); err == nil {
		c.Close()
		return strconv.Itoa(syscall.SOCK_SEQPACKET)
	}
	return strconv.Itoa(syscall.SOCK_STREAM)
}

func TestS26StateDirectories(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	e.Berth(t, "run", "-d", "--name", "s26", img, "sh", "-c", "cp /bin/busybox /setuid; chmod 4755 /setuid; sleep 1000")
	defer e.Berth(t, "rm", "-f", "s26")
	harness.Eventually(t, 5e9, func() bool { return e.Try("exec", "s26", "test", "-u", "/setuid").Code == 0 }, "setuid file is there")
	as := func(script string) (string, error) {
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, _ := as("find " + e.Root + " " + e.Run + " -name setuid 2>/dev/null; find " + e.Root + "/imaged/rw -mindepth 1 -maxdepth 3 2>/dev/null"); out != "" {
		t.Errorf("uid 65534 sees %s", out)
	}
	for _, d := range []string{e.Root, e.Root + "/apid", e.Root + "/imaged", e.Root + "/netd", e.Root + "/execd", e.Run, e.Run + "/engine", e.Run + "/execd", e.Run + "/lock"} {
		if out, err := as("ls " + d); err == nil {
			t.Errorf("uid 65534 lists %s: %s", d, out)
		}
		if out, err := as("touch " + d + "/x"); err == nil {
			t.Errorf("uid 65534 writes into %s: %s", d, out)
		}
	}
}

func TestS31Sysctls(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	for _, s := range []string{"kernel.core_pattern=x", "kernel.hostname=x", "net.ipv4.ip_forward+kernel.core_pattern=1", "net.ipv4.ip_forward\n=1", "net/../kernel/core_pattern=x",
		"net..ipv4=1", "kernel.shm_rmid_forced/../core_pattern=1", "vm.overcommit_memory=1", "fs.file-max=1"} {
		if r := e.Try("run", "--rm", "--sysctl", s, img, "true"); r.Code != 125 {
			t.Errorf("--sysctl %q: exit %d %s", s, r.Code, r.Err)
		}
	}
	if r := e.Try("run", "--rm", "--network", "host", "--sysctl", "net.ipv4.ip_forward=1", img, "true"); r.Code != 125 {
		t.Errorf("a net sysctl in the host's namespace: exit %d", r.Code)
	}
	if out := e.Berth(t, "run", "--rm", "--sysctl", "net.core.somaxconn=77", img, "cat", "/proc/sys/net/core/somaxconn"); out != "77" {
		t.Errorf("somaxconn = %s", out)
	}
}

func TestS34S35Probe(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	dir := filepath.Dir(probe(t))
	const eperm, eacces, enosys = 1, 13, 38
	check := func(out string) {
		t.Helper()
		seen := 0
		for _, l := range strings.Split(out, "\n") {
			i := strings.LastIndexByte(l, ' ')
			errno, _ := strconv.Atoi(l[i+1:])
			name := l[:i]
			seen++
			switch {
			case name == "clone3":
				if errno != enosys {
					t.Errorf("clone3: errno %d, want ENOSYS", errno)
				}
			case strings.HasPrefix(name, "mknod"):
			case strings.HasPrefix(name, "open ") && errno == eacces: // a mount that is nodev
			case errno != eperm && errno != enosys && !(strings.HasPrefix(name, "socket") && errno != 0):
				t.Errorf("%s: errno %d, want EPERM", name, errno)
			}
		}
		if seen < 32 {
			t.Errorf("the probe printed %d lines", seen)
		}
	}
	check(e.Berth(t, "run", "--rm", "-v", dir+":/p:ro", img, "/p/probe"))
	withMknod := e.Berth(t, "run", "--rm", "--cap-add", "MKNOD", "-v", dir+":/p:ro", img, "/p/probe")
	check(withMknod)
	if !strings.Contains(withMknod, "open mem 1") {
		t.Errorf("with MKNOD the nodes are made and their opening refused, got\n%s", withMknod)
	}
}
