//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

// layoutBy512 is an OCI layout with one image, in which everything is named by sha512. Its layer is said to contain said.
func layoutBy512(t *testing.T, name string, layer, said []byte) string {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	file := func(name string, b []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(b))}); err != nil {
			t.Fatal(err)
		}
		w.Write(b)
	}
	blob := func(mediaType string, b []byte) ocispec.Descriptor {
		d := digest.SHA512.FromBytes(b)
		file("blobs/sha512/"+d.Encoded(), b)
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	text := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Config:   ocispec.ImageConfig{Cmd: []string{"sh", "-c", "echo long"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.SHA512.FromBytes(said)}},
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	m.Config, m.Layers = blob(ocispec.MediaTypeImageConfig, text(config)), []ocispec.Descriptor{blob(ocispec.MediaTypeImageLayer, layer)}
	desc := blob(ocispec.MediaTypeImageManifest, text(m))
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc}}
	index.SchemaVersion = 2
	file("index.json", text(index))
	file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	w.Close()
	path := filepath.Join(t.TempDir(), "long.tar")
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSHA512: what is named by sha512 is loaded, run, pushed, pulled, checked and saved like anything else.
func TestSHA512(t *testing.T) {
	e := harness.New(t)
	layer, err := os.ReadFile(harness.BusyboxTar(t))
	if err != nil {
		t.Fatal(err)
	}
	reg := registrytest.Start(t, registrytest.Options{})
	ref := reg.Host + "/long:1"
	archive := layoutBy512(t, ref, layer, layer)
	want(t, "load", e.Berth(t, "load", "-i", archive), "Loaded image: "+ref)
	run := func() {
		t.Helper()
		want(t, "run", e.Berth(t, "run", "--rm", ref), "long")
	}
	run()
	e.Berth(t, "push", "-q", ref)
	e.Berth(t, "rmi", ref)
	e.Berth(t, "pull", "-q", ref)
	run()
	id := e.Berth(t, "images", "-q", "--no-trunc")
	if !strings.HasPrefix(id, "sha512:") {
		t.Fatalf("its id is %q", id)
	}
	for _, part := range []string{id, id[:19], id[7:19], id[7:71]} {
		want(t, "the id of "+part, e.Berth(t, "image", "inspect", "-f", "{{.Id}}", part), id)
	}
	e.Fails(t, 1, []string{"no such image"}, "image", "inspect", "sha256:"+id[7:19])
	e.Berth(t, "image", "check")
	saved := filepath.Join(t.TempDir(), "saved.tar")
	e.Berth(t, "save", "--format", "oci", "-o", saved, ref)
	e.Berth(t, "rmi", ref)
	e.Berth(t, "load", "-i", saved)
	run()
	e.Berth(t, "commit", e.Berth(t, "run", "-d", ref, "sh", "-c", "echo more >/more"), "more:1")
	want(t, "what was committed on top", e.Berth(t, "run", "--rm", "more:1", "cat", "/more"), "more")

	e.Fails(t, 1, []string{"but the image says sha512:"}, "load", "-i", layoutBy512(t, ref, layer, []byte("else")))
}
