//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

// TestPythonClient: the contract compiles with a distribution's protoc, and a client in another language, the one of
// docs/python-client, pulls an image and runs containers.
func TestPythonClient(t *testing.T) {
	for _, tool := range []string{"protoc", "grpc_python_plugin"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: scripts/setup.sh installs it", tool)
		}
	}
	e := harness.Shared(t)
	root := sourceRoot(t)
	stubs := t.TempDir()
	protos, err := filepath.Glob(root + "/proto/berth/api/v1/*.proto")
	if err != nil || len(protos) == 0 {
		t.Fatalf("no protos below %s: %v", root, err)
	}
	protoc := exec.Command("protoc", append([]string{"--proto_path=" + root + "/proto", "--python_out=" + stubs,
		"--plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin", "--grpc_python_out=" + stubs}, protos...)...)
	if out, err := protoc.CombinedOutput(); err != nil {
		t.Fatalf("protoc: %v\n%s", err, out)
	}
	client := func(args ...string) (out, errs string, code int) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		// Debian's interpreter: its packages bring gRPC, another Python on PATH may lack it.
		cmd := exec.Command("/usr/bin/python3", append([]string{root + "/docs/python-client/client.py", "--host", "unix://" + e.Run + "/apid.sock"}, args...)...)
		cmd.Env = append(os.Environ(), "PYTHONPATH="+stubs)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
	}

	img := e.Busybox(t)
	reg := registrytest.Start(t, registrytest.Options{})
	ref := reg.Host + "/python/client:v1"
	e.Berth(t, "tag", img, ref)
	e.Berth(t, "push", ref)
	e.Berth(t, "rmi", ref)

	out, errs, code := client("--pull", ref, "sh", "-c", "echo out; echo err >&2; exit 7")
	if out != "out\n" || !strings.Contains(errs, "err\n") || code != 7 {
		t.Errorf("stdout %q, stderr %q, exit code %d; want out, err, 7", out, errs, code)
	}
	out, errs, code = client(ref, "hostname")
	if len(strings.TrimSpace(out)) != 12 || code != 0 {
		t.Errorf("hostname printed %q, exit code %d; stderr %s", out, code, errs)
	}
	if out := e.Berth(t, "ps", "-aq", "--filter", "label=client=python"); out != "" {
		t.Errorf("containers are left: %s", out)
	}
	if _, errs, code = client(reg.Host+"/no/such:image", "true"); code != 125 || !strings.Contains(errs, "NOT_FOUND") {
		t.Errorf("absent image: exit code %d, %s; want 125 and NOT_FOUND", code, errs)
	}
	e.Berth(t, "rmi", "-f", ref)
}

// sourceRoot is the directory with go.mod.
func sourceRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above the test")
	return ""
}
