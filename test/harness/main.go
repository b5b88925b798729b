// Package harness drives a whole engine as its users do: the real binaries of bin/, a real registry, real root file
// systems, only through the CLI and the gRPC API.
//
// A test package calls Main from its TestMain. The tests then run in network and mount namespaces of their own, so no
// container's packet leaves the machine and nothing is left in the host's mount table. Every Engine has a root, a run
// directory, a control group and an nftables table of its own, so test packages run side by side. When an Engine is
// closed, Audit compares what is left with what was there before.
package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

const insideKey = "BERTH_TEST_INSIDE"

// Main re-executes the test binary inside fresh namespaces, brings loopback up, and runs the tests there.
func Main(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests start an engine, which needs root: run them with sudo")
		os.Exit(1)
	}
	if os.Getenv(insideKey) == "" {
		os.Exit(outside())
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bring lo up:", err)
		os.Exit(1)
	}
	code := m.Run()
	stopShared()
	os.Exit(code)
}

func outside() int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideKey+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET,
		// Unshareflags also makes / private, as mount(8) MS_REC|MS_PRIVATE.
		Unshareflags: syscall.CLONE_NEWNS,
	}
	if err := cmd.Run(); err != nil {
		if x, ok := err.(*exec.ExitError); ok {
			return x.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "enter fresh namespaces:", err)
		return 1
	}
	return 0
}

// Bin is the path of one of the project's programs; make build puts them there.
func Bin(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(projectRoot(), "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing: run make build", path)
	}
	return path
}

func projectRoot() string {
	_, file, _, _ := runtime.Caller(0)
	if filepath.IsAbs(file) {
		return filepath.Join(filepath.Dir(file), "..", "..")
	}
	// With -trimpath the file name is relative; go test runs in the package's directory.
	dir, _ := os.Getwd()
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	return "."
}
