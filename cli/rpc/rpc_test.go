package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"berth/cli/apiv1"
	"berth/cli/rpc"
	pb "berth/proto/berth/api/v1"
)

// server answers as grpc-go does. What a call does is told by its request.
type server struct {
	pb.UnimplementedContainerServiceServer
	cancelled chan struct{} // a call's context ended
}

// List answers with as many containers as the filter's length and as many bytes as Last says.
func (s *server) List(ctx context.Context, r *pb.ListRequest) (*pb.ListResponse, error) {
	if d, ok := ctx.Deadline(); ok && r.GetPageToken() == "deadline" {
		return &pb.ListResponse{NextPageToken: time.Until(d).String()}, nil
	}
	if r.GetPageToken() == "wait" {
		<-ctx.Done()
		s.cancelled <- struct{}{}
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if r.GetPageToken() == "brief" {
		time.Sleep(50 * time.Millisecond)
	}
	out := &pb.ListResponse{NextPageToken: strings.Repeat("x", int(r.GetLast()))}
	for _, f := range r.GetFilters() {
		out.Containers = append(out.Containers, &pb.ContainerSummary{Name: f})
	}
	return out, nil
}

// Inspect fails with a detailed error whose hint has as many bytes as the container's name says.
func (s *server) Inspect(_ context.Context, r *pb.InspectRequest) (*pb.InspectResponse, error) {
	var n int
	_, _ = fmt.Sscan(r.GetContainer(), &n)
	st, err := status.New(codes.NotFound, "no such container: 100% naïve\nreally").WithDetails(
		&errdetails.Help{Links: []*errdetails.Help_Link{{Description: "x", Url: "y"}}},
		&errdetails.ErrorInfo{Reason: "CONTAINER_NOT_FOUND", Domain: "berth", Metadata: map[string]string{"hint": strings.Repeat("h", n), "container": "c"}})
	if err != nil {
		return nil, err
	}
	return nil, st.Err()
}

// Logs sends as many lines as Tail says, of 100 000 bytes each.
func (s *server) Logs(r *pb.LogsRequest, stream grpc.ServerStreamingServer[pb.LogsResponse]) error {
	_ = stream.SetHeader(metadata.Pairs("berth-job-id", "abc"))
	for i := range r.GetTail() {
		if err := stream.Send(&pb.LogsResponse{Line: bytes.Repeat([]byte{byte(i)}, 100_000)}); err != nil {
			return err
		}
	}
	if r.GetFollow() {
		_ = stream.SendHeader(nil)
		<-stream.Context().Done()
		s.cancelled <- struct{}{}
		return stream.Context().Err()
	}
	return nil
}

// Exec sends back what it gets, until the client has sent its last message or asks for signal KILL.
func (s *server) Exec(stream grpc.BidiStreamingServer[pb.ExecRequest, pb.ExecResponse]) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.Send(&pb.ExecResponse{Message: &pb.ExecResponse_Exited{Exited: &pb.ExitStatus{Code: 7}}})
		}
		if err != nil {
			return err
		}
		if m.GetSignal() == "KILL" {
			return nil
		}
		if err := stream.Send(&pb.ExecResponse{Message: &pb.ExecResponse_Output{Output: &pb.OutputChunk{Data: m.GetStdin()}}}); err != nil {
			return err
		}
	}
}

type world struct {
	path   string
	server *grpc.Server
	impl   *server
	conn   *rpc.Conn
	client apiv1.ContainerServiceClient
}

func start(t testing.TB, o ...grpc.ServerOption) *world {
	t.Helper()
	w := &world{path: filepath.Join(t.TempDir(), "s")}
	w.serve(t, o...)
	w.conn = rpc.NewConn(w.path)
	t.Cleanup(w.conn.Close)
	w.client = apiv1.NewContainerServiceClient(w.conn)
	return w
}

