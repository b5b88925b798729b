package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"

	"berth/internal/journal"
	"berth/services/imaged/graph/graphtest"
	"berth/services/imaged/graph/overlay"
	"berth/services/imaged/manifest"
	"berth/services/imaged/store"
	"berth/services/imaged/trash"

	"github.com/hashicorp/go-hclog"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// rig is imaged's store of images.
type rig struct {
	testing.TB
	dir    string
	store  *store.Store
	driver *overlay.Driver
	images *Images
	close  func()
}

func newRig(t testing.TB, dir string) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: unpacking needs root")
	}
	r := &rig{TB: t, dir: dir}
	r.open()
	t.Cleanup(func() { r.close() })
	return r
}

func (r *rig) check(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) open() {
	r.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // as main does
	j, err := journal.Open(filepath.Join(r.dir, "journal"), journal.Options{})
	r.check(err)
	can, err := trash.Open(filepath.Join(r.dir, "trash"), r.Logf)
	r.check(err)
	r.store, err = store.Open(r.dir)
	r.check(err)
	r.store.Throw = can.Throw
	r.driver, err = overlay.New(filepath.Join(r.dir, "l"), can)
	r.check(err)
	r.images, err = Open(j, r.store, r.driver, hclog.NewNullLogger())
	r.check(err)
	r.close = func() {
		can.Close()
		j.Close()
	}
}

func (r *rig) restart() {
	r.Helper()
	r.close()
	r.open()
}

// layerTar is a layer of one file.
func layerTar(name, content string) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1, 0)})
	w.Write([]byte(content))
	w.Close()
	return out.Bytes()
}

// image is what add makes an image of.
type image struct {
	created time.Time
	labels  map[string]string
	layers  [][]byte // uncompressed archives, kept as they are
	names   []string // with a tag, or "NAME@" for one with the manifest's digest
}

// add makes an image by way of a lease, as everybody does.
func (r *rig) add(i image) digest.Digest {
	r.Helper()
	l := r.images.Lease()
	defer l.Release()
	config := manifest.Config{Created: &i.created, Architecture: "amd64", OS: "linux"}
	config.Config.Labels = i.labels
	config.RootFS.Type, config.RootFS.DiffIDs = "layers", []digest.Digest{}
	var descs []ocispec.Descriptor
	var layers []Layer
	for _, b := range i.layers {
		d := digest.FromBytes(b)
		if _, ok := l.Blob(d); !ok {
			r.addLayer(l, d, b)
		} else if _, ok := l.Layer(d); !ok {
			r.Fatal("blob without layer")
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d)
		descs = append(descs, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(b))})
		layers = append(layers, Layer{Blob: d, DiffID: d})
	}
	rawConfig, err := json.Marshal(config)
	r.check(err)
	id := digest.FromBytes(rawConfig)
	raw, target, err := manifest.New(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: id, Size: int64(len(rawConfig))}, descs)
	r.check(err)
	r.check(l.AddDocument(rawConfig, id))
	r.check(l.AddDocument(raw, target))
	refs := map[string]Ref{}
	for _, n := range i.names {
		if n[len(n)-1] == '@' {
			n += target.String()
		}
		named, err := ParseName(n)
		r.check(err)
		refs[Key(named)] = Ref{Image: id, Since: time.Now()}
	}
	r.check(l.AddImage(Image{ID: id, Manifest: target, MediaType: ocispec.MediaTypeImageManifest, Layers: layers}, refs))
	return id
}

func (r *rig) addLayer(l *Lease, d digest.Digest, b []byte) {
	r.Helper()
	blob, err := r.store.Stage(d, int64(len(b)))
	r.check(err)
	defer blob.Discard()
	_, err = blob.Write(b)
	r.check(err)
	staged, err := r.driver.Stage(context.Background(), graphtest.Make(b))
	r.check(err)
	defer staged.Discard()
	r.check(blob.Verify())
	r.check(l.AddLayer(blob, d, staged))
}

// counts are the blobs and layers on the disk.
func (r *rig) counts() string {
	blobs, _ := filepath.Glob(filepath.Join(r.dir, "blobs/*/*"))
	layers, _ := filepath.Glob(filepath.Join(r.dir, "l/[1-9a-z]*"))
	return fmt.Sprint(len(blobs), " ", len(layers))
}
