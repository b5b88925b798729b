package libcontainer

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/cgroup"
)

// BenchmarkStart runs `true` in the usual container, from Start to reaped.
func BenchmarkStart(b *testing.B) {
	l := newLauncher(b)
	c := config(busybox(b), "")
	c.Command.Args = []string{"true"}
	benchmark(b, func() (*Process, error) { return l.Start(context.Background(), c, IO{}) })
}

// BenchmarkStartCgroup is BenchmarkStart inside a control group.
func BenchmarkStartCgroup(b *testing.B) {
	l := newLauncher(b)
	c := config(busybox(b), "")
	c.Command.Args = []string{"true"}
	group := testGroup(b, cgroup.Resources{})
	c.Mounts = DefaultMounts(DefaultShm)
	benchmark(b, func() (*Process, error) { return l.Start(context.Background(), c, IO{Cgroup: group}) })
}

// BenchmarkStartWaiting is BenchmarkStartCgroup in an init that waits; making
// that is not counted.
func BenchmarkStartWaiting(b *testing.B) {
	l := newLauncher(b)
	c := config(busybox(b), "")
	c.Command.Args = []string{"true"}
	c.Mounts = DefaultMounts(DefaultShm)
	group := testGroup(b, cgroup.Resources{})
	benchmark(b, func() (*Process, error) {
		b.StopTimer()
		w, err := l.Prepare(c, group)
		must(b, err)
		time.Sleep(5 * time.Millisecond) // until it has got to where it waits
		b.StartTimer()
		return w.Start(context.Background(), c, IO{Cgroup: group})
	})
}

// BenchmarkExec runs `true` in a container that runs already.
func BenchmarkExec(b *testing.B) {
	b.Run("inside", func(b *testing.B) { benchmarkExec(b, newLauncher(b)) })
	b.Run("init", func(b *testing.B) {
		l := newLauncher(b)
		l.initOnly = true
		benchmarkExec(b, l)
	})
}

func benchmarkExec(b *testing.B, l *Launcher) {
	first := startSleeper(b, l, config(busybox(b), ""), IO{})
	c := &Command{Args: []string{"true"}, Env: []string{"PATH=/bin"}}
	benchmark(b, func() (*Process, error) {
		return l.Exec(context.Background(), Target{Pid: first.Pid, PidFD: first.PidFD}, c, IO{})
	})
}

// BenchmarkPeerCrun is what to compare with: crun runs a bundle with the same
// command, and the mounts and namespaces of `crun spec`. It is a process each
// time; that is how it is used.
func BenchmarkPeerCrun(b *testing.B) {
	crun, err := exec.LookPath("crun")
	if err != nil {
		b.Skip("SKIP: needs crun")
	}
	bundle := filepath.Dir(busybox(b))
	must(b, os.Rename(filepath.Join(bundle, "root"), filepath.Join(bundle, "rootfs")))
	spec := exec.Command(crun, "spec")
	spec.Dir = bundle
	must(b, spec.Run())
	file := filepath.Join(bundle, "config.json")
	text, err := os.ReadFile(file)
	must(b, err)
	var config map[string]any
	must(b, json.Unmarshal(text, &config))
	process := config["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"true"}
	delete(process, "rlimits") // cannot be raised everywhere
	text, err = json.Marshal(config)
	must(b, err)
	must(b, os.WriteFile(file, text, 0o644))
	must(b, ownHugetlb(b))
	n := 0
	b.ResetTimer()
	cpu := cpuTime()
	for b.Loop() {
		n++
		cmd := exec.Command(crun, "--cgroup-manager", "cgroupfs", "--root", filepath.Join(bundle, "run"), "run", fmt.Sprintf("berth-bench-%d-%d", os.Getpid(), n))
		cmd.Dir = bundle
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
	b.ReportMetric(float64(cpuTime()-cpu)/1e6/float64(b.N), "cpu-ms/op")
}

// ownHugetlb gives this thread, which never comes back, a mount namespace in which
// a v1 hierarchy has the hugetlb controller: crun refuses to run where v2 has the
// last controller and v1 the others.
func ownHugetlb(b *testing.B) error {
	text, err := os.ReadFile("/sys/fs/cgroup/unified/cgroup.controllers")
	if err != nil || !strings.Contains(string(text), "hugetlb") {
		return nil
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	// Under its own name, where crun finds it again to delete its groups; a group
	// that is left keeps the hierarchy and v2 without the controller.
	const dir = "/sys/fs/cgroup/hugetlb"
	if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	b.Cleanup(func() {
		// Groups just deleted still hold the hierarchy for a moment, and an
		// unmount then leaves it.
		for range 50 {
			unix.Unmount(dir, unix.MNT_DETACH)
			if text, _ := os.ReadFile("/sys/fs/cgroup/unified/cgroup.controllers"); strings.Contains(string(text), "hugetlb") {
				break
			}
			time.Sleep(20 * time.Millisecond)
			unix.Mount("hugetlb", dir, "cgroup", 0, "hugetlb")
		}
		os.Remove(dir)
	})
	return unix.Mount("hugetlb", dir, "cgroup", 0, "hugetlb")
}

// cpuTime is what this process and its children have used, in nanoseconds.
func cpuTime() int64 {
	var total int64
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			total += u.Utime.Nano() + u.Stime.Nano()
		}
	}
	return total
}

// benchmark waits for each process it starts. With BERTH_TRACE in the environment
// it prints the median of every step.
func benchmark(b *testing.B, start func() (*Process, error)) {
	var traces [][]Step
	cpu := cpuTime()
	defer func() { b.ReportMetric(float64(cpuTime()-cpu)/1e6/float64(b.N), "cpu-ms/op") }()
	for b.Loop() {
		p, err := start()
		if err != nil {
			b.Fatal(err)
		}
		if status, err := p.Wait(); err != nil || status.Code != 0 {
			b.Fatal(status.Code, err)
		}
		p.Close()
		traces = append(traces, p.Trace)
	}
	if os.Getenv("BERTH_TRACE") != "" {
		names, times := []string{}, map[string][]time.Duration{}
		for _, trace := range traces {
			for _, s := range trace {
				if times[s.Name] == nil {
					names = append(names, s.Name)
				}
				times[s.Name] = append(times[s.Name], s.Duration)
			}
		}
		for _, name := range names {
			slices.Sort(times[name])
			fmt.Fprintf(os.Stderr, "%8.1f µs  %s\n", float64(times[name][len(times[name])/2])/1e3, name)
		}
	}
}
