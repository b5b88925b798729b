package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/journal"
	"berth/services/imaged/graph/plaincopy"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/store"
	"berth/services/imaged/trash"
	"berth/services/imaged/worker/workertest"

	"github.com/hashicorp/go-hclog"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestMain(m *testing.M) { os.Exit(workertest.Main(m)) }

// rig is imaged's store with a loader and a saver.
type rig struct {
	testing.TB
	dir    string
	driver *plaincopy.Driver
	images *images.Images
	loader *Loader
	saver  *Saver
	close  func()
}

func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: unpacking needs root")
	}
	r := &rig{TB: t, dir: t.TempDir()}
	r.open()
	t.Cleanup(func() { r.close() })
	return r
}

func (r *rig) open() {
	r.Helper()
	check := func(err error) {
		r.Helper()
		if err != nil {
			r.Fatal(err)
		}
	}
	can, err := trash.Open(filepath.Join(r.dir, "trash"), r.Logf)
	check(err)
	s, err := store.Open(r.dir)
	check(err)
	r.driver, err = plaincopy.New(filepath.Join(r.dir, "l"), can)
	check(err)
	j, err := journal.Open(filepath.Join(r.dir, "journal"), journal.Options{})
	check(err)
	r.images, err = images.Open(j, s, r.driver, hclog.NewNullLogger())
	check(err)
	workers := workertest.Workers(r)
	workers.Files.Bytes = 64 << 20
	r.loader = NewLoader(LoaderConfig{Store: s, Driver: r.driver, Images: r.images, Unpacks: 2, Workers: workers})
	r.saver = &Saver{Store: s, Images: r.images}
	r.close = func() {
		j.Close()
		can.Close()
	}
}

func (r *rig) restart() {
	r.Helper()
	r.close()
	r.open()
}

func (r *rig) load(archive []byte) ([]Loaded, error) {
	return r.loader.Load(context.Background(), LoadRequest{Archive: bytes.NewReader(archive)})
}

func (r *rig) mustLoad(archive []byte) []Loaded {
	r.Helper()
	l, err := r.load(archive)
	if err != nil {
		r.Fatal(err)
	}
	return l
}

func (r *rig) mustSave(f Format, names ...string) []byte {
	r.Helper()
	var out bytes.Buffer
	if err := r.saver.Save(context.Background(), SaveRequest{Images: names, Format: f}, &out); err != nil {
		r.Fatal(err)
	}
	return out.Bytes()
}

// expect counts what is on the disk: so many blobs and layers, nothing else.
func (r *rig) expect(blobs, layers int) {
	r.Helper()
	count := func(pattern string) int {
		all, err := filepath.Glob(filepath.Join(r.dir, pattern))
		if err != nil {
			r.Fatal(err)
		}
		return len(all)
	}
	got := [4]int{count("blobs/*/*"), count("l/*"), count("staging/*"), count("l/new.*")}
	if want := [4]int{blobs, layers, 0, 0}; got != want {
		r.Errorf("blobs, layers, staged blobs, staged layers: %v, want %v", got, want)
	}
}

// content is what an image has in the file name.
func (r *rig) content(id digest.Digest, name string) string {
	r.Helper()
	use, err := r.images.Use(id)
	if err != nil {
		r.Fatal(err)
	}
	defer r.images.Unuse(id)
	dir, err := os.MkdirTemp(r.dir, "rw-")
	if err != nil {
		r.Fatal(err)
	}
	recipe, err := r.driver.Prepare(context.Background(), dir, use.Layers)
	if err != nil {
		r.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(recipe.Source, name))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// item is an element of a test's archive.
type item struct {
	name string
	body []byte
	typ  byte   // default: a file
	link string // of links
	pax  map[string]string
}

func file1(name string, body []byte) item { return item{name: name, body: body} }

func symlink(name, to string) item { return item{name: name, typ: tar.TypeSymlink, link: to} }

func tarOf(t testing.TB, items ...item) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, i := range items {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: i.name, Mode: 0o644, Size: int64(len(i.body)), Linkname: i.link, ModTime: time.Unix(1, 0), PAXRecords: i.pax}
		if i.typ != 0 {
			h.Typeflag = i.typ
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(i.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// layerTar is a layer of one file.
func layerTar(t testing.TB, name, content string) []byte {
	return tarOf(t, file1(name, []byte(content)))
}

func jsonOf(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// configOf is the configuration of an image of these layers (uncompressed).
func configOf(t testing.TB, arch string, layers ...[]byte) []byte {
	c := manifest.Config{Architecture: arch, OS: "linux"}
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []digest.Digest{}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(l))
	}
	return jsonOf(t, c)
}

func blobItem(b []byte) item { return file1(blobName(digest.FromBytes(b)), b) }

func descOf(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// ociImage makes the blobs of an image and its manifest's descriptor.
func ociImage(t testing.TB, arch, compression string, layers ...[]byte) ([]item, ocispec.Descriptor) {
	t.Helper()
	config := configOf(t, arch, layers...)
	items := []item{blobItem(config)}
	var descs []ocispec.Descriptor
	for _, l := range layers {
		mediaType, b := compress(t, compression, l)
		descs = append(descs, descOf(mediaType, b))
		items = append(items, blobItem(b))
	}
	raw, _, err := manifest.New(descOf(ocispec.MediaTypeImageConfig, config), descs)
	if err != nil {
		t.Fatal(err)
	}
	desc := descOf(ocispec.MediaTypeImageManifest, raw)
	desc.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return append(items, blobItem(raw)), desc
}

func compress(t testing.TB, kind string, b []byte) (string, []byte) {
	t.Helper()
	var out bytes.Buffer
	switch kind {
	case "gzip":
		w := gzip.NewWriter(&out)
		w.Write(b)
		w.Close()
		return ocispec.MediaTypeImageLayerGzip, out.Bytes()
	case "zstd":
		w, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(b)
		w.Close()
		return ocispec.MediaTypeImageLayerZstd, out.Bytes()
	}
	return ocispec.MediaTypeImageLayer, b
}

func ociLayoutItem() item { return file1(layoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`)) }

// indexItem is index.json with these images; names are in their annotations.
func indexItem(t testing.TB, descs ...ocispec.Descriptor) item {
	var index ocispec.Index
	index.SchemaVersion, index.Manifests = 2, descs
	return file1(indexFile, jsonOf(t, index))
}

func called(d ocispec.Descriptor, name string) ocispec.Descriptor {
	d.Annotations = map[string]string{annotationName: name}
	return d
}

// once drops items that repeat a name.
func once(items []item) (all []item) {
	seen := map[string]bool{}
	for _, i := range items {
		if !seen[i.name] {
			all = append(all, i)
		}
		seen[i.name] = true
	}
	return all
}

func manifestItem(t testing.TB, all ...dockerImage) item { return file1(manifestFile, jsonOf(t, all)) }

func names(l Loaded) string {
	var all []string
	for _, n := range l.Names {
		all = append(all, images.Familiar(n.String()))
	}
	return strings.Join(all, " ")
}
