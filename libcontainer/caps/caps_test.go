package caps

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	for name, want := range map[string]Cap{
		"CHOWN": unix.CAP_CHOWN, "cap_chown": unix.CAP_CHOWN, "Cap_Net_Raw": unix.CAP_NET_RAW,
		"checkpoint_restore": unix.CAP_CHECKPOINT_RESTORE,
	} {
		if got, err := Parse(name); err != nil || got != want {
			t.Errorf("Parse(%q) = %v, %v, want %v", name, got, err, want)
		}
	}
	for _, name := range []string{"", "CAP_", "CAP_CAP_CHOWN", "CHOWN ", "0", "ALL", "KILL\n"} {
		if got, err := Parse(name); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", name, got)
		}
	}
}

func TestNamesAreComplete(t *testing.T) {
	if len(names) != unix.CAP_LAST_CAP+1 {
		t.Errorf("%d names for %d capabilities", len(names), unix.CAP_LAST_CAP+1)
	}
	for i, name := range names {
		if got, err := Parse(Cap(i).String()); err != nil || got != Cap(i) || name == "" {
			t.Errorf("capability %d is called %q and parses to %v, %v", i, name, got, err)
		}
	}
}

func TestDefaults(t *testing.T) {
	const eleven = "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_SETFCAP"
	if got := Default.String(); got != eleven {
		t.Errorf("Default is %s", got)
	}
	if more := (Docker &^ Default).String(); more != "CAP_NET_RAW CAP_MKNOD CAP_AUDIT_WRITE" || len(Docker.List()) != 14 {
		t.Errorf("Docker has more: %s", more)
	}
}

func TestLast(t *testing.T) {
	text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		t.Fatal(err)
	}
	want, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	if got := Last(); int(got) != want {
		t.Errorf("Last() = %d, the kernel says %d", got, want)
	}
	if got := Known(); got != 1<<(want+1)-1 {
		t.Errorf("Known() = %#x", uint64(got))
	}
}

func TestAdjust(t *testing.T) {
	all := Set(1)<<41 - 1&^Of(unix.CAP_SYS_MODULE)
	tests := []struct {
		add, drop []string
		want      Set
	}{
		{nil, nil, Default},
		{[]string{"NET_RAW"}, nil, Default | Of(unix.CAP_NET_RAW)},
		{nil, []string{"cap_chown", "KILL"}, Default &^ Of(unix.CAP_CHOWN, unix.CAP_KILL)},
		{[]string{"CHOWN"}, []string{"CHOWN"}, Default},
		{[]string{"CHOWN"}, []string{"all"}, Of(unix.CAP_CHOWN)},
		{nil, []string{"ALL"}, 0},
		{[]string{"ALL"}, nil, all},
		{[]string{"CAP_ALL"}, []string{"SYS_ADMIN"}, all &^ Of(unix.CAP_SYS_ADMIN)},
	}
	for _, test := range tests {
		got, err := Adjust(Default, all, test.add, test.drop)
		if err != nil || got != test.want {
			t.Errorf("add %v, drop %v: %v, %v; want %v", test.add, test.drop, got, err, test.want)
		}
	}
}

func TestAdjustRefuses(t *testing.T) {
	_, err := Adjust(Default, ^Set(0), []string{"CHOWN", "FLY"}, []string{"SW\nIM"})
	if want := `unknown capability "FLY", "SW\nIM"`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	_, err = Adjust(Default, Default, []string{"SYS_ADMIN"}, nil)
	var missing UnavailableError
	if !errors.As(err, &missing) || Set(missing) != Of(unix.CAP_SYS_ADMIN) {
		t.Errorf("error %v, want SYS_ADMIN to be unavailable", err)
	}
}

func TestS22FiveSets(t *testing.T) {
	if got, want := ForContainer(Default, true), (Sets{Effective: Default, Permitted: Default, Bounding: Default}); got != want {
		t.Errorf("root: %+v", got)
	}
	if got, want := ForContainer(Default, false), (Sets{Bounding: Default}); got != want {
		t.Errorf("user: %+v", got)
	}
}

// inChild runs the test function named again in a process of its own, and
// reports whether this is that process.
func inChild(t *testing.T) bool {
	t.Helper()
	if os.Getenv("BERTH_CAPS_CHILD") == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "BERTH_CAPS_CHILD="+t.Name())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("in the child: %v\n%s", err, out)
	}
	return false
}

func TestS22BecomeUser(t *testing.T) {
	if !inChild(t) {
		return
	}
	runtime.LockOSThread()
	allowed := Default &^ Of(unix.CAP_KILL)
	if err := Become(Bounding(), 1000, 1001, []int{1001, 7}, ForContainer(allowed, false)); err != nil {
		t.Fatal(err)
	}
	wantAfterExec(t, map[string]string{
		"Uid": "1000 1000 1000 1000", "Gid": "1001 1001 1001 1001", "Groups": "7 1001",
		"CapInh": hex(0), "CapPrm": hex(0), "CapEff": hex(0), "CapAmb": hex(0), "CapBnd": hex(allowed),
	})
}

