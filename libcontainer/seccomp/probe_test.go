package seccomp

import (
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
	"berth/libcontainer/seccomp/filter"
)

// TestS34Probe asks the kernel itself. A child loads the filter and becomes a
// program that makes every call of the table of denials, and sockets of every
// family, by the 64-bit and the 32-bit entry.
//
// It does so twice: under the default profile, and under one whose EPERM was
// swapped for a number no kernel returns, which proves that the answer is the
// filter's and not that of a kernel which would have refused anyway. The probe
// runs without privilege, lest a hole in the filter reboot the machine.
func TestS34Probe(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("SKIPPED: the probe is of amd64 and i386")
	}
	target, err := Host()
	if err != nil {
		t.Fatal(err)
	}
	target.Caps = caps.Default
	const mark = unix.Errno(3999)
	marked := *Default()
	marked.Fallback = Errno(mark)
	for _, abi := range []struct {
		arch   Arch
		goarch string
	}{{AMD64, "amd64"}, {I386, "386"}} {
		probe := buildProbe(t, abi.goarch)
		for _, run := range []struct {
			profile *Profile
			eperm   unix.Errno
		}{{Default(), unix.EPERM}, {&marked, mark}} {
			code, err := run.profile.Compile(target)
			if err != nil {
				t.Fatal(err)
			}
			probeAll(t, abi.arch, probe, code, run.eperm)
		}
	}
}

// probeCall is one call of the probe and what it must be answered with.
type probeCall struct {
	name string // of the call, for messages
	line string // for the probe
	want unix.Errno
}

// probeCalls lists the calls; eperm is what the filter answers for EPERM.
func probeCalls(abi Arch, eperm unix.Errno) []probeCall {
	var calls []probeCall
	add := func(want unix.Errno, name string, args ...uint64) {
		nr, ok := number(name, abi)
		if !ok {
			return
		}
		line := strconv.Itoa(int(nr))
		for _, a := range args {
			line += "," + strconv.FormatUint(a, 10)
		}
		calls = append(calls, probeCall{name + " " + line, line, want})
	}
	names := make([]string, 0, len(denied))
	for name := range denied {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		want := unix.Errno(denied[name] & unix.SECCOMP_RET_DATA)
		if want == unix.EPERM {
			want = eperm
		}
		add(want, name)
	}
	for _, family := range []uint64{unix.AF_ALG, unix.AF_VSOCK, unix.AF_MCTP + 1, 99} {
		add(eperm, "socket", family, unix.SOCK_DGRAM, 0)
	}
	for _, flag := range []uint64{unix.CLONE_NEWNS, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWUSER,
		unix.CLONE_NEWPID, unix.CLONE_NEWNET, unix.CLONE_NEWCGROUP} {
		add(eperm, "clone", flag|uint64(unix.SIGCHLD))
	}
	add(eperm, "personality", 0x0040000) // ADDR_NO_RANDOMIZE
	// And these pass, which shows that the probe reaches the kernel at all.
	add(0, "getpid")
	add(0, "personality", 0xffffffff)
	add(0, "socket", unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	add(unix.EBADF, "close", 1<<20)
	return calls
}

func probeAll(t *testing.T, abi Arch, probe string, code []byte, eperm unix.Errno) {
	t.Helper()
	calls := probeCalls(abi, eperm)
	args := []string{"-test.run=^TestProbeChild$"}
	cmd := exec.Command(os.Args[0], args...)
	var lines []string
	for _, c := range calls {
		lines = append(lines, c.line)
	}
	cmd.Env = append(os.Environ(), "BERTH_PROBE="+probe, "BERTH_PROBE_CODE="+hex.EncodeToString(code), "BERTH_PROBE_CALLS="+strings.Join(lines, " "))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	answers := strings.Fields(string(out))
	if err != nil || len(answers) != len(calls) {
		t.Fatalf("%v probe: %v, %d answers to %d calls\n%s%s", abi, err, len(answers), len(calls), out, stderr.String())
	}
	for i, c := range calls {
		if answers[i] != strconv.Itoa(int(c.want)) {
			t.Errorf("%v: %s is answered %s, want %d (%v)", abi, c.name, answers[i], c.want, c.want)
		}
	}
	t.Logf("%v: %d calls", abi, len(calls))
}

// TestProbeChild is the child of the above, and no test.
func TestProbeChild(t *testing.T) {
	probe := os.Getenv("BERTH_PROBE")
	if probe == "" {
		t.Skip("runs as a child of TestS34Probe")
	}
	code, err := hex.DecodeString(os.Getenv("BERTH_PROBE_CODE"))
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	if os.Geteuid() == 0 {
		if err := caps.Become(caps.Bounding(), 65534, 65534, nil, caps.Sets{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := filter.Load(code); err != nil {
		t.Fatal(err)
	}
	argv := append([]string{"probe"}, strings.Fields(os.Getenv("BERTH_PROBE_CALLS"))...)
	t.Fatal(syscall.Exec(probe, argv, nil))
}

// buildProbe builds the probe where a process without privilege can run it.
func buildProbe(t *testing.T, goarch string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-probe-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	probe := filepath.Join(dir, "probe-"+goarch)
	cmd := exec.Command("go", "build", "-o", probe, "./testdata/probe")
	cmd.Env = append(os.Environ(), "GOARCH="+goarch, "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the probe for %s: %v\n%s", goarch, err, out)
	}
	if err := exec.Command(probe).Run(); err != nil {
		t.Skipf("SKIPPED: this kernel does not run %s programs: %v", goarch, err)
	}
	return probe
}
