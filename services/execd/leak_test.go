package execd

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
)

// usage is what a process holds that could leak.
type usage struct{ fds, threads, children int }

func (e *engine) usage(pid int) (u usage) {
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(b), "Threads:")
	fmt.Sscanf(rest, "%d", &u.threads)
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	u.fds, u.children = len(fds), len(strings.Fields(string(children)))
	return u
}

// S-28: clients of attach and exec that leave at any moment leave nothing
// behind in execd or the monitor.
func TestS28ClientsThatLeave(t *testing.T) {
	e := start(t)
	s := script("while :; do echo x; usleep 10000; done")
	s.OpenStdin = true
	id := e.up1(s)
	// What entering it takes is kept from the first command in it until its end.
	if _, err := e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"true"}}, nil); err != nil {
		t.Fatal(err)
	}
	var before []usage
	eventually(t, "the pool is full", func() bool {
		last := before
		before = []usage{e.usage(e.cmd.Process.Pid), e.usage(e.monitorPid())}
		time.Sleep(300 * time.Millisecond)
		return last != nil && last[1].fds == before[1].fds
	})
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for n := range 12 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+worker*n)*time.Millisecond)
				switch n % 4 {
				case 0:
					e.execUntil(ctx, id, []string{"cat"})
				case 1:
					e.execUntil(ctx, id, []string{"yes"})
				case 2:
					e.attachUntil(ctx, id)
				case 3:
					e.runUntil(ctx)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	// Sessions whose clients left go on; they are the user's to end.
	killAll := &apiv1.ExecRequest_Open{Args: []string{"sh", "-c", "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p != 1 ] && [ $p != $$ ] && kill -9 $p; done"}}
	defer func() {
		if t.Failed() {
			t.Logf("before %+v, after %+v %+v, execs %v", before, e.usage(e.cmd.Process.Pid), e.usage(e.monitorPid()), e.inspect(id).Execs)
		}
	}()
	eventually(t, "everything is given back", func() bool {
		if _, err := e.exec(id, killAll, nil); err != nil {
			t.Fatal(err)
		}
		now := []usage{e.usage(e.cmd.Process.Pid), e.usage(e.monitorPid())}
		for n := range now {
			// A few pipes and poll descriptors come and go.
			if now[n].fds > before[n].fds+3 {
				return false
			}
		}
		list, err := e.launch.ListIds(t.Context(), &execv1.ListIdsRequest{})
		return err == nil && len(list.Entries) == 1 && len(e.inspect(id).Execs) == 0
	})
	t.Logf("before %+v, after %+v %+v", before, e.usage(e.cmd.Process.Pid), e.usage(e.monitorPid()))
}

func (e *engine) execUntil(ctx context.Context, id string, args []string) {
	stream, err := e.api.Exec(ctx)
	if err != nil {
		return
	}
	stream.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Open_{Open: &apiv1.ExecRequest_Open{
		Container: id, Args: args, Attach: &apiv1.AttachOptions{Stdin: true, Stdout: true, Stderr: true}}}})
	stream.Recv()
	<-ctx.Done()
}

func (e *engine) attachUntil(ctx context.Context, id string) {
	stream, err := e.api.Attach(ctx)
	if err != nil {
		return
	}
	stream.Send(&apiv1.AttachRequest{Message: &apiv1.AttachRequest_Open_{Open: &apiv1.AttachRequest_Open{
		Container: id, Attach: &apiv1.AttachOptions{Stdin: true, Stdout: true, Stderr: true, Logs: true}}}})
	stream.Recv()
	<-ctx.Done()
}

func (e *engine) runUntil(ctx context.Context) {
	stream, err := e.launch.Run(ctx)
	if err != nil {
		return
	}
	s := script("sleep 0.2")
	s.AutoRemove = true
	stream.Send(&execv1.RunRequest{Message: &execv1.RunRequest_Open_{Open: &execv1.RunRequest_Open{
		Create: &execv1.CreateRequest{Id: newID(), Spec: s, Rootfs: e.rootfs()}, Network: private(), Attach: both}}})
	stream.Recv()
	<-ctx.Done()
}

// F-26, F-28: a container that floods its log while nobody, or a client that
// never reads, is attached: memory stays bounded and others are served.
func TestF26LogFlood(t *testing.T) {
	e := start(t)
	s := script("yes 'a line of the flood'")
	s.Log = &apiv1.LogSpec{MaxSizeBytes: 1 << 20, MaxFiles: 3}
	id := e.up1(s)
	for range 20 {
		stream, err := e.api.Attach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		stream.Send(&apiv1.AttachRequest{Message: &apiv1.AttachRequest_Open_{Open: &apiv1.AttachRequest_Open{
			Container: id, Attach: both}}})
	}
	before := rssKB(t, e.cmd.Process.Pid)
	time.Sleep(2 * time.Second)
	begin := time.Now()
	r, err := e.run(script("echo hello"), nil)
	if err != nil || r.out != "hello\n" {
		t.Fatalf("another container: %q, %v", r.out, err)
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("another container took %v", d)
	}
	if kb := rssKB(t, e.cmd.Process.Pid); kb > before+64<<10 {
		t.Errorf("execd grew from %d to %d KiB", before, kb)
	}
	if kb := rssKB(t, e.monitorPid()); kb > 48<<10 {
		t.Errorf("the monitor takes %d KiB", kb)
	}
	begin = time.Now()
	if _, err := e.launch.Remove(t.Context(), &execv1.RemoveRequest{Container: id, Force: true}); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("removal took %v", d)
	}
}

func rssKB(t *testing.T, pid int) (kb int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	fmt.Sscanf(rest, "%d", &kb)
	return kb
}
