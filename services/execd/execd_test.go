package execd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"berth/internal/config"
	"berth/internal/daemon"
	"berth/internal/fault"
	"berth/libcontainer/cgroup"
	"berth/libcontainer/clock"
	"berth/libcontainer/netns"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	imagev1 "berth/proto/berth/image/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/execd/monitor/starter"
)

// These tests drive a whole execd as a process of its own, with a real monitor,
// real cgroups below one made for the test, and busybox as root file system.

var built programs

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "SKIP: every test of execd needs root")
		return 0
	}
	dir, err := os.MkdirTemp("", "berth-execd-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	built = programs{monitor: dir + "/berth-monitor", init: dir + "/berth-init"}
	for out, pkg := range map[string]string{built.monitor: "./cmd/berth-monitor", built.init: "../../libcontainer/cmd/berth-init"} {
		build := exec.Command("go", "build", "-ldflags=-s -w", "-o", out, pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, text)
			return 1
		}
	}
	return m.Run()
}

// childEnv makes the test binary an execd in the folder that it names.
const childEnv = "BERTH_EXECD_TEST_DIR"

func child(dir string) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cfg := config.Default()
	cfg.Root, cfg.Run = dir+"/root", dir+"/run"
	cfg.Execd.CgroupParent = os.Getenv("TEST_CGROUP")
	env := &daemon.Env{
		Name: "execd", Config: cfg, StateDir: cfg.Root + "/execd", RunDir: cfg.Run + "/execd",
		Log:       hclog.New(&hclog.LoggerOptions{Name: "execd", Level: hclog.LevelFromString(os.Getenv("TEST_LOG"))}),
		Listeners: make(map[string]*net.UnixListener),
	}
	for _, d := range []string{env.StateDir, env.RunDir, cfg.Run + "/engine"} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	for name, network := range map[string]string{daemon.ExecdSocket: "unix", daemon.NetnsSocket: "unixpacket"} {
		p := filepath.Join(cfg.Run, name)
		os.Remove(p)
		l, err := net.ListenUnix(network, &net.UnixAddr{Net: network, Name: p})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		l.SetUnlinkOnClose(false)
		env.Listeners[name] = l
	}
	signals := make(chan os.Signal, 1)
	notifySignals(signals)
	go func() { <-signals; cancel() }()
	if err := armFaults(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := serve(ctx, env, programs{os.Getenv("TEST_MONITOR"), os.Getenv("TEST_INIT")}); err != nil {
		fmt.Fprintln(os.Stderr, "execd:", err)
		return 1
	}
	return 0
}

// engine is an execd under test.
type engine struct {
	tb     testing.TB
	dir    string
	cgroup string
	root   string // of containers
	cmd    *exec.Cmd
	faults string
	conn   *grpc.ClientConn
	launch execv1.LaunchServiceClient
	api    apiv1.ContainerServiceClient
}

// start gives a fresh execd; everything is gone after the test, which fails if
// something was left behind.
func start(tb testing.TB) *engine {
	tb.Helper()
	dir := tb.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755) // images are readable to everybody
	}
	e := &engine{tb: tb, dir: dir, cgroup: "berth-test-" + newID()[:8], root: busybox(tb, dir+"/image")}
	e.up()
	tb.Cleanup(e.clean)
	return e
}

func (e *engine) up() {
	e.tb.Helper()
	e.cmd = exec.Command(os.Args[0])
	level := "warn"
	if testing.Verbose() {
		level = "info"
	}
	e.cmd.Env = append(os.Environ(), childEnv+"="+e.dir, "TEST_CGROUP=/"+e.cgroup, "TEST_MONITOR="+built.monitor,
		"TEST_INIT="+built.init, "TEST_LOG="+level, "BERTH_FAULTS="+e.faults, "INVOCATION_ID=")
	e.cmd.Stdout, e.cmd.Stderr = os.Stderr, os.Stderr
	if err := e.cmd.Start(); err != nil {
		e.tb.Fatal(err)
	}
	if e.conn != nil {
		e.conn.Close()
	}
	var err error
	if e.conn, err = daemon.Dial(e.dir + "/run/" + daemon.ExecdSocket); err != nil {
		e.tb.Fatal(err)
	}
	e.launch, e.api = execv1.NewLaunchServiceClient(e.conn), apiv1.NewContainerServiceClient(e.conn)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := e.launch.ListIds(context.Background(), &execv1.ListIdsRequest{})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			e.tb.Fatalf("execd does not serve: %v", err)
		}
	}
}

// kill ends execd the hard way.
func (e *engine) kill() {
	e.cmd.Process.Kill()
	e.cmd.Wait()
}

