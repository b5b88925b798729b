package backend

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"berth/internal/daemon"
	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
)

// The test binary is a daemon of its own when this names a socket, so that it can be stopped and starved as a process,
// and a hog of one processor when it says "hog".
const childEnv = "BERTH_BACKEND_TEST_CHILD"

func TestMain(m *testing.M) {
	switch child := os.Getenv(childEnv); child {
	case "":
		os.Exit(m.Run())
	case "hog":
		for {
		}
	default:
		serve(child)
	}
}

func serve(path string) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s := daemon.NewServer(daemon.ServerOptions{Log: hclog.NewNullLogger(), Rule: func(daemon.Peer) error { return nil }})
	daemon.RegisterInfo(s.GRPC, "fake", func(*apiv1.DaemonInfo) { burn(5 * time.Millisecond) })
	apiv1.RegisterEventServiceServer(s.GRPC, quiet{})
	fmt.Println("serving")
	s.Serve(context.Background(), l)
}

// burn uses processor time: a call that needs hardly any is served soon after a sleep even on a full machine.
func burn(d time.Duration) {
	used := func() time.Duration {
		var now unix.Timespec
		unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &now)
		return time.Duration(now.Nano())
	}
	for until := used() + d; used() < until; {
	}
}

// quiet has no events.
type quiet struct {
	apiv1.UnimplementedEventServiceServer
}

func (quiet) Watch(_ *apiv1.EventServiceWatchRequest, s grpc.ServerStreamingServer[apiv1.EventServiceWatchResponse]) error {
	<-s.Context().Done()
	return s.Context().Err()
}

func child(t *testing.T, mode string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+mode, "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func end(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
}

// start runs a daemon in a process of its own and connects to it.
func start(t *testing.T) (*Backend, *exec.Cmd) {
	t.Helper()
	runtime.LockOSThread() // Pdeathsig means the thread
	path := filepath.Join(t.TempDir(), "s")
	cmd := child(t, path)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(cmd) })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the daemon said %q: %v", line, err)
	}
	b, err := dial("fake", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Conn.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go b.watch(ctx, func(*Backend) {})
	for deadline := time.Now().Add(10 * time.Second); b.pid() != cmd.Process.Pid; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("its process is taken to be %d, is %d", b.pid(), cmd.Process.Pid)
		}
	}
	return b, cmd
}

// stop returns when the signal has arrived.
func stop(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Process.Signal(syscall.SIGSTOP)
	for deadline := time.Now().Add(5 * time.Second); !look(cmd.Process.Pid).stopped; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the daemon does not stop")
		}
	}
}

func info(ctx context.Context, b *Backend) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	began := time.Now()
	_, err := apiv1.NewSystemServiceClient(b.Conn).GetDaemonInfo(ctx, new(apiv1.SystemServiceGetDaemonInfoRequest))
	return time.Since(began), err
}

// TestF06StoppedBackend: a process that is stopped is given up within a second, however busy the machine is.
func TestF06StoppedBackend(t *testing.T) {
	b, cmd := start(t)
	for range 3 {
		if _, err := info(t.Context(), b); err != nil {
			t.Fatalf("while it runs: %v", err)
		}
		if said := b.Said(); said.GetName() != "fake" || said.GetStartedAt() == nil {
			t.Fatalf("while it runs it is taken to have said %v", said)
		}
		stop(t, cmd)
		before := look(0)
		took, err := info(t.Context(), b)
		// Our own timers may be late; that is not the guard's doing.
		limit := time.Second + look(0).waited - before.waited
		if !errors.Is(err, fault.Unavailable) || fault.MetadataOf(err)["daemon"] != "fake" || took > limit {
			t.Errorf("while it is stopped: %v after %s, limit %s", err, took, limit)
		}
		if said := b.Said(); said != nil {
			t.Errorf("found to hang, and still taken to serve: %v", said)
		}
		cmd.Process.Signal(syscall.SIGCONT)
	}
}