func TestS22BecomeRoot(t *testing.T) {
	if !inChild(t) {
		return
	}
	runtime.LockOSThread()
	if err := Become(Bounding(), 0, 0, []int{0}, ForContainer(Default, true)); err != nil {
		t.Fatal(err)
	}
	wantAfterExec(t, map[string]string{
		"Uid": "0 0 0 0", "Groups": "0",
		"CapInh": hex(0), "CapPrm": hex(Default), "CapEff": hex(Default), "CapAmb": hex(0), "CapBnd": hex(Default),
	})
}

func hex(s Set) string {
	digits := strconv.FormatUint(uint64(s), 16)
	return strings.Repeat("0", 16-len(digits)) + digits
}

// wantAfterExec compares the status of a program started from this thread.
func wantAfterExec(t *testing.T, want map[string]string) {
	t.Helper()
	out, err := exec.Command("/bin/cat", "/proc/self/status").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(line, ":")
		got := strings.Join(strings.Fields(value), " ")
		if w, ok := want[key]; ok && got != w {
			t.Errorf("after execve %s is %s, want %s", key, got, w)
		}
	}
}

// needNoCgo skips where threads may be that Go does not know: syscall.AllThreadsSyscall.
func needNoCgo(t *testing.T) {
	t.Helper()
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno == unix.ENOTSUP {
		t.Skip("SKIPPED: built with cgo, as for the race detector")
	}
}

func TestDropTo(t *testing.T) {
	needNoCgo(t)
	if !inChild(t) {
		return
	}
	stop := make(chan struct{})
	defer close(stop)
	for range 8 { // threads that are there before
		started := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(started)
			<-stop
		}()
		<-started
	}
	keep := Of(unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE)
	if err := DropTo(1234, 1234, []int{1234, 99}, keep); err != nil {
		t.Fatal(err)
	}
	if err := DropTo(1234, 1234, []int{1234, 99}, keep); err != nil {
		t.Errorf("again, without privilege: %v", err)
	}
	if err := checkThreads(1234, 1234, []int{99, 1234}, ForContainer(keep, true)); err != nil {
		t.Error(err)
	}
	if err := checkThreads(1234, 1234, []int{1234}, ForContainer(keep, true)); err == nil {
		t.Error("the check does not see a group too many")
	}
	if err := checkThreads(1234, 1234, []int{1234, 99}, ForContainer(0, true)); err == nil {
		t.Error("the check does not see a capability too many")
	}
	if err := unix.Setuid(0); err == nil {
		t.Error("became root again")
	}
	wantAfterExec(t, map[string]string{"Uid": "1234 1234 1234 1234", "CapPrm": hex(0), "CapBnd": hex(keep)})
}

func TestDropToNothing(t *testing.T) {
	needNoCgo(t)
	if !inChild(t) {
		return
	}
	if err := DropTo(65534, 65534, nil, 0); err != nil {
		t.Fatal(err)
	}
	var step *Error
	if err := DropTo(0, 0, nil, 0); !errors.As(err, &step) || !errors.Is(err, unix.EPERM) {
		t.Errorf("way back: %v, want a step that fails with EPERM", err)
	}
}

func TestReduce(t *testing.T) {
	needNoCgo(t)
	if !inChild(t) {
		return
	}
	keep := Of(unix.CAP_CHOWN, unix.CAP_MKNOD)
	if err := Reduce(keep); err != nil {
		t.Fatal(err)
	}
	if err := checkThreads(0, 0, groups(t), ForContainer(keep, true)); err != nil {
		t.Error(err)
	}
	if err := Reduce(keep); err != nil {
		t.Errorf("again, without privilege: %v", err)
	}
	if err := Reduce(Of(unix.CAP_SYS_ADMIN)); !errors.Is(err, unix.EPERM) {
		t.Errorf("keep what it has not: %v", err)
	}
}

func groups(t *testing.T) []int {
	t.Helper()
	g, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestSetAside: what was set aside is there on one thread for the time of a call,
// and can be handed to a child.
func TestSetAside(t *testing.T) {
	needNoCgo(t)
	if !inChild(t) {
		return
	}
	aside := Of(unix.CAP_MKNOD, unix.CAP_SETFCAP)
	before, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	if err := SetAside(aside); err != nil {
		t.Fatal(err)
	}
	want := before
	want.Effective &^= aside
	if err := checkThreads(0, 0, groups(t), want); err != nil {
		t.Error(err)
	}
	device := t.TempDir() + "/null"
	mknod := func() error { return unix.Mknod(device, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }
	if err := mknod(); !errors.Is(err, unix.EPERM) {
		t.Errorf("made a device without the capability: %v", err)
	}
	if err := With(Of(unix.CAP_MKNOD), mknod); err != nil {
		t.Errorf("with it: %v", err)
	}
	if err := checkThreads(0, 0, groups(t), want); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if err := With(0, func() error { return unix.EBADF }); err != unix.EBADF {
		t.Errorf("its error is %v", err)
	}
}
