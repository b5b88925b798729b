package pull

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/fault"
	"berth/internal/journal"
	"berth/services/imaged/erofs"
	"berth/services/imaged/graph"
	"berth/services/imaged/graph/overlay"
	"berth/services/imaged/graph/plaincopy"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"
	"berth/services/imaged/store"
	"berth/services/imaged/trash"
	"berth/services/imaged/worker/workertest"

	"github.com/distribution/reference"
	"github.com/hashicorp/go-hclog"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestMain(m *testing.M) { os.Exit(workertest.Main(m)) }

// fakeRegistry is a registry in memory that can be made to misbehave.
type fakeRegistry struct {
	mu        sync.Mutex
	manifests map[string][]byte // by name or digest
	types     map[string]string
	blobs     map[digest.Digest][]byte
	requests  map[digest.Digest]int

	by     digest.Algorithm // what contents of layers are named by, and layers and configurations too
	layers []digest.Digest  // of the last image
	sent   int64

	dieAt   int64                                  // every transfer ends at this byte of the blob; 0: never
	stopAt  int64                                  // every transfer waits at this byte of the blob; 0: never
	breakAt int64                                  // every transfer breaks off after so many bytes; 0: never
	serve   func(d digest.Digest, b []byte) []byte // what is sent for a blob, if not itself
	hold    chan struct{}                          // transfers wait until it is closed
}

func newFakeRegistry() *fakeRegistry {
	return &fakeRegistry{manifests: map[string][]byte{}, types: map[string]string{}, blobs: map[digest.Digest][]byte{}, by: digest.SHA256, requests: map[digest.Digest]int{}}
}

func (f *fakeRegistry) Manifest(_ context.Context, ref reference.Named, _ registry.Auth) ([]byte, ocispec.Descriptor, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := ref.String()
	if c, ok := ref.(reference.Canonical); ok {
		key = c.Digest().String()
	}
	raw, ok := f.manifests[key]
	if !ok {
		return nil, ocispec.Descriptor{}, fault.NotFound.Errorf("MANIFEST_UNKNOWN", "no manifest %s", ref)
	}
	return raw, ocispec.Descriptor{MediaType: f.types[key], Digest: digest.FromBytes(raw), Size: int64(len(raw))}, nil
}

func (f *fakeRegistry) Tags(_ context.Context, repo reference.Named, _ registry.Auth) (all []string, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key := range f.manifests {
		if tag, ok := strings.CutPrefix(key, repo.Name()+":"); ok {
			all = append(all, tag)
		}
	}
	slices.Sort(all)
	return all, nil
}

func (f *fakeRegistry) Blob(ctx context.Context, _ reference.Named, desc ocispec.Descriptor, offset int64, _ registry.Auth) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.blobs[desc.Digest]
	if !ok {
		return nil, fault.NotFound.Errorf("BLOB_UNKNOWN", "no blob %s", desc.Digest)
	}
	f.requests[desc.Digest]++
	if f.serve != nil {
		b = f.serve(desc.Digest, b)
	}
	return io.NopCloser(&transfer{ctx: ctx, f: f, b: b[min(offset, int64(len(b))):], at: offset, size: desc.Size}), nil
}

type transfer struct {
	ctx      context.Context
	f        *fakeRegistry
	b        []byte
	at, size int64
	sent     int64
}

func (t *transfer) Read(p []byte) (int, error) {
	if t.f.hold != nil {
		select {
		case <-t.f.hold:
		case <-t.ctx.Done():
			return 0, t.ctx.Err()
		}
	}
	if t.f.breakAt > 0 && t.sent >= t.f.breakAt {
		return 0, &registry.InterruptedError{Offset: t.at, Size: t.size, Err: errors.New("connection reset")}
	}
	if t.f.stopAt > 0 && t.at >= t.f.stopAt {
		<-t.ctx.Done()
		return 0, t.ctx.Err()
	}
	if t.f.dieAt > 0 && t.at >= t.f.dieAt {
		return 0, fault.Unavailable.Errorf("REGISTRY_UNAVAILABLE", "the registry is gone")
	}
	if len(t.b) == 0 {
		return 0, io.EOF
	}
	if t.f.breakAt > 0 {
		p = p[:min(int64(len(p)), t.f.breakAt-t.sent)]
	}
	if t.f.dieAt > 0 || t.f.stopAt > 0 {
		p = p[:min(len(p), 64<<10)]
	}
	n := copy(p, t.b)
	t.f.mu.Lock()
	t.f.sent += int64(n)
	t.f.mu.Unlock()
	t.b, t.at, t.sent = t.b[n:], t.at+int64(n), t.sent+int64(n)
	return n, nil
}

// sentBytes is how much of blobs was sent so far.
func (f *fakeRegistry) sentBytes() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sent
}

// largest is the size of the largest blob.
func (f *fakeRegistry) largest() (n int64) {
	for _, b := range f.blobs {
		n = max(n, int64(len(b)))
	}
	return n
}

func (f *fakeRegistry) addBlob(mediaType string, b []byte) ocispec.Descriptor {
	d := f.by.FromBytes(b)
	f.blobs[d] = b
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// addImage publishes an image of the given layers (uncompressed tars).
func (f *fakeRegistry) addImage(t testing.TB, name, arch, compression string, layers ...[]byte) ocispec.Descriptor {
	t.Helper()
	config := manifest.Config{Architecture: arch, OS: "linux"}
	config.RootFS.Type, config.RootFS.DiffIDs = "layers", []digest.Digest{}
	config.Config.Cmd = []string{"/bin/" + name}
	var descs []ocispec.Descriptor
	f.layers = nil
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, f.by.FromBytes(l))
		mediaType, b := compress(t, compression, l)
		descs = append(descs, f.addBlob(mediaType, b))
		f.layers = append(f.layers, f.by.FromBytes(b))
	}
	raw, _ := json.Marshal(config)
	raw, d, err := manifest.New(f.addBlob(ocispec.MediaTypeImageConfig, raw), descs)
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(raw)),
		Platform: &ocispec.Platform{OS: "linux", Architecture: arch}}
	f.addManifest(name, desc, raw)
	return desc
}

