package feature

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseRelease(t *testing.T) {
	for _, test := range []struct {
		text string
		want Release
		ok   bool
	}{
		{"3.10.0-1160.119.1.el7.x86_64", Release{3, 10, 0}, true},
		{"6.18.44-fc-v657", Release{6, 18, 44}, true},
		{"6.12-rc3", Release{6, 12, 0}, true},
		{"5.15.167.4-microsoft-standard-WSL2", Release{5, 15, 167}, true},
		{"5.4.0+", Release{5, 4, 0}, true},
		{"6", Release{6, 0, 0}, false},
		{"", Release{}, false},
		{"x.y", Release{}, false},
	} {
		got, ok := ParseRelease(test.text)
		if ok != test.ok || ok && got != test.want {
			t.Errorf("%q: got %v, %v; want %v, %v", test.text, got, ok, test.want, test.ok)
		}
	}
	order := []Release{{2, 6, 32}, {3, 9, 99}, {3, 10, 0}, {3, 10, 1}, {6, 2, 0}}
	if !slices.IsSortedFunc(order, func(a, b Release) int {
		if a.Before(b) {
			return -1
		}
		return 1
	}) {
		t.Errorf("not in order: %v", order)
	}
}

// TestProbe compares what the probes say with what can be seen in other ways, on any host.
func TestProbe(t *testing.T) {
	dir := t.TempDir()
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	all := Probe(filepath.Join(dir, "not/yet/made"))
	have := map[string]Feature{}
	for _, f := range all {
		t.Logf("%-24s %-8s %s", f.Name, f.Have, f.Detail)
		if _, twice := have[f.Name]; twice {
			t.Errorf("%s is there twice", f.Name)
		}
		have[f.Name] = f
		for what, text := range map[string]string{"Lost": f.Lost, "Do": f.Do} {
			if !strings.HasSuffix(text, ".") || strings.ToUpper(text[:1]) != text[:1] {
				t.Errorf("%s: %s is no sentence: %q", f.Name, what, text)
			}
		}
		if f.Have != Yes && f.Detail == "" {
			t.Errorf("%s: %v, without a reason", f.Name, f.Have)
		}
		if f.Have == Unknown && os.Geteuid() == 0 {
			t.Errorf("%s is unknown to root: %s", f.Name, f.Detail)
		}
	}
	if after, _ := os.ReadFile("/proc/self/mountinfo"); string(after) != string(mounts) {
		t.Error("the mount table has changed")
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("children are left: %v", err)
	}

	want := func(name string, present bool) {
		t.Helper()
		if f, ok := have[name]; !ok || (f.Have == Yes) != present {
			t.Errorf("%s: %v (%s), but it should be %v", name, f.Have, f.Detail, present)
		}
	}
	file := func(path string) bool { _, err := os.Stat(path); return err == nil }
	want("AppArmor", file("/sys/kernel/security/apparmor") && firstLine("/sys/module/apparmor/parameters/enabled") == "Y")
	want("SELinux", file("/sys/fs/selinux/enforce"))
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: the rest needs root")
	}
	status, _ := os.ReadFile("/proc/self/status")
	want("CAP_SYS_RESOURCE", strings.Contains(string(status), "CapEff:\t000001ffffffffff"))
	for name, path := range map[string]string{
		"mount namespace": "mnt", "pid namespace": "pid", "network namespace": "net", "uts namespace": "uts",
		"ipc namespace": "ipc", "user namespace": "user", "cgroup namespace": "cgroup", "time namespace": "time",
	} {
		want(name, file("/proc/self/ns/"+path))
	}
	release, _, err := Kernel()
	if err != nil {
		t.Fatal(err)
	}
	for name, since := range map[string]Release{ // mainline: a newer kernel has them, unless built without
		"clone3": {5, 3, 0}, "pidfd_open": {5, 3, 0}, "close_range": {5, 9, 0}, "openat2": {5, 6, 0},
		"new mount API": {5, 2, 0}, "pidfd exit information": {6, 15, 0}, "no_new_privs": {3, 5, 0},
		"seccomp filter": {3, 5, 0},
	} {
		want(name, !release.Before(since))
	}
}

// A needed feature that is missing must be told from one that could not be tried.
func TestVerdicts(t *testing.T) {
	for _, test := range []struct {
		err            error
		verdict, known State
	}{
		{nil, Yes, Yes},
		{unix.ENOSYS, No, No},
		{unix.EINVAL, No, Yes},
		{unix.ENODEV, No, Yes},
		{unix.EPERM, Unknown, Unknown},
		{&os.PathError{Op: "open", Path: "/x", Err: unix.EACCES}, Unknown, Yes},
		{unix.EMFILE, Unknown, Yes},
	} {
		if got, detail := verdict(test.err); got != test.verdict || (detail == "") != (got == Yes) {
			t.Errorf("verdict(%v) = %v, %q; want %v", test.err, got, detail, test.verdict)
		}
		if got, _ := known(test.err); got != test.known {
			t.Errorf("known(%v) = %v, want %v", test.err, got, test.known)
		}
	}
}

func TestOverlayRefusedIsNo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	// proc cannot be the upper directory of anything, and nothing can be made in it.
	if state, _ := tryOverlay(&host{dir: "/proc", root: true}, false); state == Yes {
		t.Error("an overlay in /proc")
	}
	if state, detail := tryIdmap(&host{dir: "/proc", root: true}); state == Yes {
		t.Errorf("an idmapped /proc: %s", detail)
	}
	if state, _ := tryFilesystem("no-such-filesystem"); state != No {
		t.Errorf("no-such-filesystem: %v", state)
	}
	if state, detail := inNetwork(unix.NETLINK_ROUTE, newLink("no-such-link")); state != No {
		t.Errorf("no-such-link: %v, %s", state, detail)
	}
	// The old way of trying an overlay must agree with the new one.
	dir := t.TempDir()
	var options [][2]string
	for _, sub := range []string{"lower", "upper", "work"} {
		os.Mkdir(filepath.Join(dir, sub), 0o755)
		options = append(options, [2]string{sub + "dir", filepath.Join(dir, sub)})
	}
	if a, b := overlayDetached(options, false), overlayMounted(options, false); (a == nil) != (b == nil) {
		t.Errorf("detached: %v, mounted: %v", a, b)
	}
}