// TestF06StarvedBackend: a process that gets hardly any processor time is not taken for one that hangs. It shares a
// processor with hogs, at a priority at which it runs for a moment every few seconds.
func TestF06StarvedBackend(t *testing.T) {
	b, cmd := start(t)
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !allowed.IsSet(cpu) {
		cpu++
	}
	var one unix.CPUSet
	one.Set(cpu)
	for _, task := range threads(fmt.Sprint(cmd.Process.Pid)) {
		var tid int
		fmt.Sscan(filepath.Base(task), &tid)
		if err := unix.SchedSetaffinity(tid, &one); err != nil {
			t.Fatal(err)
		}
		if err := unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0); err != nil {
			t.Fatal(err)
		}
	}
	// How many it takes depends on the scheduler: there is another every second.
	addHog := func() {
		hog := child(t, "hog")
		if err := hog.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { end(hog) })
		if err := unix.SchedSetaffinity(hog.Process.Pid, &one); err != nil {
			t.Fatal(err)
		}
	}
	slowest, began, hogs := time.Duration(0), time.Now(), 0
	for slowest < time.Second {
		if age := time.Since(began); age > 30*time.Second {
			t.Skipf("SKIP: the slowest answer took %s: the daemon was not starved", slowest)
		} else if hogs == 0 || age > time.Duration(hogs)*time.Second {
			addHog()
			hogs++
		}
		took, err := info(t.Context(), b)
		if err != nil {
			t.Fatalf("given up after %s: %v", took, err)
		}
		slowest = max(slowest, took)
	}
	t.Logf("%d hogs: the slowest answer took %s", hogs, slowest)
}

// TestVerdicts: what is seen of a silent daemon decides.
func TestVerdicts(t *testing.T) {
	began := time.Now()
	at := func(p pulse) pulse { p.at = began.Add(window); return p }
	for _, c := range []struct {
		what          string
		before, after pulse
		want          bool
	}{
		{"nothing happened", pulse{seen: true}, pulse{seen: true}, false},
		{"it ran a little", pulse{seen: true, used: time.Second}, pulse{seen: true, used: time.Second + 5*time.Millisecond}, false},
		{"it worked, or waited", pulse{seen: true, used: time.Second}, pulse{seen: true, used: time.Second + busy}, true},
		{"it could run", pulse{seen: true}, pulse{seen: true, runnable: true}, true},
		{"it is stopped, the machine full", pulse{seen: true}, pulse{seen: true, stopped: true, runnable: true, waited: time.Second}, false},
		{"seen idle on a full machine", pulse{seen: true}, pulse{seen: true, waited: time.Second}, false},
		{"hidden on a full machine", pulse{}, pulse{waited: crowd}, true},
		{"hidden on an idle machine", pulse{}, pulse{waited: crowd / 2}, false},
	} {
		c.before.at = began
		if got := starved(c.before, at(c.after)); got != c.want {
			t.Errorf("%s: starved %v, want %v", c.what, got, c.want)
		}
	}
	late := pulse{at: began.Add(window + 2*lateness), seen: true}
	if !starved(pulse{at: began, seen: true}, late) {
		t.Error("our own timer came late: not starved")
	}
}

// TestStreamsThatSayNothing: streams without news stay, and end when the daemon hangs.
func TestStreamsThatSayNothing(t *testing.T) {
	b, cmd := start(t)
	ended := make(chan error)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const streams = 10
	for range streams {
		s, err := apiv1.NewEventServiceClient(b.Conn).Watch(ctx, new(apiv1.EventServiceWatchRequest))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := s.Recv()
			ended <- err
		}()
	}
	select {
	case err := <-ended:
		t.Fatalf("a stream ended: %v", err)
	case <-time.After(2 * (patience + window)):
	}
	if _, err := info(t.Context(), b); err != nil {
		t.Errorf("a call beside them: %v", err)
	}
	stop(t, cmd)
	for range streams {
		select {
		case err := <-ended:
			if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "fake does not answer") {
				t.Fatalf("a stream of a stopped daemon ended with: %v", err)
			}
		case <-time.After(2 * again):
			t.Fatal("a stream of a stopped daemon stays")
		}
	}
}
