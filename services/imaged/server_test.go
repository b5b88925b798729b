package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"berth/internal/config"
	"berth/internal/daemon"
	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	imagev1 "berth/proto/berth/image/v1"
	"berth/services/imaged/importer"
	"berth/services/imaged/rootfs"
	"berth/services/imaged/worker/workertest"
)

// rig is imaged over its socket.
type rig struct {
	*testing.T
	dir     string
	driver  string // of layers; empty: the best
	images  apiv1.ImageServiceClient
	volumes apiv1.VolumeServiceClient
	rootfs  imagev1.RootfsServiceClient
	store   imagev1.StoreServiceClient
	stop    func()
}

func TestMain(m *testing.M) { os.Exit(workertest.Main(m)) }

func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigOn(t, "")
}

// newRigOn is newRig with a graph driver.
func newRigOn(t *testing.T, driver string) *rig {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv(asImaged) == "" {
		t.Skip("SKIPPED: needs root, or imaged's capabilities")
	}
	r := &rig{T: t, dir: t.TempDir(), driver: driver}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *rig) start() {
	r.Helper()
	c := config.Default().Imaged
	c.Driver = cmp.Or(r.driver, c.Driver)
	s, err := open(r.dir, workertest.Workers(r).Path, c, hclog.NewNullLogger())
	if err != nil {
		r.Fatal(err)
	}
	socket := filepath.Join(r.dir, "sock")
	os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		r.Fatal(err)
	}
	g := daemon.NewServer(daemon.ServerOptions{Log: hclog.NewNullLogger(), Rule: func(daemon.Peer) error { return nil }, Timeouts: timeouts})
	s.register(g.GRPC)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Serve(ctx, l) }()
	conn, err := daemon.Dial(socket)
	if err != nil {
		r.Fatal(err)
	}
	r.images, r.volumes = apiv1.NewImageServiceClient(conn), apiv1.NewVolumeServiceClient(conn)
	r.rootfs, r.store = imagev1.NewRootfsServiceClient(conn), imagev1.NewStoreServiceClient(conn)
	r.stop = func() {
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			r.Error(err)
		}
		s.Close()
	}
}

func (r *rig) restart() {
	r.Helper()
	r.stop()
	r.start()
}

// rootTar is a root file system with a volume's content in it.
func rootTar(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "data/", Mode: 0o750, Uid: 5},
		{Typeflag: tar.TypeReg, Name: "data/seed", Mode: 0o644, Size: 4},
		{Typeflag: tar.TypeReg, Name: "big", Mode: 0o644, Size: 3 << 20},
	} {
		h.ModTime = time.Unix(1, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write(bytes.Repeat([]byte("x"), int(h.Size)))
	}
	w.Close()
	return out.Bytes()
}

func (r *rig) load(name string, changes ...string) string {
	r.Helper()
	id, err := r.importArchive(rootTar(r.T), name, changes...)
	if err != nil {
		r.Fatal(err)
	}
	return id
}

// importArchive sends an archive and gives the image's id.
func (r *rig) importArchive(archive []byte, name string, changes ...string) (string, error) {
	stream, err := r.images.Import(r.Context())
	if err != nil {
		return "", err
	}
	header := &apiv1.ImageServiceImportRequest_Header{Reference: name, Changes: changes}
	err = stream.Send(&apiv1.ImageServiceImportRequest{Message: &apiv1.ImageServiceImportRequest_Header_{Header: header}})
	for b := archive; len(b) > 0 && err == nil; {
		n := min(len(b), 100_000)
		err = stream.Send(&apiv1.ImageServiceImportRequest{Message: &apiv1.ImageServiceImportRequest_Data{Data: b[:n]}})
		b = b[n:]
	}
	if err != nil && err != io.EOF { // io.EOF: the answer is waiting
		return "", err
	}
	if err := stream.CloseSend(); err != nil {
		return "", err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return "", err
		}
		if res := m.GetResult(); res != nil {
			return res.ImageId, nil
		}
	}
}

func containerID(n int) string { return fmt.Sprintf("%064x", n) }

