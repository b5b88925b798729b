package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth/internal/fault"
	"berth/internal/faultpoint"
	"berth/services/imaged/graph/merge"
	"berth/test/harness"

	"golang.org/x/sys/unix"
)

// The tests of this file end a process, or the power, in the middle of the
// work. The work is done by the test binary itself, started again as a child
// with the name of a role in this variable.
const roleEnv = "BERTH_PULL_TEST_ROLE"

func isChild(t *testing.T, role string) bool {
	t.Helper()
	if os.Getenv(roleEnv) == role {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	return false
}

// child starts the test that calls it again, in a mount namespace of its own,
// to play role.
func child(t *testing.T, role string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+strings.SplitN(t.Name(), "/", 2)[0]+"$", "-test.v")
	cmd.Env = append(append(os.Environ(), roleEnv+"="+role), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// kindEnv tells a child the kind of its graph driver.
const kindEnv = "BERTH_PULL_TEST_DRIVER"

// everyKind runs a test with graph drivers whose layers are files, and are images.
func everyKind(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range []string{"copy", "erofs"} {
		t.Run(kind, func(t *testing.T) { test(t, kind) })
	}
}

// rigAt is a rig in an existing directory, with the registry all share.
func rigAt(t *testing.T, dir, kind string) *rig {
	t.Helper()
	r := &rig{T: t, dir: dir, kind: kind, registry: newFakeRegistry()}
	r.registry.addImage(t, "app:1", "amd64", "gzip", layerTar(t, "a", strings.Repeat("one", 1000)), layerTar(t, "b", "1"))
	r.registry.addImage(t, "app:2", "amd64", "gzip", layerTar(t, "a", strings.Repeat("one", 1000)), layerTar(t, "b", "2"))
	r.open()
	return r
}

// whole makes sure that every image in the store is complete.
func (r *rig) whole() {
	r.Helper()
	for _, i := range r.images.List() {
		if err := r.images.Verify(i.ID); err != nil {
			r.Errorf("%v: %v", i.Tags, err)
		}
		use, err := r.images.Use(i.ID)
		if err != nil {
			r.Errorf("%v: %v", i.Tags, err)
			continue
		}
		r.images.Unuse(i.ID)
		if b, err := readIn(r.driver.Root(use.Layers[0].Name), "a"); err != nil || string(b) != strings.Repeat("one", 1000) {
			r.Errorf("%v: a has %d bytes, %v", i.Tags, len(b), err)
		}
	}
}

// readIn reads a file at the top of a layer.
func readIn(layer, name string) ([]byte, error) {
	dir, err := merge.Open(layer)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	f, err := dir.File(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// work pulls and removes images until something ends it.
func (r *rig) work(rounds int) {
	for range rounds {
		for _, name := range []string{"app:1", "app:2"} {
			if _, err := r.pull(name); err != nil {
				r.Fatal(err)
			}
			fmt.Fprintln(os.Stderr, "confirmed", name)
		}
		if _, err := r.images.Remove("app:1", false); err != nil {
			r.Fatal(err)
		}
	}
}

func TestF01KilledAtFaultPoints(t *testing.T) {
	if isChild(t, "kill") {
		if err := faultpoint.Arm(os.Getenv(faultpoint.Env)); err != nil {
			t.Fatal(err)
		}
		rigAt(t, os.Getenv("TEST_DIR"), os.Getenv(kindEnv)).work(2)
		return
	}
	everyKind(t, killAtFaultPoints)
}

func killAtFaultPoints(t *testing.T, kind string) {
	var points []string
	for _, p := range faultpoint.List() {
		if strings.HasPrefix(p.Name, "imaged.") && !strings.HasPrefix(p.Name, "imaged.upload-") { // those are of a push
			points = append(points, p.Name)
		}
	}
	if len(points) < 9 {
		t.Errorf("only %d fault points: %v", len(points), points)
	}
	for _, point := range points {
		for _, skip := range []int{0, 1, 3} { // the first hit, and later ones
			t.Run(fmt.Sprint(point, skip), func(t *testing.T) {
				dir := t.TempDir()
				arm := point + "=kill"
				if skip > 0 {
					arm = fmt.Sprintf("%s=%d*off->kill", point, skip)
				}
				out, err := child(t, "kill", faultpoint.Env+"="+arm, "TEST_DIR="+dir, kindEnv+"="+kind).CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					if skip > 0 && err == nil {
						return // the point is not passed that often
					}
					t.Fatalf("the child was not killed: %v\n%s", err, out)
				}
				r := rigAt(t, dir, kind)
				defer r.close()
				r.whole()
				r.mustPull("app:1")
				r.mustPull("app:2")
				r.whole()
				for _, name := range []string{"app:1", "app:2"} {
					if _, err := r.images.Remove(name, false); err != nil {
						t.Error(err)
					}
				}
				r.settle(0, 0)
			})
		}
	}
}

func TestF12DiskFull(t *testing.T) {
	if !isChild(t, "full") {
		everyKind(t, func(t *testing.T, kind string) {
			if out, err := child(t, "full", kindEnv+"="+kind).CombinedOutput(); err != nil || !strings.Contains(string(out), "disk was full") {
				t.Errorf("%v\n%s", err, out)
			}
		})
		return
	}
	dir := t.TempDir()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	r := rigAt(t, dir, os.Getenv(kindEnv))
	big := make([]byte, 6<<20)
	for i := range big {
		big[i] = byte(rand.IntN(256))
	}
	r.registry.addImage(t, "big", "amd64", "none", layerTar(t, "big", string(big)))
	r.registry.addImage(t, "inflated", "amd64", "gzip", layerTar(t, "big", strings.Repeat("0123456789abcdef", 6<<16)))
	r.mustPull("app:1")
	for _, name := range []string{"big", "inflated"} {
		_, err := r.pull(name)
		if !fault.Is(err, fault.ResourceExhausted) || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("disk was full: %v", err)
		r.settle(4, 2)
		r.puller.Wait()
		if r.kept() != 0 {
			t.Errorf("%s: %d bytes are kept on a full disk", name, r.kept())
		}
	}
	r.whole()
	r.mustPull("app:2") // works again without a restart
	r.restart()
	r.whole()
	r.close()
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
}

// TestF08PowerCut pulls images on a file system of its own that loses power at a
// random moment, many times over: whatever is listed then is whole, and what was
// confirmed is listed.
func TestF08PowerCut(t *testing.T) {
	if isChild(t, "cut") {
		powerCuts(t, os.Getenv(kindEnv))
		return
	}
	for _, program := range []string{"mkfs.ext4", "losetup"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED: needs %s", program)
		}
	}
	if testing.Short() {
		t.Skip("SKIPPED: takes seconds")
	}
	if out, err := exec.Command("losetup", "--find").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: needs loop devices: %s", out)
	}
	everyKind(t, func(t *testing.T, kind string) {
		out, err := child(t, "cut", kindEnv+"="+kind).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "power cuts survived") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

func powerCuts(t *testing.T, kind string) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	disk := harness.NewDisk(t, 64)
	const cuts = 12
	sum := 0
	for i := range cuts {
		after, pulls := time.Duration(rand.IntN(150))*time.Millisecond, 0
		if i%2 == 0 { // the moment when it matters most
			after, pulls = 10*time.Second, 1+rand.IntN(3)
		}
		confirmed := cutPower(t, disk, kind, after, pulls)
		sum += len(confirmed)
		disk.Unmount(t)
		disk.Mount(t)
		r := rigAt(t, filepath.Join(disk.Dir, "imaged"), kind)
		r.whole()
		for _, name := range confirmed {
			if _, err := r.images.Find(name); err != nil {
				t.Errorf("a confirmed pull is gone: %v", err)
			}
		}
		// So that the next cut, too, meets pulls that have something to do.
		for _, i := range r.images.List() {
			if _, err := r.images.Remove(i.ID.String(), true); err != nil {
				t.Error(err)
			}
		}
		r.close()
	}
	if sum == 0 {
		t.Error("no pull was confirmed before its cut: this was no test")
	}
	t.Logf("%d power cuts survived; %d pulls were confirmed before", cuts, sum)
}

// cutPower pulls to the file system of disk until that loses power, after a while
// or when so many pulls have been confirmed, if that is sooner, and gives the
// images whose pull was confirmed before. What is confirmed while
// the power goes does not count, for no user would have seen it, and it may be
// wrong: fdatasync(2) that ext4's shutdown overtakes finds its transaction gone,
// and returns success (test/faults counts how often).
func cutPower(t *testing.T, disk *harness.Disk, kind string, after time.Duration, pulls int) (confirmed []string) {
	t.Helper()
	dir := filepath.Join(disk.Dir, "imaged")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r := rigAt(t, dir, kind)
	defer r.close()
	var going atomic.Bool
	now, pulled := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(pulled)
		for i := 0; ; i++ {
			name := fmt.Sprintf("app:%d", i%2+1)
			if _, err := r.puller.Pull(context.Background(), Request{Name: parse(name)}); err != nil || going.Load() {
				return
			}
			confirmed = append(confirmed, name)
			if len(confirmed) == pulls {
				close(now)
			}
		}
	}()
	select {
	case <-time.After(after):
	case <-now:
	}
	going.Store(true)
	disk.Cut(t)
	<-pulled
	return confirmed
}
