package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/internal/fault"
)

// echo is a service with one unary and one streaming method, made of functions.
type echo struct {
	unary  func(ctx context.Context) error
	stream func(ss grpc.ServerStream) error
}

func (e *echo) register(s *grpc.Server) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, dec func(any) error, icpt grpc.UnaryServerInterceptor) (any, error) {
			in := new(emptypb.Empty)
			if err := dec(in); err != nil {
				return nil, err
			}
			return icpt(ctx, in, &grpc.UnaryServerInfo{FullMethod: "/test.Echo/Unary"}, func(ctx context.Context, _ any) (any, error) {
				return in, e.unary(ctx)
			})
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
			return e.stream(ss)
		}}},
	}, nil)
}

func allowAll(Peer) error { return nil }

// serve runs e on a socket until the test ends or stop is called.
func serve(t *testing.T, path string, e *echo, o ServerOptions) (stop func()) {
	t.Helper()
	os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Rule == nil {
		o.Rule = allowAll
	}
	s := NewServer(o)
	e.register(s.GRPC)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	return stop
}

func dial(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func call(ctx context.Context, c *grpc.ClientConn) error {
	return c.Invoke(ctx, "/test.Echo/Unary", new(emptypb.Empty), new(emptypb.Empty))
}

// heldLog takes no line before it is let go.
type heldLog struct {
	free  chan struct{}
	lines chan string
}

func (l heldLog) Write(b []byte) (int, error) {
	<-l.free
	l.lines <- string(b)
	return len(b), nil
}

// TestReplyDoesNotWaitForLog: nor does the daemon end without having written the lines.
func TestReplyDoesNotWaitForLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	held := heldLog{make(chan struct{}), make(chan string, 2)}
	stop := serve(t, path, &echo{
		unary:  func(context.Context) error { return nil },
		stream: func(grpc.ServerStream) error { return nil },
	}, ServerOptions{Log: hclog.New(&hclog.LoggerOptions{Output: held})})
	c := dial(t, path)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := call(ctx, c); err != nil {
		t.Errorf("unary call, while nothing can be logged: %v", err)
	}
	stream, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/test.Echo/Stream")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(new(emptypb.Empty)); err != io.EOF {
		t.Errorf("stream, while nothing can be logged: %v, want EOF", err)
	}
	close(held.free)
	stop()
	if n := len(held.lines); n != 2 {
		t.Fatalf("%d lines after the end, want 2", n)
	}
	for range 2 {
		if line := <-held.lines; !strings.Contains(line, "code=OK") || !strings.Contains(line, "method=/test.Echo/") {
			t.Errorf("line %q", line)
		}
	}
}

func TestCallerAndRequestIDReachTheHandler(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	var got Peer
	var id string
	serve(t, path, &echo{unary: func(ctx context.Context) error {
		got, _ = PeerOf(ctx)
		id = RequestID(ctx)
		return nil
	}}, ServerOptions{})
	if err := call(WithRequestID(context.Background(), "abc-1"), dial(t, path)); err != nil {
		t.Fatal(err)
	}
	if got.PID != os.Getpid() || got.UID != os.Getuid() || got.GID != os.Getgid() {
		t.Errorf("peer = %+v", got)
	}
	groups, _ := os.Getgroups()
	for _, g := range groups {
		if !got.InGroup(g) {
			t.Errorf("supplementary group %d not seen in %v", g, got.Groups)
		}
	}
	if id != "abc-1" {
		t.Errorf("request id = %q", id)
	}
	if err := call(WithRequestID(context.Background(), "bad\nid"), dial(t, path)); err == nil && id == "bad\nid" {
		t.Error("an implausible request id was taken over")
	}
}

func TestUnexpectedCallerIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	reached := false
	serve(t, path, &echo{unary: func(context.Context) error { reached = true; return nil }}, ServerOptions{
		Rule: func(p Peer) error { return fault.PermissionDenied.Errorf("CALLER_NOT_ALLOWED", "not you") },
	})
	conn := dial(t, path)
	if err := call(context.Background(), conn); !errors.Is(err, fault.PermissionDenied) || err.Error() != "not you" {
		t.Errorf("err = %v", err)
	}
	// Not even health and reflection answer strangers.
	if _, err := healthv1.NewHealthClient(conn).Check(context.Background(), &healthv1.HealthCheckRequest{}); !errors.Is(err, fault.PermissionDenied) {
		t.Errorf("health: err = %v", err)
	}
	if reached {
		t.Error("the handler ran")
	}
}

func TestPeopleRule(t *testing.T) {
	rule := AllowPeople()
	if err := rule(Peer{UID: 0}); err != nil {
		t.Errorf("root: %v", err)
	}
	if err := rule(Peer{UID: 65534, GID: 65534}); !errors.Is(err, fault.PermissionDenied) || fault.HintOf(err) == "" {
		t.Errorf("nobody: %v, hint %q", err, fault.HintOf(err))
	}
}

func TestPanicFailsTheCallOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	serve(t, path, &echo{
		unary:  func(context.Context) error { panic("boom") },
		stream: func(grpc.ServerStream) error { panic("boom") },
	}, ServerOptions{})
	conn := dial(t, path)
	for range 2 {
		if err := call(context.Background(), conn); !errors.Is(err, fault.Internal) || strings.Contains(err.Error(), "boom") {
			t.Errorf("unary: %v", err)
		}
		ss, err := conn.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true}, "/test.Echo/Stream")
		if err != nil {
			t.Fatal(err)
		}
		if err := ss.RecvMsg(new(emptypb.Empty)); !errors.Is(err, fault.Internal) {
			t.Errorf("stream: %v", err)
		}
	}
}

func TestUnaryCallsGetADeadline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	var left time.Duration
	serve(t, path, &echo{unary: func(ctx context.Context) error {
		d, ok := ctx.Deadline()
		if left = time.Until(d); !ok {
			left = 0
		}
		return nil
	}}, ServerOptions{})
	if err := call(context.Background(), dial(t, path)); err != nil {
		t.Fatal(err)
	}
	if left <= DefaultTimeout-5*time.Second || left > DefaultTimeout {
		t.Errorf("deadline in %v, want about %v", left, DefaultTimeout)
	}
}

func TestF06AbsentPeerAnswersUnavailableWithinASecond(t *testing.T) {
	dir := t.TempDir()
	fails := func(name string, conn *grpc.ClientConn, within time.Duration) {
		t.Helper()
		begin := time.Now()
		err := call(context.Background(), conn)
		if took := time.Since(begin); !errors.Is(err, fault.Unavailable) || took > within {
			t.Errorf("%s: %v after %v", name, err, took)
		}
	}
	none := dial(t, filepath.Join(dir, "none"))
	for range 3 {
		fails("no socket", none, time.Second)
	}

	// The socket is held by whoever starts the daemon; the daemon is dead.
	path := filepath.Join(dir, "held")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	held := dial(t, path)
	fails("nobody accepts, first call", held, connectPatience+time.Second)
	for range 3 {
		fails("nobody accepts, later calls", held, time.Second)
	}
}

func TestF06RecoversByItself(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	conn := dial(t, path)
	var up atomic.Bool
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go WatchConn(ctx, conn, up.Store)
	if err := call(context.Background(), conn); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("before start: %v", err)
	}
	e := &echo{unary: func(context.Context) error { return nil }}
	for range 2 {
		stop := serve(t, path, e, ServerOptions{})
		begin := time.Now()
		for call(context.Background(), conn) != nil {
			if time.Since(begin) > 2*time.Second {
				t.Fatal("not usable 2 s after the server came up")
			}
			time.Sleep(5 * time.Millisecond)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("usable again after %v", took)
		}
		for deadline := time.Now().Add(time.Second); !up.Load(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("WatchConn did not notice")
			}
		}
		stop()
	}
}

func TestStopEndsStreamsAndLetsCallsFinish(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	started := make(chan bool, 2)
	stop := serve(t, path, &echo{
		unary: func(context.Context) error { started <- true; time.Sleep(200 * time.Millisecond); return nil },
		stream: func(ss grpc.ServerStream) error {
			started <- true
			<-ss.Context().Done()
			return ss.Context().Err()
		},
	}, ServerOptions{})
	conn := dial(t, path)
	ss, err := conn.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true}, "/test.Echo/Stream")
	if err != nil {
		t.Fatal(err)
	}
	ss.CloseSend()
	unary := make(chan error, 1)
	go func() { unary <- call(context.Background(), conn) }()
	<-started
	<-started
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > drainPeriod/2 {
		t.Errorf("stopping took %v", took)
	}
	if err := <-unary; err != nil {
		t.Errorf("running call: %v", err)
	}
	if err := ss.RecvMsg(new(emptypb.Empty)); !errors.Is(err, fault.Unavailable) {
		t.Errorf("stream ended with %v", err)
	}
}

func TestDropPrivileges(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	status := runChild(t, "drop")
	for _, want := range []string{
		"Uid:\t65534\t65534\t65534\t65534",
		"CapPrm:\t0000000000001400", // NET_BIND_SERVICE 10, NET_ADMIN 12
		"CapEff:\t0000000000001400",
		"CapBnd:\t0000000000001400",
		"CapInh:\t0000000000000000",
		"CapAmb:\t0000000000000000",
		"NoNewPrivs:\t1",
	} {
		if n := strings.Count(status, want); n < 2 {
			t.Errorf("%q holds for %d threads, want all\n%s", want, n, status)
		}
	}
	if strings.Count(status, "Uid:") != strings.Count(status, "Uid:\t65534\t65534\t65534\t65534") {
		t.Errorf("a thread kept its uid:\n%s", status)
	}
}

func runChild(t *testing.T, what string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("child: %v\n%s", err, out)
	}
	return string(out)
}