func TestImportPrepareRelease(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	id := r.load("app:1", "CMD [\"/bin/app\", \"-x\"]", "ENV A=1 B='two words'", "VOLUME /data", "EXPOSE 80", "LABEL k=v", "WORKDIR /w", "USER 5", "STOPSIGNAL INT", "ENTRYPOINT run it")
	image, err := r.images.Inspect(ctx, &apiv1.ImageServiceInspectRequest{Image: "app:1"})
	if err != nil {
		t.Fatal(err)
	}
	want := `["/bin/app" "-x"] ["/bin/sh" "-c" "run it"] ["A=1" "B=two words"] ["/data"] ["80/tcp"] /w 5 INT v`
	c := image.Image.Config
	got := fmt.Sprintf("%q %q %q %q %q %s %s %s %s", c.Cmd, c.Entrypoint, c.Env, c.Volumes, c.ExposedPorts, c.WorkingDir, c.User, c.StopSignal, c.Labels["k"])
	if got != want || image.Image.Id != id || fmt.Sprint(image.Image.Tags) != "[app:1]" || image.Image.SizeBytes != 3<<20+4 {
		t.Errorf("got %s\nwant %s\nimage %v", got, want, image.Image)
	}

	p, err := r.rootfs.Prepare(ctx, &imagev1.PrepareRequest{ContainerId: containerID(1), Image: "app:1", ImageVolumes: true,
		Volumes: []*imagev1.VolumeRequest{{Name: "named", Target: "/data/sub"}}})
	if err != nil {
		t.Fatal(err)
	}
	rec := p.Rootfs.Recipe
	if rec.Type != "overlay" || len(rec.Lower) != 1 || p.Rootfs.ImageReference != "app:1" || p.Rootfs.ImageId != id || len(p.Rootfs.Volumes) != 2 {
		t.Errorf("rootfs is %v", p.Rootfs)
	}
	for _, path := range []string{rec.Upper, rec.Work, filepath.Join(rec.Lower[0], "big")} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	anonymous := p.Rootfs.Volumes[1]
	if b, err := os.ReadFile(filepath.Join(anonymous.Source, "seed")); err != nil || string(b) != "xxxx" || !anonymous.Anonymous || !anonymous.Created {
		t.Errorf("anonymous volume %v holds %q, %v", anonymous, b, err)
	}
	if _, err := r.rootfs.Prepare(ctx, &imagev1.PrepareRequest{ContainerId: containerID(1), Image: "app:1"}); !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("prepared twice: %v", err)
	}
	if _, err := r.rootfs.Prepare(ctx, &imagev1.PrepareRequest{ContainerId: containerID(2), Image: "nothing"}); !errors.Is(err, fault.NotFound) || fault.ReasonOf(err) != "IMAGE_NOT_FOUND" {
		t.Errorf("no image: %v", err)
	}
	if _, err := r.rootfs.Prepare(ctx, &imagev1.PrepareRequest{ContainerId: "../x", Image: "app:1"}); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("bad id: %v", err)
	}

	r.restart()
	again, err := r.rootfs.Get(ctx, &imagev1.GetRequest{ContainerId: containerID(1)})
	if err != nil || again.Rootfs.Recipe.String() != rec.String() || len(again.Rootfs.Volumes) != 2 {
		t.Errorf("after restart: %v, %v", again, err)
	}
	if _, err := r.images.Remove(ctx, &apiv1.ImageServiceRemoveRequest{Image: "app:1"}); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("remove of an image in use: %v", err)
	}
	if _, err := r.volumes.Remove(ctx, &apiv1.VolumeServiceRemoveRequest{Volume: "named"}); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("remove of a volume in use: %v", err)
	}
	for range 2 { // the second has nothing to do
		if _, err := r.rootfs.Release(ctx, &imagev1.ReleaseRequest{ContainerId: containerID(1), AnonymousVolumes: true}); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(rec.Upper); !os.IsNotExist(err) {
		t.Errorf("upper after release: %v", err)
	}
	vols, err := r.volumes.List(ctx, &apiv1.VolumeServiceListRequest{})
	if err != nil || len(vols.Volumes) != 1 || vols.Volumes[0].Name != "named" {
		t.Errorf("volumes %v, %v", vols, err)
	}
	if _, err := r.images.Remove(ctx, &apiv1.ImageServiceRemoveRequest{Image: "app:1"}); err != nil {
		t.Error(err)
	}
	usage, err := r.store.Usage(ctx, &imagev1.UsageRequest{})
	if err != nil || usage.Images != 0 || usage.Layers != 0 || usage.BlobBytes != 0 || usage.RootfsBytes != 0 {
		t.Errorf("usage %v, %v", usage, err)
	}
}

func TestImportCompressed(t *testing.T) {
	r := newRig(t)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(rootTar(t))
	z.Close()
	id, err := r.importArchive(zipped.Bytes(), "zipped")
	if err != nil {
		t.Fatal(err)
	}
	plain := r.load("plain")
	a, errA := r.images.Inspect(t.Context(), &apiv1.ImageServiceInspectRequest{Image: id})
	b, errB := r.images.Inspect(t.Context(), &apiv1.ImageServiceInspectRequest{Image: plain})
	if errA != nil || errB != nil || a.Image.Layers[0] != b.Image.Layers[0] {
		t.Errorf("the same archive made layers %v and %v; %v, %v", a.GetImage().GetLayers(), b.GetImage().GetLayers(), errA, errB)
	}
}

