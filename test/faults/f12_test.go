//go:build e2e

package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

// TestF12DiskFull and its sister fill the disk under the engine. A pull then fails with one clear line and leaves
// nothing; what runs goes on; and with room again all works, without a restart.
func TestF12DiskFull(t *testing.T) { everyDriver(t, diskFull) }

func diskFull(t *testing.T, driver string) {
	disk := harness.NewDisk(t, 64)
	full(t, disk, driver, func() []string {
		filler := filepath.Join(disk.Dir, "filler")
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		chunk := make([]byte, 64<<10)
		for {
			if _, err := f.Write(chunk); err != nil {
				break
			}
		}
		st, _ := f.Stat()
		f.Truncate(st.Size() - 2<<20) // room for state, not for the image
		f.Sync()
		return []string{filler}
	})
}

func TestF13InodesExhausted(t *testing.T) { everyDriver(t, inodesExhausted) }

func inodesExhausted(t *testing.T, driver string) {
	disk := harness.NewDisk(t, 64, "-N", "1024")
	room := 40 // for state, not for the image
	if driver == "erofs" {
		room = 2 // a layer is a directory and a file, whatever is in it
	}
	full(t, disk, driver, func() (files []string) {
		for i := 0; ; i++ {
			name := fmt.Sprintf("%s/filler%d", disk.Dir, i)
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				break
			}
			files = append(files, name)
		}
		for range room {
			os.Remove(files[len(files)-1])
			files = files[:len(files)-1]
		}
		return files
	})
}

// TestF13ReadOnly has the disk under the engine become read-only, as ext4 does it at an error. Pulls fail with one clear
// line, what runs goes on and can be worked with; after a repair and a restart nothing is missing and all works.
func TestF13ReadOnly(t *testing.T) { everyDriver(t, readOnly) }

func readOnly(t *testing.T, driver string) {
	disk := harness.NewDisk(t, 64, "-e", "remount-ro")
	e := harness.NewWith(t, harness.Options{Root: disk.Dir + "/root", Driver: driver})
	ref := pushed(t, e)
	img := e.Busybox(t)
	e.Berth(t, "run", "-d", "--name", "runs", "-p", "18671:80", img, "sh", "-c", counter)
	harness.Eventually(t, 5*time.Second, func() bool { return get(18671) == nil }, "the container answers")
	time.Sleep(200 * time.Millisecond)
	before := settledStore(t, e)
	disk.Fail(t)
	for range 3 {
		oneLine(t, e.Try("pull", "-q", ref), "read-only file system")
	}
	oneLine(t, e.Try("import", otherTar(t, "other", 1<<16), "other:1"), "read-only file system")
	if err := get(18671); err != nil {
		t.Errorf("published port while the disk is read-only: %v", err)
	}
	if s := status(t, e, "runs"); s != "running" {
		t.Errorf("the container is %s while the disk is read-only", s)
	}
	if out := e.Berth(t, "exec", "runs", "echo", "in"); out != "in" {
		t.Errorf("exec while the disk is read-only printed %q", out)
	}
	e.PowerOff(t)
	if err := os.RemoveAll(e.Run); err != nil { // a tmpfs
		t.Fatal(err)
	}
	disk.Unmount(t)
	disk.Repair(t)
	disk.Mount(t)
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	e.Ready(t)
	sameStore(t, e, before)
	e.Berth(t, "pull", "-q", ref)
	if out := e.Berth(t, "run", "--rm", ref, "cat", "/mark"); out != "big" {
		t.Errorf("run after the repair printed %q", out)
	}
}

// pushed gives the reference of an image of 6 MiB that is in a registry only.
func pushed(t *testing.T, e *harness.Engine) string {
	t.Helper()
	reg := registrytest.Start(t, registrytest.Options{})
	ref := reg.Ref("big:1")
	e.Berth(t, "import", otherTar(t, "big", 6<<20), ref)
	e.Berth(t, "push", "-q", ref)
	e.Berth(t, "rmi", ref)
	return ref
}

// oneLine fails unless a command failed and said why in one line that contains the words.
func oneLine(t *testing.T, r harness.Result, words string) {
	t.Helper()
	var lines []string
	for _, l := range strings.Split(strings.TrimSpace(r.Err), "\n") {
		if !strings.HasPrefix(l, "hint: ") {
			lines = append(lines, l)
		}
	}
	if r.Code != 1 || len(lines) != 1 || !strings.HasPrefix(r.Err, "error: ") || !strings.Contains(r.Err, words) {
		t.Errorf("%s: exit %d, %q", strings.Join(r.Args, " "), r.Code, r.Err)
	}
}

// full does the test; fill takes what there is and says which files to remove for there to be room again.
func full(t *testing.T, disk *harness.Disk, driver string, fill func() []string) {
	t.Helper()
	e := harness.NewWith(t, harness.Options{Root: disk.Dir + "/root", Driver: driver})
	img, ref := e.Busybox(t), pushed(t, e)
	e.Berth(t, "run", "-d", "--name", "runs", "-p", "18670:80", img, "sh", "-c", counter)
	harness.Eventually(t, 5*time.Second, func() bool { return get(18670) == nil }, "the container answers")
	time.Sleep(200 * time.Millisecond)
	before := settledStore(t, e)

	fillers := fill()
	for range 3 {
		oneLine(t, e.Try("pull", "-q", ref), "no space left")
		sameStore(t, e, before)
	}
	if err := get(18670); err != nil {
		t.Errorf("published port while the disk is full: %v", err)
	}
	if s := status(t, e, "runs"); s != "running" {
		t.Errorf("the container is %s while the disk is full", s)
	}
	if out := e.Berth(t, "exec", "runs", "echo", "in"); out != "in" {
		t.Errorf("exec while the disk is full printed %q", out)
	}
	for _, f := range fillers {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	e.Berth(t, "pull", "-q", ref)
	if out := e.Berth(t, "run", "--rm", ref, "cat", "/mark"); out != "big" {
		t.Errorf("run with room again printed %q", out)
	}
	e.Berth(t, "stop", "runs")
	if code := e.Berth(t, "wait", "runs"); code != "7" {
		t.Errorf("the container exited with %s, want 7", code)
	}
}