func (f *fakeRegistry) addManifest(name string, desc ocispec.Descriptor, raw []byte) {
	for _, key := range []string{parse(name).String(), desc.Digest.String()} {
		f.manifests[key], f.types[key] = raw, desc.MediaType
	}
}

func (f *fakeRegistry) addIndex(t testing.TB, name string, all ...ocispec.Descriptor) digest.Digest {
	t.Helper()
	var index ocispec.Index
	index.SchemaVersion, index.MediaType, index.Manifests = 2, ocispec.MediaTypeImageIndex, all
	raw, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(raw)
	f.addManifest(name, ocispec.Descriptor{MediaType: index.MediaType, Digest: d}, raw)
	return d
}

func compress(t testing.TB, kind string, b []byte) (string, []byte) {
	t.Helper()
	var out bytes.Buffer
	switch kind {
	case "zstd":
		w, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(b)
		w.Close()
		return ocispec.MediaTypeImageLayerZstd, out.Bytes()
	case "gzip":
		w := gzip.NewWriter(&out)
		w.Write(b)
		w.Close()
		return ocispec.MediaTypeImageLayerGzip, out.Bytes()
	}
	return ocispec.MediaTypeImageLayer, b
}

func parse(name string) reference.Named {
	named, err := images.ParseName(name)
	if err != nil {
		panic(err)
	}
	return named
}

// layerTar is a layer of one file.
func layerTar(t testing.TB, name, content string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1, 0)}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, content)
	w.Close()
	return out.Bytes()
}

// layers is a graph driver that keeps layers in a directory.
type layers interface {
	graph.Driver
	Path(name string) string
	Root(name string) string
}

// rig is imaged's store with a puller and a fake registry.
type rig struct {
	*testing.T
	dir      string
	registry *fakeRegistry
	store    *store.Store
	kind     string // of driver: "copy", also if empty, or "erofs"
	driver   layers
	journal  *journal.Journal
	images   *images.Images
	puller   *Puller
	can      *trash.Can
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: unpacking needs root")
	}
	r := &rig{T: t, dir: t.TempDir(), registry: newFakeRegistry()}
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *rig) open() {
	r.Helper()
	var err error
	check := func(e error) {
		r.Helper()
		if e != nil {
			r.Fatal(e)
		}
	}
	r.can, err = trash.Open(filepath.Join(r.dir, "trash"), r.Logf)
	check(err)
	r.store, err = store.Open(r.dir)
	check(err)
	if r.kind == "erofs" {
		r.driver, err = overlay.NewEROFS(filepath.Join(r.dir, "l"), erofs.MinBlock, r.can)
	} else {
		r.driver, err = plaincopy.New(filepath.Join(r.dir, "l"), r.can)
	}
	check(err)
	r.journal, err = journal.Open(filepath.Join(r.dir, "journal"), journal.Options{})
	check(err)
	r.images, err = images.Open(r.journal, r.store, r.driver, hclog.NewNullLogger())
	check(err)
	r.puller = New(Config{Registry: r.registry, Store: r.store, Driver: r.driver, Images: r.images, Downloads: 8, Unpacks: 2, Workers: workertest.Workers(r)})
}

func (r *rig) close() {
	r.puller.Wait()
	r.journal.Close()
	r.can.Close()
}

func (r *rig) restart() {
	r.Helper()
	r.close()
	r.open()
}

func (r *rig) pull(name string) (Result, error) {
	return r.puller.Pull(context.Background(), Request{Name: parse(name)})
}

func (r *rig) mustPull(name string) Result {
	r.Helper()
	result, err := r.pull(name)
	if err != nil {
		r.Fatal(err)
	}
	return result
}

// expect counts what is on the disk: nothing staged, so many blobs and layers.
func (r *rig) expect(blobs, layers int) {
	r.Helper()
	count := func(pattern string) int {
		all, err := filepath.Glob(filepath.Join(r.dir, pattern))
		if err != nil {
			r.Fatal(err)
		}
		return len(all)
	}
	got := [4]int{count("blobs/*/*"), count("l/[1-9a-z]*"), count("staging/*"), count("l/new.*")}
	if want := [4]int{blobs, layers, 0, 0}; got != want {
		r.Errorf("blobs, layers, staged blobs, staged layers: %v, want %v", got, want)
	}
}

// settle waits until cancelled work has cleaned up behind it.
func (r *rig) settle(blobs, layers int) {
	r.Helper()
	for range 200 {
		b, _ := filepath.Glob(filepath.Join(r.dir, "blobs/*/*"))
		l, _ := filepath.Glob(filepath.Join(r.dir, "l/[1-9a-z]*"))
		s, _ := filepath.Glob(filepath.Join(r.dir, "staging/*"))
		if len(b) == blobs && len(l) == layers && len(s) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.expect(blobs, layers)
}

func (r *rig) content(result Result, name string) string {
	r.Helper()
	dir, err := os.MkdirTemp(r.dir, "rw-")
	if err != nil {
		r.Fatal(err)
	}
	use, err := r.images.Use(result.Image.ID)
	if err != nil {
		r.Fatal(err)
	}
	defer r.images.Unuse(result.Image.ID)
	recipe, err := r.driver.Prepare(context.Background(), dir, use.Layers)
	if err != nil {
		r.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(recipe.Source, name))
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(b)
}
