package worker_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/fault"
	"berth/services/imaged/graph"
	"berth/services/imaged/trash"
	"berth/services/imaged/unpack"
	"berth/services/imaged/worker/wire"
	"berth/services/imaged/worker/workertest"
)

// TestS11ShutIn has a program that shuts itself in as berth-unpack does try what
// one that was taken over would: sockets, files outside, other processes, more
// rights. Each wall has to hold when the others that not every kernel has are
// missing, as far as it can.
func TestS11ShutIn(t *testing.T) {
	r := newRig(t)
	probe := filepath.Join(t.TempDir(), "berth-unpack")
	if err := workertest.Build(probe, "berth/services/imaged/worker/testdata/probe"); err != nil {
		t.Fatal(err)
	}
	r.workers.Path = probe
	for _, r.workers.NoLandlock = range []bool{false, true} {
		s, _, err := r.workers.Unpack(t.Context(), r.layers, plain(archiveOf(t, 1)))
		if err != nil {
			t.Errorf("without Landlock: %v: got away with: %v", r.workers.NoLandlock, err)
			continue
		}
		s.Discard()
	}
	// The probe finds what is open to it: without the filter it is more than nothing.
	r.workers.NoSeccomp = true
	if _, _, err := r.workers.Unpack(t.Context(), r.layers, plain(archiveOf(t, 1))); err == nil || !strings.Contains(err.Error(), "socket") || strings.Contains(err.Error(), "passwd") {
		t.Errorf("without seccomp the probe gets away with %v, want sockets, but no file", err)
	}
	r.nothing()
}

// TestS11Process looks at the real process from outside, while it unpacks. One that makes an image of the layer has no
// capability at all.
func TestS11Process(t *testing.T) {
	for name, form := range map[string]unpack.Options{
		"tree": {Whiteouts: unpack.OverlayUser}, "image": {Whiteouts: unpack.OverlayUser, Image: true},
	} {
		t.Run(name, func(t *testing.T) { testProcess(t, form) })
	}
}

func testProcess(t *testing.T, form unpack.Options) {
	r := newRig(t)
	can, err := trash.Open(filepath.Join(r.dir, "trash"), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer can.Close()
	if r.layers, err = graph.OpenLayerDir(filepath.Join(r.dir, "l"), form, can); err != nil {
		t.Fatal(err)
	}
	archive := newStalled(archiveOf(t, 1<<20, 1<<20))
	done := make(chan error, 1)
	go func() {
		s, _, err := r.workers.Unpack(t.Context(), r.layers, archive)
		if err == nil {
			s.Discard()
		}
		done <- err
	}()
	<-archive.waiting
	pid := r.shutIn()
	proc := fmt.Sprintf("/proc/%d", pid)

	caps := fmt.Sprintf("%016x", uint64(wire.CapsFor(form)))
	none := strings.Repeat("0", 16)
	want := map[string]string{"CapPrm": caps, "CapEff": caps, "CapBnd": caps, "CapInh": none, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2"}
	tasks, _ := filepath.Glob(proc + "/task/*/status")
	if len(tasks) < 2 {
		t.Errorf("%d threads", len(tasks))
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		for line := range strings.Lines(string(status)) {
			key, value, _ := strings.Cut(line, ":")
			if w, ok := want[key]; ok && strings.TrimSpace(value) != w {
				t.Errorf("%s: %s is %s, want %s", task, key, strings.TrimSpace(value), w)
			}
		}
	}
	for _, name := range []string{"root", "cwd"} {
		if at, _ := os.Readlink(proc + "/" + name); !strings.HasPrefix(at, filepath.Join(r.dir, "l/new.")) {
			t.Errorf("its %s is %s", name, at)
		}
	}
	fds, _ := os.ReadDir(proc + "/fd")
	for _, fd := range fds {
		at, _ := os.Readlink(proc + "/fd/" + fd.Name())
		ours := strings.HasPrefix(at, "pipe:") || strings.HasPrefix(at, filepath.Join(r.dir, "l/new.")) || strings.HasPrefix(at, "anon_inode:[event")
		if !ours {
			t.Errorf("descriptor %s is %s", fd.Name(), at)
		}
	}
	if len(fds) < 5 {
		t.Errorf("%d descriptors", len(fds))
	}
	if env, _ := os.ReadFile(proc + "/environ"); strings.Count(string(env), "\x00") != 2 {
		t.Errorf("its environment is %q", env)
	}
	limits, _ := os.ReadFile(proc + "/limits")
	for _, wrong := range []string{"Max cpu time              unlimited", "Max file size             unlimited", "Max data size             unlimited"} {
		if strings.Contains(string(limits), wrong) {
			t.Errorf("limits: %s", wrong)
		}
	}
	if adj, err := os.ReadFile(proc + "/oom_score_adj"); err != nil || strings.TrimSpace(string(adj)) != "500" {
		t.Errorf("oom_score_adj is %q, %v", adj, err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(proc+"/mem", &st); err != nil || st.Uid != 0 {
		t.Errorf("its memory belongs to user %d, %v", st.Uid, err)
	}
	archive.on <- nil
	if err := <-done; err != nil {
		t.Error(err)
	}
	r.nothing()
}

// shutIn waits for the one process there is to have shut itself in.
func (r *rig) shutIn() int {
	r.Helper()
	for range 500 {
		for _, pid := range children(r) {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if strings.Contains(string(status), "Seccomp:\t2") {
				return pid
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.Fatal("no process unpacks")
	return 0
}

// TestF01UnpackKilled: a process that is killed in the middle takes down its
// layer and nothing else; the next one goes well.
func TestF01UnpackKilled(t *testing.T) {
	r := newRig(t)
	archive := newStalled(archiveOf(t, 1<<20, 1<<20))
	defer close(archive.on)
	done := make(chan error, 1)
	go func() {
		_, _, err := r.workers.Unpack(t.Context(), r.layers, archive)
		done <- err
	}()
	<-archive.waiting
	if err := syscall.Kill(r.shutIn(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "killed") {
		t.Errorf("%v, want UNAVAILABLE, killed", err)
	}
	r.nothing()
	s, _, err := r.workers.Unpack(t.Context(), r.layers, plain(archiveOf(t, 1)))
	if err != nil {
		t.Fatal(err)
	}
	s.Discard()
	r.nothing()
}

const role = "BERTH_WORKER_TEST_ROLE"

// TestF01UnpackOrphan: no process that unpacks outlives imaged.
func TestF01UnpackOrphan(t *testing.T) {
	if dir := os.Getenv(role); dir != "" {
		r := newRigAt(t, dir)
		archive := newStalled(archiveOf(t, 1<<20, 1<<20))
		go r.workers.Unpack(t.Context(), r.layers, archive)
		<-archive.waiting
		fmt.Println("pid", r.shutIn())
		select {}
	}
	r := newRig(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), role+"="+r.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	for pid == 0 {
		var word string
		if _, err := fmt.Fscan(out, &word); err != nil {
			cmd.Wait()
			t.Fatalf("no process: %v", err)
		}
		if word == "pid" {
			fmt.Fscan(out, &pid)
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	for range 200 {
		if syscall.Kill(pid, 0) != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d goes on without imaged", pid)
	syscall.Kill(pid, syscall.SIGKILL)
}