func TestImportRefuses(t *testing.T) {
	r := newRig(t)
	var zipped, climbing bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(rootTar(t))
	z.Close()
	w := tar.NewWriter(&climbing)
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "../escape"})
	w.Close()
	for name, c := range map[string]struct {
		archive []byte
		change  string
		kind    fault.Kind
	}{
		"garbage":       {bytes.Repeat([]byte("garbage "), 200_000), "", fault.DataLoss},
		"cut":           {rootTar(t)[:2_000_000], "", fault.DataLoss},
		"cut gzip":      {zipped.Bytes()[:zipped.Len()/2], "", fault.DataLoss},
		"climbing":      {append(climbing.Bytes(), make([]byte, 1<<20)...), "", fault.DataLoss},
		"instruction":   {rootTar(t), "RUN rm -rf /", fault.InvalidArgument},
		"no value":      {rootTar(t), "CMD", fault.InvalidArgument},
		"open quote":    {rootTar(t), "ENV A='x", fault.InvalidArgument},
		"env malformed": {rootTar(t), "ENV A=1 B", fault.InvalidArgument},
	} {
		changes := []string{c.change}
		if c.change == "" {
			changes = nil
		}
		if _, err := r.importArchive(c.archive, "bad", changes...); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for range 100 { // the last one may still be tidying up
		left, _ := filepath.Glob(filepath.Join(r.dir, "staging/*"))
		if len(left) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, pattern := range []string{"staging/*", "blobs/*/*", "l/new.*", "l/[1-9a-z]*"} {
		if left, _ := filepath.Glob(filepath.Join(r.dir, pattern)); len(left) != 0 {
			t.Errorf("left %v", left)
		}
	}
}

func TestChanges(t *testing.T) {
	r := newRig(t)
	r.load("app")
	p, err := r.rootfs.Prepare(t.Context(), &imagev1.PrepareRequest{ContainerId: containerID(1), Image: "app"})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"big", "new"} {
		if err := os.WriteFile(filepath.Join(p.Rootfs.Recipe.Upper, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := r.store.Changes(t.Context(), &imagev1.ChangesRequest{ContainerId: containerID(1)})
	if err != nil || len(got.Changes) != 2 || got.Changes[0].Kind != apiv1.FileChange_KIND_MODIFIED || got.Changes[1].Path != "/new" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestUnfinishedRootfsIsSwept(t *testing.T) {
	r := newRig(t)
	r.load("app")
	half := filepath.Join(r.dir, "rw", containerID(9))
	if err := os.MkdirAll(filepath.Join(half, "upper"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if _, err := os.Stat(half); !os.IsNotExist(err) {
		t.Errorf("half-made root file system: %v", err)
	}
}

func TestListFilters(t *testing.T) {
	r := newRig(t)
	r.load("one:1", "LABEL a=1")
	r.load("two:1", "LABEL a=2")
	r.load("", "LABEL b=3")
	for filters, want := range map[string]int{
		"": 3, "label=a": 2, "label=a=1": 1, "label=a label=b": 0, "dangling=true": 1, "dangling=false": 2,
		"reference=one": 1, "reference=*:1": 2, "before=two:1": 1, "since=two:1": 1,
	} {
		got, err := r.images.List(t.Context(), &apiv1.ImageServiceListRequest{Filters: strings.Fields(filters)})
		if err != nil || len(got.Images) != want {
			t.Errorf("%q: %d images, %v; want %d", filters, len(got.GetImages()), err, want)
		}
	}
	for _, bad := range []string{"nonsense=1", "dangling=maybe", "label"} {
		if _, err := r.images.List(t.Context(), &apiv1.ImageServiceListRequest{Filters: []string{bad}}); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	page, err := r.images.List(t.Context(), &apiv1.ImageServiceListRequest{PageSize: 2})
	if err != nil || len(page.Images) != 2 || page.NextPageToken == "" {
		t.Fatalf("page %v, %v", page, err)
	}
	page, err = r.images.List(t.Context(), &apiv1.ImageServiceListRequest{PageSize: 2, PageToken: page.NextPageToken})
	if err != nil || len(page.Images) != 1 || page.NextPageToken != "" {
		t.Errorf("second page %v, %v", page, err)
	}
	gone, err := r.images.Prune(t.Context(), &apiv1.ImageServicePruneRequest{})
	if err != nil || len(gone.Deleted) == 0 || gone.ReclaimedBytes != 0 && len(gone.Untagged) != 0 {
		t.Errorf("prune %v, %v", gone, err)
	}
	if gone, err := r.images.Prune(t.Context(), &apiv1.ImageServicePruneRequest{All: true, Filters: []string{"label=a=1"}}); err != nil || fmt.Sprint(gone.Untagged) != "[one:1]" {
		t.Errorf("prune all %v, %v", gone, err)
	}
}

func TestS42VolumeNames(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"..", "../x", "a/b", ".x", "-x", strings.Repeat("x", 129), "a\n", "a\x00"} {
		if _, err := r.volumes.Create(t.Context(), &apiv1.VolumeServiceCreateRequest{Name: name}); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for range 2 {
		if _, err := r.volumes.Create(t.Context(), &apiv1.VolumeServiceCreateRequest{Name: "v", Labels: map[string]string{"a": "1"}}); err != nil {
			t.Error(err)
		}
	}
	r.restart()
	v, err := r.volumes.Inspect(t.Context(), &apiv1.VolumeServiceInspectRequest{Volume: "v"})
	if err != nil || v.Volume.Labels["a"] != "1" {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := r.volumes.Remove(t.Context(), &apiv1.VolumeServiceRemoveRequest{Volume: "v"}); err != nil {
		t.Error(err)
	}
}

// asImaged is set in a test process that has become the user imaged runs as.
const asImaged = "BERTH_TEST_AS_IMAGED"

// TestAsImaged runs the tests again as another user with nothing but the
// capabilities that main keeps.
func TestAsImaged(t *testing.T) {
	if os.Getenv(asImaged) != "" {
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	const nobody = 65534
	tmp := t.TempDir()
	if err := os.Chown(tmp, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^Test(Import|Unfinished|Changes|List|S42|Real)", "-test.v")
	cmd.Env = append(os.Environ(), asImaged+"=1", "TMPDIR="+tmp)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody},
		AmbientCaps: []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER,
			unix.CAP_FSETID, unix.CAP_SETFCAP, unix.CAP_MKNOD, unix.CAP_SYS_CHROOT},
	}
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestImportPrepareRelease")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// BenchmarkPrepareRelease is the part of imaged in starting a container.
func BenchmarkPrepareRelease(b *testing.B) {
	s, err := open(b.TempDir(), workertest.Workers(b).Path, config.Default().Imaged, hclog.NewNullLogger())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	image, err := s.importer.Import(b.Context(), importer.Request{Archive: bytes.NewReader(rootTar(b))})
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for b.Loop() {
		n++
		if _, err := s.rootfs.Prepare(b.Context(), rootfs.Request{Container: containerID(n), Image: image.ID.String()}); err != nil {
			b.Fatal(err)
		}
		if err := s.rootfs.Release(containerID(n), true); err != nil {
			b.Fatal(err)
		}
	}
}

// TestRealRegistry pushes to and pulls from Debian's docker-registry.
func TestRealRegistry(t *testing.T) {
	host := startRegistry(t)
	r := newRig(t)
	id := r.load(host + "/team/app:1")
	push, err := r.images.Push(t.Context(), &apiv1.ImageServicePushRequest{Reference: host + "/team/app:1"})
	if err != nil {
		t.Fatal(err)
	}
	pushed := last(t, push).(*apiv1.ImageServicePushResponse).GetResult()
	if pushed == nil || pushed.UploadedBytes == 0 {
		t.Fatalf("push: %v", pushed)
	}
	if _, err := r.images.Remove(t.Context(), &apiv1.ImageServiceRemoveRequest{Image: id, Force: true}); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{host + "/team/app:1", host + "/team/app@" + pushed.Digest} {
		stream, err := r.images.Pull(t.Context(), &apiv1.ImageServicePullRequest{Reference: ref})
		if err != nil {
			t.Fatal(err)
		}
		pulled := last(t, stream).(*apiv1.ImageServicePullResponse).GetResult()
		if pulled == nil || pulled.ImageId != id || pulled.Digest != pushed.Digest {
			t.Errorf("%s: %v", ref, pulled)
		}
	}
	stream, err := r.images.Pull(t.Context(), &apiv1.ImageServicePullRequest{Reference: host + "/team/none:1"})
	if err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, fault.NotFound) {
		t.Errorf("absent image: %v", err)
	}
}

// last reads a stream to its last message.
func last[M any](t *testing.T, stream grpc.ServerStreamingClient[M]) (m any) {
	t.Helper()
	for {
		got, err := stream.Recv()
		if err == io.EOF {
			return m
		}
		if err != nil {
			t.Fatal(err)
		}
		m = got
	}
}

// startRegistry runs a registry on the loopback and gives its host:port.
func startRegistry(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("SKIPPED: needs docker-registry (Debian package of that name)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", dir, host)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 100 {
		if c, err := net.Dial("tcp", host); err == nil {
			c.Close()
			return host
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the registry does not come up")
	return ""
}
