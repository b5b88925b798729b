package execd

import (
	"errors"
	"strings"
	"testing"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
)

func TestRunGivesOutputAndStatus(t *testing.T) {
	e := start(t)
	r, err := e.run(script("echo out; echo err >&2; exit 7"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.out != "out\n" || r.errOut != "err\n" || r.exit.GetCode() != 7 {
		t.Errorf("got %q, %q, %v", r.out, r.errOut, r.exit)
	}
	if got := e.logs(&apiv1.LogsRequest{Container: r.id, Stdout: true}); got != "out\n" {
		t.Errorf("log has %q", got)
	}
	i := e.inspect(r.id)
	if i.State != apiv1.ContainerState_CONTAINER_STATE_EXITED || i.Exit.GetCode() != 7 || i.Name != r.name {
		t.Errorf("inspect says %v, %v, %s", i.State, i.Exit, i.Name)
	}
}

// A namespace that execd holds is joined, by an init that waits or a new one.
func TestRunInHeldNamespace(t *testing.T) {
	e := start(t)
	network := e.held()
	for n := range 12 {
		s := script("cat /proc/net/dev | wc -l; readlink /proc/self/ns/net; cat /proc/self/cgroup | grep -c berth; exit 5")
		s.Resources = &apiv1.Resources{MemoryBytes: int64(n) * 16 << 20, PidsLimit: int64(n) * 20}
		r, err := e.runIn(network, s, nil)
		if err != nil || r.exit.GetCode() != 5 || !strings.HasPrefix(r.out, "3\nnet:[") || !strings.HasSuffix(r.out, "\n0\n") {
			t.Errorf("got %q, %v, %v", r.out, r.exit, err)
		}
	}
}

func TestRunReportsWhyACommandCannotRun(t *testing.T) {
	e := start(t)
	for _, c := range []struct {
		args   []string
		kind   fault.Kind
		reason string
	}{
		{[]string{"nosuchcommand"}, fault.NotFound, "COMMAND_NOT_FOUND"},
		{[]string{"/bin/data"}, fault.PermissionDenied, "COMMAND_NOT_EXECUTABLE"},
		{[]string{"/etc"}, fault.PermissionDenied, "COMMAND_NOT_EXECUTABLE"},
	} {
		_, err := e.run(&apiv1.ContainerSpec{Image: "busybox", Args: c.args, Name: "same"}, nil)
		var f *fault.Error
		if !errors.Is(err, c.kind) || !errors.As(err, &f) || f.Reason() != c.reason {
			t.Errorf("%v: got %v, want %s", c.args, err, c.reason)
		}
	}
}

func TestRunPassesStdin(t *testing.T) {
	e := start(t)
	in := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	r, err := e.run(script("cat"), []byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if r.out != in || r.exit.GetCode() != 0 {
		t.Errorf("got %d bytes, want %d; %v", len(r.out), len(in), r.exit)
	}
}

func TestRemovedContainerFreesItsNameBeforeItsExitIsTold(t *testing.T) {
	e := start(t)
	for n := range 20 {
		s := script("exit 3")
		s.Name, s.AutoRemove = "same", true
		r, err := e.run(s, nil)
		if err != nil {
			t.Fatalf("run %d: %v", n, err)
		}
		if r.exit.GetCode() != 3 {
			t.Fatalf("run %d: %v", n, r.exit)
		}
	}
}