func (e *engine) monitorPid() int {
	b, err := os.ReadFile(e.dir + "/run/execd/monitor.lock")
	if err != nil {
		e.tb.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

func (e *engine) clean() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	list, err := e.launch.ListIds(ctx, &execv1.ListIdsRequest{})
	if err != nil {
		e.tb.Errorf("list at the end: %v", err)
	}
	for _, c := range list.GetEntries() {
		if _, err := e.launch.Remove(ctx, &execv1.RemoveRequest{Container: c.Id, Force: true}); err != nil && !errors.Is(err, fault.NotFound) {
			e.tb.Errorf("remove at the end: %v", err)
		}
	}
	e.audit()
	e.conn.Close()
	e.cmd.Process.Signal(syscall.SIGTERM)
	e.cmd.Wait()
	if pid := e.monitorPid(); pid > 1 {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if l, err := cgroup.Detect(); err == nil {
		if p, err := cgroup.OpenParent(l, "/"+e.cgroup); err == nil {
			groups, _ := p.List()
			for _, name := range groups {
				if g, err := p.Open(name); err == nil {
					g.Kill()
					g.Delete()
					g.Close()
				}
			}
			if err := p.Delete(); err != nil {
				e.tb.Errorf("cgroups were left: %v", err)
			}
		}
	}
	if e.tb.Failed() {
		b, _ := os.ReadFile(e.dir + "/run/execd/monitor.log")
		e.tb.Logf("monitor.log:\n%s", b)
	}
}

// audit waits for what is cleaned up behind the replies, and fails for what is
// left then.
func (e *engine) audit() {
	e.tb.Helper()
	l, err := cgroup.Detect()
	if err != nil {
		e.tb.Fatal(err)
	}
	p, err := cgroup.OpenParent(l, "/"+e.cgroup)
	if err != nil {
		e.tb.Fatal(err)
	}
	defer p.Close()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		groups, _ := p.List()
		groups = slices.DeleteFunc(groups, func(name string) bool { return starter.PooledBy(name, e.monitorPid()) })
		run, _ := filepath.Glob(e.dir + "/run/execd/c/*")
		logs, _ := filepath.Glob(e.dir + "/root/execd/containers/*")
		if len(groups)+len(run)+len(logs) == 0 {
			return
		}
		if time.Now().After(deadline) {
			e.tb.Errorf("left behind: cgroups %v, run folders %v, log folders %v", groups, run, logs)
			return
		}
	}
}

func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// busybox makes a root file system.
func busybox(tb testing.TB, root string) string {
	tb.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		tb.Skip("SKIP: needs busybox-static")
	}
	for _, dir := range []string{"bin", "etc", "proc", "sys", "dev", "root", "home/alice"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	os.Mkdir(filepath.Join(root, "tmp"), 0o777)
	os.Chmod(filepath.Join(root, "tmp"), 0o1777)
	binary, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "bin/busybox"), binary, 0o755)
	}
	if err != nil {
		tb.Fatal(err)
	}
	for _, name := range strings.Fields("sh true false cat ls id echo sleep stat mount tty stty pwd env readlink hostname touch grep head dd kill test chmod mkdir wc tr ps yes seq printf usleep") {
		os.Symlink("busybox", filepath.Join(root, "bin", name))
	}
	os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n"), 0o644)
	os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\nalice:x:1000:\n"), 0o644)
	os.WriteFile(filepath.Join(root, "bin/data"), []byte("not a program"), 0o644)
	return root
}

// spec is a container that runs a shell script.
func script(text string) *apiv1.ContainerSpec {
	return &apiv1.ContainerSpec{Image: "busybox", Args: []string{"sh", "-c", text}}
}

func (e *engine) rootfs() *imagev1.Rootfs {
	return &imagev1.Rootfs{
		ImageId: "sha256:" + strings.Repeat("0", 64), Config: &apiv1.ImageConfig{Cmd: []string{"sh"}},
		Recipe: &imagev1.MountRecipe{Type: "bind", Source: e.root},
	}
}

func private() *networkv1.AttachResponse {
	return &networkv1.AttachResponse{Namespace: &networkv1.Namespace{Kind: networkv1.Namespace_KIND_PRIVATE}}
}

// held is a network namespace that execd holds, as netd has them made.
func (e *engine) held() *networkv1.AttachResponse {
	e.tb.Helper()
	c := netns.NewClient(e.dir+"/run/"+daemon.NetnsSocket, nil)
	defer c.Close()
	id := newID()[:16]
	n, err := c.New(context.Background(), id)
	if err != nil {
		e.tb.Fatal(err)
	}
	n.Close()
	return &networkv1.AttachResponse{Namespace: &networkv1.Namespace{Kind: networkv1.Namespace_KIND_HELD, Id: id}}
}

func (e *engine) create(spec *apiv1.ContainerSpec) string {
	e.tb.Helper()
	id := newID()
	_, err := e.launch.Create(context.Background(), &execv1.CreateRequest{Id: id, Spec: spec, Rootfs: e.rootfs(), CreatedBy: "uid=0"})
	if err != nil {
		e.tb.Fatalf("create: %v", err)
	}
	return id
}

func (e *engine) startID(id string) error { return e.startIn(private(), id) }

func (e *engine) startIn(network *networkv1.AttachResponse, id string) error {
	_, err := e.launch.Start(context.Background(), &execv1.StartRequest{Id: id, Rootfs: e.rootfs(), Network: network})
	return err
}

