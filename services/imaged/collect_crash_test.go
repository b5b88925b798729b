package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"berth/internal/config"
	"berth/internal/faultpoint"
	"berth/services/imaged/diskuse"
	"berth/services/imaged/worker/workertest"
)

// collectIn is set in a child of TestF01KilledWhileCollecting: the state directory in which it collects.
const collectIn = "BERTH_COLLECT_IN"

// TestF01KilledWhileCollecting kills the process at each fault point that it comes by while images go on their own, by age
// and because the disk is full. Afterwards each image is there and whole, or gone without a trace, and the rest goes as if
// nothing had happened.
func TestF01KilledWhileCollecting(t *testing.T) {
	if dir := os.Getenv(collectIn); dir != "" {
		s := collectingServer(t, dir)
		if err := faultpoint.Arm(os.Getenv(faultpoint.Env)); err != nil {
			t.Fatal(err)
		}
		collectAll(t, s, os.Getenv("BERTH_COLLECT_WHY"))
		s.Close()
		return
	}
	for _, driver := range []string{"overlay", "erofs"} {
		t.Run(driver, func(t *testing.T) { killWhileCollecting(t, driver) })
	}
}

func killWhileCollecting(t *testing.T, driver string) {
	r := newRigOn(t, driver)
	const images = 3
	for i := range images {
		r.load(fmt.Sprintf("app:%d", i), fmt.Sprintf("LABEL number=%d", i)) // they share a layer
	}
	r.load("other:1")
	r.stop()
	defer r.start()
	for _, why := range []string{"age", "disk"} {
		for _, point := range []string{"journal.appended", "journal.synced", "imaged.rmi-marked", "imaged.rmi-swept"} {
			for skip := range 3 {
				t.Run(fmt.Sprintf("%s/%s/%d", why, point, skip), func(t *testing.T) {
					dir := filepath.Join(t.TempDir(), "imaged")
					if out, err := exec.Command("cp", "-a", r.dir, dir).CombinedOutput(); err != nil {
						t.Fatalf("%v\n%s", err, out)
					}
					if !killedCollecting(t, dir, why, point, skip) && skip == 0 {
						t.Fatal("the point was not reached")
					}
					s := collectingServer(t, dir)
					defer s.Close()
					for _, i := range s.images.List() {
						if err := s.images.Verify(i.ID); err != nil {
							t.Errorf("%v: %v", i.Tags, err)
						}
					}
					if left := len(s.images.List()); why == "disk" && left < images-skip {
						t.Errorf("%d images are left", left)
					}
					collectAll(t, s, why)
					if left := s.images.List(); len(left) != 0 {
						t.Errorf("left in the end: %v", left)
					}
					if left, err := s.driver.Layers(); err != nil || len(left) != 0 {
						t.Errorf("layers left in the end: %v, %v", left, err)
					}
					for _, pattern := range []string{"blobs/*/*", "partial/*", "staging/*"} {
						if left, _ := filepath.Glob(filepath.Join(dir, pattern)); len(left) > 0 {
							t.Errorf("left in the end: %v", left)
						}
					}
				})
			}
		}
	}
}

// killedCollecting has a child collect, and reports whether it was killed.
func killedCollecting(t *testing.T, dir, why, point string, skip int) bool {
	t.Helper()
	arm := "kill"
	if skip > 0 {
		arm = fmt.Sprintf("%d*off->kill", skip)
	}
	child := exec.Command("/proc/self/exe", "-test.run=^TestF01KilledWhileCollecting$")
	child.Env = append(os.Environ(), collectIn+"="+dir, "BERTH_COLLECT_WHY="+why, faultpoint.Env+"="+point+"="+arm)
	out, err := child.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
		t.Fatalf("%v\n%s", err, out)
	}
	return err != nil
}

func collectingServer(t *testing.T, dir string) *server {
	t.Helper()
	s, err := open(dir, workertest.Workers(t).Path, config.Default().Imaged, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// collectAll collects everything that is there, an hour from now.
func collectAll(t *testing.T, s *server, why string) {
	t.Helper()
	c := config.Default().Imaged
	if why == "age" {
		c.CollectAge = config.Duration(30 * time.Minute)
	} else {
		c.CollectAbove, c.CollectBelow = 90, 1
	}
	collector := s.collector(t.TempDir(), c)
	collector.Disk = func() (diskuse.Disk, error) { return diskuse.Disk{Total: 1000 << 20, Free: 10 << 20}, nil }
	if err := collector.Once(time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
}
