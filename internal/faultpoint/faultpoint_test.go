package faultpoint

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	testPoint  = Declare("test.point", "used by this test")
	otherPoint = Declare("test.other", "used by this test")
)

func TestChain(t *testing.T) {
	t.Cleanup(Reset)
	if err := Arm("test.point=2*off->1*error:boom->1*delay:30"); err != nil {
		t.Fatal(err)
	}
	for i, wantErr := range []bool{false, false, true} {
		if err := testPoint.Hit(); (err != nil) != wantErr {
			t.Errorf("hit %d: err = %v, want error %v", i+1, err, wantErr)
		} else if wantErr && !strings.Contains(err.Error(), "boom") {
			t.Errorf("hit %d: %q lacks its text", i+1, err)
		}
	}
	begin := time.Now()
	if err := testPoint.Hit(); err != nil || time.Since(begin) < 30*time.Millisecond {
		t.Errorf("delay: %v after %v", err, time.Since(begin))
	}
	if testPoint.armed.Load() {
		t.Error("still armed after its chain ended")
	}
	if err := otherPoint.Hit(); err != nil {
		t.Errorf("a point not named failed: %v", err)
	}
}

func TestPanicAction(t *testing.T) {
	t.Cleanup(Reset)
	if err := Arm("test.point=panic"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	testPoint.Hit()
}

func TestKillEndsTheProcess(t *testing.T) {
	if spec := os.Getenv(Env); spec != "" {
		if err := Arm(spec); err != nil {
			t.Fatal(err)
		}
		testPoint.Hit()
		os.Exit(3) // not reached
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillEndsTheProcess$")
	cmd.Env = append(os.Environ(), Env+"=test.point=kill")
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) {
		t.Fatalf("child: %v", err)
	}
	if ws := exit.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		t.Errorf("child ended with %v, want SIGKILL", ws)
	}
}

func TestArmRefuses(t *testing.T) {
	t.Cleanup(Reset)
	if err := Arm("otherd.point=kill"); err != nil {
		t.Errorf("another daemon's point: %v", err)
	}
	for _, spec := range []string{"nope=kill", "test.nope=kill", "test.point", "test.point=explode", "test.point=0*kill",
		"test.point=x*kill", "test.point=delay:x", "test.other=error;test.point="} {
		if err := Arm(spec); err == nil {
			t.Errorf("Arm(%q) accepted", spec)
		}
		if otherPoint.armed.Load() || testPoint.armed.Load() {
			t.Errorf("Arm(%q) armed something", spec)
		}
	}
}

func TestListIsSorted(t *testing.T) {
	var names []string
	for _, d := range List() {
		names = append(names, d.Name)
	}
	if got := strings.Join(names, " "); got != "test.other test.point" {
		t.Errorf("List = %q", got)
	}
}

func BenchmarkOff(b *testing.B) {
	for b.Loop() {
		if err := testPoint.Hit(); err != nil {
			b.Fatal(err)
		}
	}
}