// up1 makes a running container.
func (e *engine) up1(spec *apiv1.ContainerSpec) string {
	e.tb.Helper()
	id := e.create(spec)
	if err := e.startID(id); err != nil {
		e.tb.Fatalf("start: %v", err)
	}
	return id
}

// result is what a client of Run, Attach or Exec gets.
type result struct {
	id, name    string
	out, errOut string
	exit        *apiv1.ExitStatus
	steps       []string // of the start
}

func (r *result) add(o *apiv1.OutputChunk) {
	if o.Stream == apiv1.OutputChunk_STREAM_STDERR {
		r.errOut += string(o.Data)
	} else {
		r.out += string(o.Data)
	}
}

var both = &apiv1.AttachOptions{Stdout: true, Stderr: true}

// run is `run` with everything attached; stdin may be nil.
func (e *engine) run(spec *apiv1.ContainerSpec, stdin []byte) (*result, error) {
	e.tb.Helper()
	return e.runIn(private(), spec, stdin)
}

func (e *engine) runIn(network *networkv1.AttachResponse, spec *apiv1.ContainerSpec, stdin []byte) (*result, error) {
	e.tb.Helper()
	return e.runMade(&execv1.CreateRequest{Id: newID(), Spec: spec, Rootfs: e.rootfs(), CreatedBy: "uid=0"}, network, stdin)
}

// runMade is runIn of a container whose id and root file system are given.
func (e *engine) runMade(create *execv1.CreateRequest, network *networkv1.AttachResponse, stdin []byte) (*result, error) {
	e.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	stream, err := e.launch.Run(ctx)
	if err != nil {
		return nil, err
	}
	id := create.Id
	options := &apiv1.AttachOptions{Stdin: stdin != nil, Stdout: true, Stderr: true}
	create.Spec.OpenStdin = stdin != nil
	open := &execv1.RunRequest_Open{
		Create: create, Network: network, Attach: options, Timeline: &execv1.Timeline{Wanted: true, Begun: clock.Now()},
	}
	if err := stream.Send(&execv1.RunRequest{Message: &execv1.RunRequest_Open_{Open: open}}); err != nil {
		return nil, err
	}
	if stdin != nil {
		go func() {
			for len(stdin) > 0 {
				n := min(len(stdin), 64<<10)
				if stream.Send(&execv1.RunRequest{Message: &execv1.RunRequest_Stdin{Stdin: stdin[:n]}}) != nil {
					return
				}
				stdin = stdin[n:]
			}
			stream.Send(&execv1.RunRequest{Message: &execv1.RunRequest_Stdin{}})
		}()
	}
	r := &result{id: id}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return r, nil
		}
		if err != nil {
			return r, err
		}
		switch m := m.Message.(type) {
		case *execv1.RunResponse_Created:
			r.name = m.Created.Name
		case *execv1.RunResponse_Started:
			for _, s := range m.Started.Trace {
				r.steps = append(r.steps, s.Name)
			}
		case *execv1.RunResponse_Output:
			r.add(m.Output)
		case *execv1.RunResponse_Exited:
			r.exit = m.Exited
		}
	}
}

func (e *engine) exec(id string, open *apiv1.ExecRequest_Open, stdin []byte) (*result, error) {
	e.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	stream, err := e.api.Exec(ctx)
	if err != nil {
		return nil, err
	}
	open.Container = id
	if !open.Detach && open.Attach == nil {
		open.Attach = &apiv1.AttachOptions{Stdin: stdin != nil, Stdout: true, Stderr: true}
	}
	if err := stream.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Open_{Open: open}}); err != nil {
		return nil, err
	}
	if stdin != nil {
		stream.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Stdin{Stdin: stdin}})
		stream.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Stdin{}})
	}
	r := &result{}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return r, nil
		}
		if err != nil {
			return r, err
		}
		switch m := m.Message.(type) {
		case *apiv1.ExecResponse_Output:
			r.add(m.Output)
		case *apiv1.ExecResponse_Exited:
			r.exit = m.Exited
		}
	}
}

func (e *engine) inspect(id string) *apiv1.Container {
	e.tb.Helper()
	r, err := e.api.Inspect(context.Background(), &apiv1.InspectRequest{Container: id})
	if err != nil {
		e.tb.Fatalf("inspect: %v", err)
	}
	return r.Container
}

func (e *engine) wait(id string) *apiv1.ExitStatus {
	e.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := e.api.Wait(ctx, &apiv1.WaitRequest{Container: id})
	if err != nil {
		e.tb.Fatalf("wait: %v", err)
	}
	return r.Exit
}

// logs reads the log as the bytes that were written.
func (e *engine) logs(req *apiv1.LogsRequest) string {
	e.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	stream, err := e.api.Logs(ctx, req)
	if err != nil {
		e.tb.Fatalf("logs: %v", err)
	}
	var b strings.Builder
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return b.String()
		}
		if err != nil {
			e.tb.Fatalf("logs: %v", err)
		}
		b.Write(m.Line)
		if !m.Partial {
			b.WriteByte('\n')
		}
	}
}

func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("not within 10 s: %s", what)
		}
	}
}