func (w *world) serve(t testing.TB, o ...grpc.ServerOption) {
	t.Helper()
	l, err := net.Listen("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	w.impl = &server{cancelled: make(chan struct{}, 16)}
	w.server = grpc.NewServer(o...)
	pb.RegisterContainerServiceServer(w.server, w.impl)
	s := w.server
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (w *world) sawCancel(t *testing.T) {
	t.Helper()
	select {
	case <-w.impl.cancelled:
	case <-time.After(10 * time.Second):
		t.Error("the server did not learn that the call was cancelled")
	}
}

func TestUnary(t *testing.T) {
	w := start(t)
	for _, n := range []int{0, 1, 3} {
		r, err := w.client.List(t.Context(), &apiv1.ListRequest{Filters: []string{"a", "bc", "d"}[:n]})
		if err != nil || len(r.GetContainers()) != n || n == 3 && r.Containers[1].Name != "bc" {
			t.Errorf("%d containers: %v %v", n, r, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	r, err := w.client.List(ctx, &apiv1.ListRequest{PageToken: "deadline"})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := time.ParseDuration(r.GetNextPageToken()); err != nil || d < 59*time.Minute || d > time.Hour+time.Second {
		t.Errorf("the server was given %s to answer within an hour", r.GetNextPageToken())
	}
	if _, err := w.client.Rename(t.Context(), &apiv1.RenameRequest{}); rpc.CodeOf(err) != rpc.Unimplemented {
		t.Errorf("a method the server does not have: %v", err)
	}
}

// TestLarge: messages much larger than a frame and than the windows, both ways; and one too large.
func TestLarge(t *testing.T) {
	w := start(t, grpc.MaxRecvMsgSize(32<<20))
	filter := strings.Repeat("f", 12<<20) // the server's window begins with 64 KiB
	r, err := w.client.List(timeout(t), &apiv1.ListRequest{Filters: []string{filter}})
	if err != nil || r.GetContainers()[0].GetName() != filter {
		t.Fatalf("12 MiB there and back: %d containers, %v", len(r.GetContainers()), err)
	}
	if _, err := w.client.List(timeout(t), &apiv1.ListRequest{Last: 16<<20 + 1}); rpc.CodeOf(err) != rpc.ResourceExhausted {
		t.Errorf("an answer above 16 MiB: %v", err)
	}
	if _, err := w.client.List(timeout(t), &apiv1.ListRequest{}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestServerRefusesLarge(t *testing.T) {
	w := start(t)
	_, err := w.client.List(timeout(t), &apiv1.ListRequest{Filters: []string{strings.Repeat("f", 5<<20)}})
	if rpc.CodeOf(err) != rpc.ResourceExhausted {
		t.Errorf("a request above the server's 4 MiB: %v", err)
	}
}

func TestErrorDetails(t *testing.T) {
	w := start(t)
	// 20 000 and 100 000 bytes need CONTINUATION frames.
	for _, n := range []int{0, 1, 20_000, 100_000} {
		_, err := w.client.Inspect(timeout(t), &apiv1.InspectRequest{Container: fmt.Sprint(n)})
		var s *rpc.Status
		if !errors.As(err, &s) {
			t.Fatal(err)
		}
		if s.Code != rpc.NotFound || s.Message != "no such container: 100% naïve\nreally" || s.Reason != "CONTAINER_NOT_FOUND" || s.Domain != "berth" ||
			s.Metadata["container"] != "c" || s.Metadata["hint"] != strings.Repeat("h", n) {
			t.Errorf("hint of %d bytes: %.200v", n, s)
		}
	}
	if _, err := w.client.Inspect(timeout(t), &apiv1.InspectRequest{Container: "300000"}); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a trailer above the limit: %v", err)
	}
	if _, err := w.client.List(timeout(t), &apiv1.ListRequest{}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestServerStream(t *testing.T) {
	w := start(t)
	n := int64(300) // 30 MB: the windows close and open many times
	stream, err := w.client.Logs(timeout(t), &apiv1.LogsRequest{Tail: &n})
	if err != nil {
		t.Fatal(err)
	}
	if md, err := stream.Header(); err != nil || md.Get("berth-job-id") != "abc" {
		t.Errorf("header %v, %v", md, err)
	}
	for i := range n {
		m, err := stream.Recv()
		if err != nil || len(m.GetLine()) != 100_000 || m.Line[0] != byte(i) || m.Line[99_999] != byte(i) {
			t.Fatalf("message %d: %d bytes, %v", i, len(m.GetLine()), err)
		}
	}
	for range 2 {
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("after the last message: %v", err)
		}
	}
}

// TestUnreadStream: a stream that nobody reads holds up neither other calls nor the connection.
func TestUnreadStream(t *testing.T) {
	w := start(t)
	n := int64(300)
	slow, err := w.client.Logs(timeout(t), &apiv1.LogsRequest{Tail: &n})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Recv(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := w.client.List(timeout(t), &apiv1.ListRequest{Last: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n - 1 {
		if _, err := slow.Recv(); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
}

func TestBidi(t *testing.T) {
	w := start(t)
	stream, err := w.client.Exec(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	const n = 2000
	chunk := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, i*7919%70_000) }
	sent := make(chan error, 1)
	go func() {
		for i := range n {
			if err := stream.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Stdin{Stdin: chunk(i)}}); err != nil {
				sent <- err
				return
			}
		}
		stream.CloseSend()
		sent <- nil
	}()
	for i := range n {
		m, err := stream.Recv()
		if err != nil || !bytes.Equal(m.GetOutput().GetData(), chunk(i)) {
			t.Fatalf("message %d: %d bytes, %v", i, len(m.GetOutput().GetData()), err)
		}
	}
	m, err := stream.Recv()
	if err != nil || m.GetExited().GetCode() != 7 {
		t.Errorf("last message: %v %v", m, err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last message: %v", err)
	}
	if err := <-sent; err != nil {
		t.Errorf("send: %v", err)
	}
	if err := stream.Send(&apiv1.ExecRequest{}); err == nil {
		t.Error("a message after CloseSend was sent")
	}
}

// TestServerEndsFirst: the call ends while the client has more to send.
func TestServerEndsFirst(t *testing.T) {
	w := start(t)
	stream, err := w.client.Exec(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Signal{Signal: "KILL"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("Recv: %v", err)
	}
	if err := stream.Send(&apiv1.ExecRequest{}); !errors.Is(err, io.EOF) {
		t.Errorf("Send after the end: %v", err)
	}
	stream.CloseSend()
	if _, err := w.client.List(timeout(t), &apiv1.ListRequest{}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestCancel(t *testing.T) {
	w := start(t)
	ctx, cancel := context.WithCancel(timeout(t))
	stream, err := w.client.Logs(ctx, &apiv1.LogsRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := stream.Recv(); rpc.CodeOf(err) != rpc.Canceled {
		t.Errorf("Recv of a cancelled call: %v", err)
	}
	w.sawCancel(t)
	if md, err := stream.Header(); err != nil || md.Get("berth-job-id") != "abc" {
		t.Errorf("the header of a cancelled call: %v, %v", md, err)
	}
	if _, err := w.client.List(ctx, &apiv1.ListRequest{}); rpc.CodeOf(err) != rpc.Canceled {
		t.Errorf("a call with a context that has ended: %v", err)
	}
}

// TestCancelSender: a sender that waits for the server's window is let go.
func TestCancelSender(t *testing.T) {
	w := start(t)
	ctx, cancel := context.WithCancel(timeout(t))
	defer cancel()
	stream, err := w.client.Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, cancel)
	for err == nil { // nobody receives, so at some point the server does not either
		err = stream.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Stdin{Stdin: make([]byte, 64<<10)}})
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("Send: %v", err)
	}
	if _, err := stream.Recv(); rpc.CodeOf(err) != rpc.Canceled {
		t.Errorf("Recv: %v", err)
	}
}

func TestDeadline(t *testing.T) {
	w := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := w.client.List(ctx, &apiv1.ListRequest{PageToken: "wait"}); rpc.CodeOf(err) != rpc.DeadlineExceeded {
		t.Errorf("List: %v", err)
	}
	w.sawCancel(t)
}

func TestServerDies(t *testing.T) {
	w := start(t)
	stream, err := w.client.Logs(timeout(t), &apiv1.LogsRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	w.server.Stop()
	_, err = stream.Recv()
	var lost *rpc.LostError
	if rpc.CodeOf(err) != rpc.Unavailable || !errors.As(err, &lost) || errors.Is(err, io.EOF) {
		t.Errorf("Recv when the server has gone: %v", err)
	}
	_, err = w.client.List(timeout(t), &apiv1.ListRequest{})
	var dial *rpc.DialError
	if rpc.CodeOf(err) != rpc.Unavailable || !errors.As(err, &dial) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a call when the server has gone: %v", err)
	}
	w.serve(t)
	if _, err := w.client.List(timeout(t), &apiv1.ListRequest{}); err != nil {
		t.Errorf("a call when the server is back: %v", err)
	}
}

// TestGoAway: a server that drains lets calls end; new ones go to its successor.
func TestGoAway(t *testing.T) {
	w := start(t)
	result := make(chan error, 1)
	go func() {
		_, err := w.client.List(timeout(t), &apiv1.ListRequest{PageToken: "brief"})
		result <- err
	}()
	stream, err := w.client.Exec(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	echo := func() error {
		if err := stream.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Stdin{Stdin: []byte("x")}}); err != nil {
			return err
		}
		_, err := stream.Recv()
		return err
	}
	if err := echo(); err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	old := w.server
	go func() { old.GracefulStop(); close(drained) }()
	for range 100 { // until the listener has gone
		if c, err := net.Dial("unix", w.path); err != nil {
			break
		} else {
			c.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.serve(t)
	if err := echo(); err != nil {
		t.Errorf("a stream while its server drains: %v", err)
	}
	if err := <-result; err != nil {
		t.Errorf("a call while its server drains: %v", err)
	}
	if _, err := w.client.List(timeout(t), &apiv1.ListRequest{}); err != nil {
		t.Errorf("a new call: %v", err)
	}
	stream.CloseSend()
	if m, err := stream.Recv(); err != nil || m.GetExited().GetCode() != 7 {
		t.Errorf("the end of the old stream: %v, %v", m, err)
	}
	select {
	case <-drained:
	case <-time.After(10 * time.Second):
		t.Error("the old server is still not drained")
	}
}

func TestMany(t *testing.T) {
	for _, limit := range []uint32{0, 2} {
		var o []grpc.ServerOption
		if limit > 0 {
			o = append(o, grpc.MaxConcurrentStreams(limit))
		}
		w := start(t, o...)
		if _, err := w.client.List(timeout(t), &apiv1.ListRequest{}); err != nil { // the limit is known after this
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i := range 50 {
			all.Go(func() {
				name := fmt.Sprint(i)
				r, err := w.client.List(timeout(t), &apiv1.ListRequest{Filters: []string{name}, Last: int32(i * 1000)})
				if err != nil || r.GetContainers()[0].GetName() != name || len(r.GetNextPageToken()) != i*1000 {
					t.Errorf("call %d of 50, %d at once: %v", i, limit, err)
				}
			})
		}
		all.Wait()
	}
}

func TestDial(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for path, want := range map[string]error{dir + "/none": syscall.ENOENT, dir + "/s": syscall.ECONNREFUSED, dir + "/" + strings.Repeat("x", 200): syscall.EINVAL} {
		_, err := apiv1.NewContainerServiceClient(rpc.NewConn(path)).List(t.Context(), &apiv1.ListRequest{})
		var dial *rpc.DialError
		if !errors.As(err, &dial) || !errors.Is(err, want) || dial.Path != path {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

// TestFullQueue: connecting waits for a server that is slow to accept, as long as the caller does.
func TestFullQueue(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	path := filepath.Join(t.TempDir(), "s")
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	first, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = apiv1.NewContainerServiceClient(rpc.NewConn(path)).List(ctx, &apiv1.ListRequest{})
	if rpc.CodeOf(err) != rpc.DeadlineExceeded {
		t.Errorf("a full queue: %v", err)
	}
}

func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	w := start(t)
	stream, err := w.client.Logs(timeout(t), &apiv1.LogsRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, w.conn.Close)
	if _, err := stream.Recv(); rpc.CodeOf(err) != rpc.Canceled {
		t.Errorf("Recv on a closed connection: %v", err)
	}
	w.sawCancel(t)
	w.server.Stop()
	for range 200 {
		if runtime.NumGoroutine() <= before+1 { // the timer of the context
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines before, %d after", before, runtime.NumGoroutine())
}
