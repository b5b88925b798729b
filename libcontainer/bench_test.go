package libcontainer

import (
	"context"
	"os"
	"testing"
	"time"

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

// BenchmarkExec runs `true` in a container that runs already.
func BenchmarkExec(b *testing.B) {
	l := newLauncher(b)
	first := startSleeper(b, l, config(busybox(b), ""), IO{})
	c := &Command{Args: []string{"true"}, Env: []string{"PATH=/bin"}}
	benchmark(b, func() (*Process, error) {
		return l.Exec(context.Background(), Target{Pid: first.Pid, PidFD: first.PidFD}, c, IO{})
	})
}

func benchmark(b *testing.B, start func() (*Process, error)) {
	var last *Process
	for b.Loop() {
		p, err := start()
		if err != nil {
			b.Fatal(err)
		}
		if status, err := p.Wait(); err != nil || status.Code != 0 {
			b.Fatal(status.Code, err)
		}
		p.Close()
		last = p
	}
	if os.Getenv("BERTH_TRACE") != "" {
		for _, s := range last.Trace {
			b.Logf("%8d µs  +%7.1f µs  %s", s.Start/time.Microsecond, float64(s.Duration)/1e3, s.Name)
		}
	}
}
