package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBox runs the example as its reader would.
func TestBox(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: starting containers needs root")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("SKIPPED: needs busybox-static")
	}
	dir := t.TempDir()
	bin, initBinary := filepath.Join(dir, "box"), filepath.Join(dir, "berth-init")
	for program, source := range map[string]string{bin: ".", initBinary: "berth/libcontainer/cmd/berth-init"} {
		build := exec.Command("go", "build", "-o", program, source)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", source, err, out)
		}
	}
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(filepath.Join(rootfs, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rootfs, "bin/busybox"), binary, 0o755); err != nil {
		t.Fatal(err)
	}

	run := func(script string) (string, error) {
		out, err := exec.Command(bin, initBinary, rootfs, "busybox", "sh", "-c", script).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	out, err := run("echo $$; busybox hostname; seen=$(busybox ps); echo \"$seen\" | busybox wc -l; busybox grep CapBnd /proc/self/status; busybox grep Seccomp: /proc/self/status")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// The shell and ps, below a line of titles; the 11 capabilities; a filter.
	if want := "1\nbox\n3\nCapBnd:\t00000000800405fb\nSeccomp:\t2"; out != want {
		t.Errorf("in the box:\n%s\nwant:\n%s", out, want)
	}
	if out, err := run("exit 3"); err == nil || err.(*exec.ExitError).ExitCode() != 3 {
		t.Errorf("exit 3 came out as %v\n%s", err, out)
	}
}
