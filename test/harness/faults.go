package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// Daemons are the four that `berth up` keeps running.
var Daemons = []string{"imaged", "netd", "execd", "apid"}

// Programs are Daemons and the monitor, by their file names.
var Programs = []string{"apid", "imaged", "netd", "execd", "berth-monitor"}

// Isolate moves the calling test into a network namespace of its own, so that it may run beside others: every process
// it starts and socket it opens is in there. The test must not start goroutines that do such things.
func Isolate(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test's goroutine
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare the network: %v", err)
	}
	h, err := netlink.NewHandle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatalf("bring lo up: %v", err)
	}
}

// FaultBin is a folder of programs whose next start can be armed: see [Engine.Arm]. Each daemon there is a script that
// takes what it finds beside it into its environment, once, and then becomes the real program. execd looks for the
// monitor beside itself, so it is a copy in a folder that has such a script for the monitor.
func FaultBin(t testing.TB) string {
	t.Helper()
	real := filepath.Dir(Bin(t, "berth"))
	dir, err := os.MkdirTemp("/tmp", "berth-bin.")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	libexec := filepath.Join(dir, "libexec")
	err = os.Mkdir(libexec, 0o755)
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(real, "berth"), filepath.Join(dir, "berth"))
	copyFile(t, filepath.Join(real, "execd"), filepath.Join(libexec, "execd"))
	if err := os.Symlink(filepath.Join(real, "berth-init"), filepath.Join(libexec, "berth-init")); err != nil {
		t.Fatal(err)
	}
	for _, name := range Programs {
		script, target := filepath.Join(dir, name), filepath.Join(real, name)
		switch name {
		case "execd":
			target = filepath.Join(libexec, "execd")
		case "berth-monitor":
			script = filepath.Join(libexec, name)
		}
		state := filepath.Join(dir, name+".")
		text := fmt.Sprintf("#!/bin/sh\ndate +%%s%%N >> %[1]sstarts\nif mv %[1]sarm %[1]sarmed 2>/dev/null; then read -r BERTH_FAULTS < %[1]sarmed; export BERTH_FAULTS; fi\nexec %[2]s \"$@\"\n",
			state, target)
		if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Arm sets fault points of the next start of a program, and of no later one. The engine must run from [FaultBin].
func (e *Engine) Arm(t testing.TB, program, spec string) {
	t.Helper()
	path := filepath.Join(e.bin, program+".arm")
	if err := os.WriteFile(path+".new", []byte(spec+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// Starts is when a program of [FaultBin] was started, each time.
func (e *Engine) Starts(program string) (starts []time.Time) {
	b, _ := os.ReadFile(filepath.Join(e.bin, program+".starts"))
	for _, l := range strings.Fields(string(b)) {
		var ns int64
		fmt.Sscan(l, &ns)
		starts = append(starts, time.Unix(0, ns))
	}
	return starts
}

// FaultPoints are the names a program lists.
func FaultPoints(t testing.TB, program string) (names []string) {
	t.Helper()
	out, err := exec.Command(Bin(t, program), "--list-fault-points").Output()
	if err != nil {
		t.Fatalf("%s --list-fault-points: %v", program, err)
	}
	for l := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(strings.TrimSpace(l), "\t")
		names = append(names, name)
	}
	return names
}

// PowerOff ends every process of the engine at once: supervisor, daemons, monitor, containers.
func (e *Engine) PowerOff(t testing.TB) {
	t.Helper()
	e.KillDaemons(t)
	if pid := e.Pid("monitor"); pid != 0 {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	Eventually(t, 10*time.Second, func() bool {
		left := 0
		for _, dir := range cgroups(e.instance) {
			b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			for _, f := range strings.Fields(string(b)) {
				var pid int
				if fmt.Sscan(f, &pid); pid > 1 {
					left++
					syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		for _, p := range processes() {
			if strings.Contains(p.cmdline, e.dir) && p.pid != os.Getpid() {
				left++
				syscall.Kill(p.pid, syscall.SIGKILL)
			}
		}
		return left == 0
	}, "every process of the engine is gone")
}

// KillDaemons sends SIGKILL to the supervisor and the four daemons; monitor and containers go on.
func (e *Engine) KillDaemons(t testing.TB) {
	t.Helper()
	kill := func(pid int) {
		if pid > 1 {
			syscall.Kill(pid, syscall.SIGKILL)
			Eventually(t, 5*time.Second, func() bool { return Gone(pid) }, "process %d is gone", pid)
		}
	}
	kill(findProcess("berth", e.Run+" up"))
	for _, d := range Daemons {
		kill(e.Pid(d))
	}
}

// Gone reports whether a process has ended, reaped or not.
func Gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	return err != nil || strings.HasPrefix(rest, "Z")
}
