package apid

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/internal/daemon"
	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
)

func TestEveryMethodHasARule(t *testing.T) {
	found := map[string]bool{}
	protoregistry.GlobalFiles.RangeFilesByPackage("berth.api.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for k := range service.Methods().Len() {
				name := "/" + string(service.FullName()) + "/" + string(service.Methods().Get(k).Name())
				found[name] = true
				if table[name] == denied {
					t.Errorf("no rule for %s", name)
				}
			}
		}
		return true
	})
	if len(found) == 0 {
		t.Fatal("no descriptors")
	}
	for name := range table {
		if !found[name] {
			t.Errorf("a rule for %s, which does not exist", name)
		}
	}
}

// Whatever the table gives to apid must not end in "unknown method".
func TestOwnMethodsAreImplemented(t *testing.T) {
	w := newWorld(t)
	for method, to := range table {
		if to != self {
			continue
		}
		ctx, cancel := context.WithTimeout(testContext(t), 300*time.Millisecond)
		ss, err := w.conn.NewStream(ctx, passStream, method)
		if err == nil {
			ss.SendMsg(new(emptypb.Empty))
			ss.CloseSend()
			err = ss.RecvMsg(new(emptypb.Empty))
		}
		if errors.Is(err, fault.Unimplemented) {
			t.Errorf("%s: %v", method, err)
		}
		cancel()
	}
}

func TestForwardingKeepsBytesAndDropsMetadata(t *testing.T) {
	w := newWorld(t)
	req := &apiv1.ListRequest{All: true}
	unknown := protowire.AppendTag(nil, 1999, protowire.VarintType)
	unknown = protowire.AppendVarint(unknown, 42)
	req.ProtoReflect().SetUnknown(unknown) // from a newer client
	ctx := metadata.AppendToOutgoingContext(testContext(t), "x-secret", "1", callerKey, "uid=0,forged", daemon.RequestIDKey, "my-request")
	if _, err := w.containers().List(ctx, req); err != nil {
		t.Fatal(err)
	}
	w.execd.mu.Lock()
	defer w.execd.mu.Unlock()
	if got := w.execd.listed.ProtoReflect().GetUnknown(); string(got) != string(unknown) || !w.execd.listed.All {
		t.Errorf("request arrived as %v with unknown %x", w.execd.listed, got)
	}
	if got := w.execd.seen.Get("x-secret"); len(got) != 0 {
		t.Errorf("metadata x-secret was passed on: %v", got)
	}
	if got := w.execd.seen.Get(callerKey); len(got) != 1 || got[0] != "uid=0" {
		t.Errorf("caller = %v", got)
	}
	if got := w.execd.seen.Get(daemon.RequestIDKey); len(got) != 1 || got[0] != "my-request" {
		t.Errorf("request id = %v", got)
	}
}

func TestForwardingKeepsErrors(t *testing.T) {
	w := newWorld(t)
	_, err := w.containers().Inspect(testContext(t), &apiv1.InspectRequest{Container: "nope"})
	if !errors.Is(err, fault.NotFound) || fault.ReasonOf(err) != "CONTAINER_NOT_FOUND" || fault.MetadataOf(err)["container"] != "nope" ||
		err.Error() != "no such container: nope" {
		t.Errorf("err = %v, reason %s, metadata %v", err, fault.ReasonOf(err), fault.MetadataOf(err))
	}
}

func TestForwardingBidirectional(t *testing.T) {
	w := newWorld(t)
	stream, err := w.containers().Exec(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two"} {
		stream.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Stdin{Stdin: []byte(word)}})
		m, err := stream.Recv()
		if err != nil || string(m.GetOutput().GetData()) != strings.ToUpper(word) {
			t.Fatalf("answer to %q: %v, %v", word, m, err)
		}
	}
	stream.CloseSend()
	if m, err := stream.Recv(); err != nil || m.GetExited().GetCode() != 7 {
		t.Errorf("last message: %v, %v", m, err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("end: %v", err)
	}
}

func TestS29WhatIsNotListedIsDenied(t *testing.T) {
	w := newWorld(t)
	for _, method := range []string{
		"/berth.exec.v1.LaunchService/Remove",
		"/berth.image.v1.RootfsService/Release",
		"/berth.network.v1.EndpointService/Detach",
		"/berth.api.v1.ContainerService/Nope",
		"/berth.api.v1.ContainerService/list",
		"/x/y",
	} {
		err := w.conn.Invoke(testContext(t), method, new(emptypb.Empty), new(emptypb.Empty))
		if !errors.Is(err, fault.Unimplemented) {
			t.Errorf("%s: %v", method, err)
		}
	}
}

