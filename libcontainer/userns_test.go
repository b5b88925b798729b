package libcontainer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup"
	"berth/libcontainer/mount"
	"berth/libcontainer/ns"
)

// shift is where the ids of these tests' containers begin on the host.
const shift = 1 << 20

// mapped puts c into a private user namespace over a root with mapped owners.
func mapped(c *Config) *Config {
	c.Namespaces.User.Private = true
	c.UIDMappings = []IDMap{{Container: 0, Host: shift, Size: 65536}}
	c.GIDMappings = c.UIDMappings
	c.Root.IDMap = true
	return c
}

func TestUserNamespace(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	c := mapped(config(root, `id -u; cat /proc/self/uid_map | tr -s ' '; stat -c %u:%g /bin/busybox /v/file
		touch /made && stat -c %u /made; echo x > /dev/null && test -c /dev/zero && echo devices
		echo out > /dev/stdout; cat /proc/sys/kernel/msgmax; hostname`))
	volume := t.TempDir()
	must(t, os.Chmod(filepath.Dir(volume), 0o700)) // a directory the container's root may not enter
	must(t, os.WriteFile(filepath.Join(volume, "file"), nil, 0o600))
	c.Mounts = append(c.Mounts, Mount{Type: "bind", Source: volume, Destination: "/v", IDMap: true, Attr: mount.NoDev})
	c.Sysctls = map[string]string{"kernel.msgmax": "4321", "net.ipv4.ip_unprivileged_port_start": "0"}
	want := strings.Join([]string{"0", fmt.Sprintf(" 0 %d 65536", shift), "0:0", "0:0", "0", "devices", "out", "4321", "box"}, "\n")
	if got := output(t, l, c, IO{}); got != strings.TrimSpace(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// On the disk nothing is shifted.
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(root, "made"), &st); err != nil || st.Uid != 0 {
		t.Errorf("owner on the disk: %d, %v", st.Uid, err)
	}
	c.Command.User.Spec = "alice"
	c.Command.Args = []string{"sh", "-c", "id; grep ^Cap /proc/self/status"}
	t.Log(output(t, l, c, IO{}))
	p := startSleeper(t, l, c, IO{})
	must(t, unix.Stat(fmt.Sprintf("/proc/%d", p.Pid), &st))
	if st.Uid != shift+1000 {
		t.Errorf("runs as %d on the host, want %d", st.Uid, shift+1000)
	}
}

func TestUserNamespaceOverlay(t *testing.T) {
	everyWay(t, func(t *testing.T, l *Launcher) {
		base, dir := busybox(t), t.TempDir()
		c := mapped(config("", "stat -c %u /bin/busybox /etc/passwd; echo more >> /etc/passwd; echo new > /new; stat -c %u /etc/passwd /new"))
		c.Root = Root{Lower: []string{filepath.Join(dir, "layer"), base}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), IDMap: true, Attr: mount.NoDev}
		for _, d := range []string{"layer", "upper", "work"} {
			must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
		}
		before, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		if got := output(t, l, c, IO{}); got != "0\n0\n0\n0" {
			t.Errorf("owners inside: %q", got)
		}
		for _, file := range []string{"etc/passwd", "new"} {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(c.Root.Upper, file), &st); err != nil || st.Uid != 0 {
				t.Errorf("owner of %s on the disk: %d, %v", file, st.Uid, err)
			}
		}
		if after, _ := os.ReadFile("/proc/self/mountinfo"); string(before) != string(after) {
			t.Error("mounts of the host changed")
		}
	})
}

// TestUserNamespaceJoinNet: a network namespace of the host's, whose sysfs and
// sysctls the container's root has no right to.
func TestUserNamespaceJoinNet(t *testing.T) {
	l := newLauncher(t)
	root := busybox(t)
	holder := startSleeper(t, l, config(root, ""), IO{})
	fd, err := ns.Open(holder.Pid, ns.Net)
	must(t, err)
	defer unix.Close(fd)
	c := mapped(config(root, "ls /sys/class/net; cat /proc/sys/net/ipv4/ip_unprivileged_port_start"))
	c.Namespaces.Net = Namespace{}
	c.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "77"}
	if got := output(t, l, c, IO{Join: map[ns.Kind]int{ns.Net: fd}}); got != "lo\n77" {
		t.Errorf("got %q", got)
	}
}

// TestUserNamespaceCoveredProc: the kernel gives a user namespace no proc where the host's
// is covered in part, and the error says so. systemd's automount of binfmt_misc is on an
// empty directory made for it and in nobody's way.
func TestUserNamespaceCoveredProc(t *testing.T) {
	const inside = "BERTH_COVER_PROC"
	if dir := os.Getenv(inside); dir != "" {
		must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
		_, err := runIn(t, newLauncher(t), mapped(config(busybox(t), "true")), IO{})
		fmt.Println("result:", err)
		return
	}
	for dir, want := range map[string]string{"/proc/driver": "findmnt -R /proc", "/proc/sys/fs/binfmt_misc": "result: <nil>"} {
		if _, err := os.Stat(dir); err != nil {
			continue // this kernel does not have it
		}
		cmd := exec.Command(os.Args[0], "-test.run", "^TestUserNamespaceCoveredProc$")
		cmd.Env = append(os.Environ(), inside+"="+dir, "BERTH_INIT="+initBinary)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s covered: %v, no %q in\n%s", dir, err, want, out)
		}
	}
}

// TestUserNamespaceExec enters a container that has a user namespace.
func TestUserNamespaceExec(t *testing.T) {
	l := newLauncher(t)
	group := testGroup(t, cgroup.Resources{})
	p := startSleeper(t, l, mapped(config(busybox(t), "")), IO{Cgroup: group})
	for i := range 20 {
		c := config("/", "id; cat /proc/self/uid_map | tr -s ' '; hostname; echo /proc/[0-9]* | wc -w; readlink /proc/self/ns/net; stat -c %u /bin/busybox >/dev/stdout").Command
		if i%2 == 1 {
			c.User.Spec = "alice"
		}
		got, err := capture(t, IO{Cgroup: group}, func(io IO) (*Process, error) {
			return l.Exec(t.Context(), Target{Pid: p.Pid, PidFD: p.PidFD}, &c, io)
		})
		must(t, err)
		net, err := os.Readlink(ns.Net.Path(p.Pid))
		must(t, err)
		who := map[int]string{0: "uid=0(root) gid=0(root) groups=0(root)", 1: "uid=1000(alice) gid=1000(alice) groups=29(audio),1000(alice)"}[i%2]
		want := strings.Join([]string{who, fmt.Sprintf(" 0 %d 65536", shift), "box", "", net, "0"}, "\n")
		lines := strings.Split(got.out, "\n")
		if len(lines) == 6 {
			lines[3] = ""
		}
		if strings.Join(lines, "\n") != want {
			t.Fatalf("got\n%s\nwant\n%s", got.out, want)
		}
	}
	c := Command{Args: []string{"tty"}, Env: []string{"PATH=/bin"}, Terminal: &ConsoleSize{Rows: 10, Cols: 20}}
	e, err := l.Exec(t.Context(), Target{Pid: p.Pid, PidFD: p.PidFD}, &c, IO{})
	must(t, err)
	if text := readConsole(e); !strings.HasPrefix(text, "/dev/pts/") {
		t.Errorf("tty: %q", text)
	}
	if status, err := e.Wait(); err != nil || status.Code != 0 {
		t.Errorf("tty: %+v, %v", status, err)
	}
	e.Close()
}
