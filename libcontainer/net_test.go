package libcontainer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// limitedEnv is set for the test binary in a user namespace of its own, where it may limit itself and nobody else.
const limitedEnv = "BERTH_TEST_LIMITED"

// TestNoNetworkNamespace: a kernel that makes no more network namespaces is found out beside the start of init, which ends
// then. Nothing is left, and the launcher is as good as before.
func TestNoNetworkNamespace(t *testing.T) {
	if os.Getenv(limitedEnv) == "" {
		inUserNamespace(t)
		return
	}
	if runtime.NumCPU() == 1 {
		t.Skip("SKIP: with one processor the clone makes the network namespace")
	}
	const limit = "/proc/sys/user/max_net_namespaces"
	l := newLauncher(t)
	c := config(busybox(t), "exit 7")
	attempt := func() error {
		p, err := l.Start(context.Background(), c, IO{})
		if err != nil {
			return err
		}
		defer p.Close()
		status, err := p.Wait()
		if err == nil && status.Code != 7 {
			err = fmt.Errorf("exit status %d", status.Code)
		}
		return err
	}
	if err := attempt(); err != nil { // before the limit, and so that later ones open nothing for the first time
		t.Fatal(err)
	}
	before := openFDs(t)
	must(t, os.WriteFile(limit, []byte("0"), 0))
	for range 20 {
		err := attempt()
		var step *StepError
		if !errors.As(err, &step) || step.Step != "make net namespace" || !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("got %v, want that the step \"make net namespace\" found no space", err)
		}
		if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
			t.Fatalf("a child is left: %v", err)
		}
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
	must(t, os.WriteFile(limit, []byte("100"), 0))
	if err := attempt(); err != nil {
		t.Errorf("with the limit raised: %v", err)
	}
}

// inUserNamespace runs the same test as root of new user, mount and network namespaces.
func inUserNamespace(t *testing.T) {
	same := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1 << 16}}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), limitedEnv+"=1", "BERTH_INIT="+initBinary)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		UidMappings: same, GidMappings: same, GidMappingsEnableSetgroups: true, Pdeathsig: unix.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	t.Logf("in the user namespace:\n%s", out)
	if err != nil {
		t.Fatal(err)
	}
}