func TestForeignUserIsRefused(t *testing.T) {
	const env = "BERTH_APID_TEST_SOCKET"
	if path := os.Getenv(env); path != "" { // the child, as nobody
		conn, err := daemon.Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range []func() error{
			func() error {
				_, err := apiv1.NewContainerServiceClient(conn).List(testContext(t), new(apiv1.ListRequest))
				return err
			},
			func() error {
				_, err := apiv1.NewSystemServiceClient(conn).Version(testContext(t), new(apiv1.SystemServiceVersionRequest))
				return err
			},
		} {
			if err := call(); !errors.Is(err, fault.PermissionDenied) {
				t.Errorf("as nobody: %v", err)
			}
		}
		return
	}
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	w := newWorld(t)
	path := filepath.Join(w.dir, "run", daemon.ApidSocket)
	for _, c := range []string{path, w.dir, filepath.Dir(w.dir), filepath.Dir(path)} {
		os.Chmod(c, 0o777) // so that only the rule stands in the way
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(w.dir, "test")
	if err := os.WriteFile(binary, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.run=^TestForeignUserIsRefused$")
	cmd.Env = []string{env + "=" + path}
	cmd.Dir = w.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestF06AbsentBackends(t *testing.T) {
	w := newFakes(t)
	w.startApid()
	calls := map[string]func(ctx context.Context) error{
		"List": func(ctx context.Context) error {
			_, err := w.containers().List(ctx, new(apiv1.ListRequest))
			return err
		},
		"Stop": func(ctx context.Context) error {
			_, err := w.containers().Stop(ctx, &apiv1.StopRequest{Container: "a"})
			return err
		},
		"Run": func(ctx context.Context) error {
			_, err := runOnce(ctx, w, &apiv1.RunRequest_Open{Spec: &apiv1.ContainerSpec{Image: "web"}})
			return err
		},
		"Pull": func(ctx context.Context) error {
			s, err := w.images().Pull(ctx, &apiv1.ImageServicePullRequest{Reference: "web"})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
	}
	check := func(state string) {
		t.Helper()
		for name, call := range calls {
			begin := time.Now()
			err := call(testContext(t))
			if took := time.Since(begin); !errors.Is(err, fault.Unavailable) || took > 1100*time.Millisecond {
				t.Errorf("%s, %s: %v after %v", state, name, err, took)
			} else if fault.MetadataOf(err)["daemon"] == "" || fault.HintOf(err) == "" {
				t.Errorf("%s, %s: %v does not say who is away or what to do", state, name, err)
			}
		}
		begin := time.Now()
		v, err := apiv1.NewSystemServiceClient(w.conn).Version(testContext(t), new(apiv1.SystemServiceVersionRequest))
		if err != nil || len(v.Daemons) != 4 || time.Since(begin) > 1200*time.Millisecond {
			t.Errorf("%s, Version: %v, %v after %v", state, v, err, time.Since(begin))
		}
	}
	check("absent")

	w.imaged.start()
	w.netd.start()
	w.execd.start()
	begin := time.Now()
	for calls["List"](testContext(t)) != nil {
		if time.Since(begin) > 2*time.Second {
			t.Fatal("not usable 2 s after the daemons came up")
		}
		time.Sleep(5 * time.Millisecond)
	}
	w.imaged.stop()
	w.netd.stop()
	w.execd.stop()
	check("gone")

	// Dead, while whoever started them holds their sockets.
	for _, f := range []*server{&w.imaged.server, &w.netd.server, &w.execd.server} {
		os.Remove(f.path)
		l, err := net.Listen("unix", f.path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	check("held")
}

// A daemon that hangs: it accepts connections and says nothing any more.
func TestF06HangingBackend(t *testing.T) {
	w := newFakes(t)
	w.imaged.start()
	w.netd.start()
	proxy := newStallingProxy(t, filepath.Join(w.dir, "run", daemon.ExecdSocket), filepath.Join(w.dir, "run", "execd-real.sock"))
	w.execd.path = proxy.backend
	w.execd.start()
	w.startApid()
	if _, err := w.containers().List(testContext(t), new(apiv1.ListRequest)); err != nil {
		t.Fatal(err)
	}
	proxy.stall()
	begin := time.Now()
	_, err := w.containers().List(testContext(t), new(apiv1.ListRequest))
	if took := time.Since(begin); !errors.Is(err, fault.Unavailable) || took > 1100*time.Millisecond {
		t.Errorf("List: %v after %v", err, took)
	}
	begin = time.Now()
	_, err = runOnce(testContext(t), w, &apiv1.RunRequest_Open{Spec: &apiv1.ContainerSpec{Image: "web"}})
	if took := time.Since(begin); !errors.Is(err, fault.Unavailable) || took > 3*time.Second {
		t.Errorf("Run: %v after %v", err, took)
	}
}

// stallingProxy passes bytes on until told to stall.
type stallingProxy struct {
	backend string
	stalled chan struct{}
}

func newStallingProxy(t *testing.T, path, backend string) *stallingProxy {
	p := &stallingProxy{backend: backend, stalled: make(chan struct{})}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	pass := func(dst, src net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			select {
			case <-p.stalled:
				return
			default:
			}
			if n > 0 {
				dst.Write(buf[:n])
			}
			if err != nil {
				dst.Close()
				return
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("unix", backend)
			if err != nil {
				c.Close()
				continue
			}
			t.Cleanup(func() { c.Close(); b.Close() })
			go pass(b, c)
			go pass(c, b)
		}
	}()
	return p
}

func (p *stallingProxy) stall() { close(p.stalled) }

func BenchmarkForwardUnary(b *testing.B) {
	w := newWorld(b)
	client := w.containers()
	for b.Loop() {
		if _, err := client.Inspect(context.Background(), &apiv1.InspectRequest{Container: "nope"}); !errors.Is(err, fault.NotFound) {
			b.Fatal(err)
		}
	}
}
