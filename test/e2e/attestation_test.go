//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/test/harness"
	registrytest "berth/test/registry"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestAttestations: an index as builders push it, with an attestation about each platform's image, and with artifacts, goes
// whole from the registry into an archive, through another engine into another repository, and comes back as the same bytes.
// A pull for one platform takes nothing of that.
func TestAttestations(t *testing.T) {
	e := harness.New(t)
	reg := registrytest.Start(t, registrytest.Options{})
	skopeo := need(t, "skopeo")
	ref, again, copied := reg.Ref("multi:1"), reg.Ref("again/multi:1"), reg.Ref("copied/multi:1")
	w := writer{t, reg, "multi"}
	large := append(bytes.Repeat([]byte(`{"_type":"https://in-toto.io/Statement/v0.1"}`), 1<<17), '\n') // 5.6 MiB
	var all, others []ocispec.Descriptor
	for _, arch := range []string{"amd64", "arm64"} {
		part := reg.Ref("multi:" + arch)
		e.Berth(t, "import", "--platform", "linux/"+arch, "-c", "LABEL arch="+arch, richTar(t), part)
		e.Berth(t, "push", "-q", part)
		all = append(all, w.describe(arch))
		e.Berth(t, "rmi", part)
	}
	for _, image := range all {
		about := w.manifest(ocispec.Manifest{Config: w.blob(ocispec.MediaTypeImageConfig, []byte(`{"architecture":"unknown","os":"unknown","rootfs":{"type":"layers","diff_ids":[]},"about":"`+image.Digest.String()+`"}`)),
			Layers: []ocispec.Descriptor{w.blob("application/vnd.in-toto+json", large), w.blob("application/vnd.in-toto+json", []byte(`{"provenance":"`+image.Digest.String()+`"}`))}})
		about.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
		about.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image.Digest.String()}
		others = append(others, about)
	}
	empty := w.blob(ocispec.MediaTypeEmptyJSON, []byte("{}"))
	chart := w.manifest(ocispec.Manifest{ArtifactType: "application/vnd.example.chart", Config: empty, Layers: []ocispec.Descriptor{w.blob("application/gzip", []byte("\x1f\x8b\x08 but no archive"))}})
	odd := w.manifest(ocispec.Manifest{ArtifactType: "application/vnd.example.odd", Config: empty, Layers: []ocispec.Descriptor{w.blob("text/plain", []byte("odd"))}})
	odd.MediaType = "application/vnd.example.odd+json"
	others = append(others, chart, odd)
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: append(all, others...)}
	index.SchemaVersion = 2
	raw := w.json(index)
	w.put("manifests/1", index.MediaType, raw)

	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	asked := len(reg.Log())
	e.Berth(t, "pull", "-q", ref)
	for _, d := range others {
		if strings.Contains(reg.Log()[asked:], d.Digest.String()) {
			t.Errorf("a pull for one platform asked for %s", d.Digest)
		}
	}
	e.Berth(t, "pull", "-q", "--all-platforms", ref)
	e.Berth(t, "image", "prune", "-f") // takes the other platform's image, which has no tag: the index is whole nevertheless
	e.Berth(t, "save", "--all-platforms", "-o", file("first"), ref)
	other := harness.New(t)
	archive, err := os.ReadFile(file("first"))
	if err != nil {
		t.Fatal(err)
	}
	if r := other.TryStdin(string(archive), "load", "-q", "--all-platforms"); r.Code != 0 {
		t.Fatalf("load: exit %d, %s%s", r.Code, r.Out, r.Err)
	}
	other.Berth(t, "tag", ref, again)
	other.Berth(t, "rmi", ref)
	other.Berth(t, "push", "-q", "--all-platforms", again)
	e.Berth(t, "image", "copy", "-q", again, copied)
	for _, name := range []string{again, copied} {
		want(t, name, e.Berth(t, "manifest", "inspect", name), strings.TrimSpace(e.Berth(t, "manifest", "inspect", ref)))
		harness.Sh(t, skopeo, "copy", "-q", "--all", "--src-tls-verify=false", "docker://"+name, "oci-archive:"+file("x")+":"+ref) // all of it is there
		os.Remove(file("x"))
	}
	e.Berth(t, "image", "prune", "-a", "-f")
	if left, _ := filepath.Glob(e.Root + "/imaged/blobs/*/*"); len(left) != 0 {
		t.Errorf("blobs after the prune: %v", left)
	}
	e.Berth(t, "pull", "-q", "--all-platforms", copied)
	e.Berth(t, "tag", copied, ref)
	e.Berth(t, "save", "--all-platforms", "-o", file("last"), ref)
	sameFiles(t, file("first"), file("last"))

	// An archive of all of it that skopeo made. skopeo 1.9 writes the index anew, without the types of artifacts.
	harness.Sh(t, skopeo, "copy", "-q", "--all", "--src-tls-verify=false", "docker://"+ref, "oci-archive:"+file("skopeo")+":"+ref)
	other.Berth(t, "image", "prune", "-a", "-f")
	other.Berth(t, "load", "-q", "--all-platforms", "-i", file("skopeo"))
	other.Berth(t, "save", "--all-platforms", "-o", file("from-skopeo"), ref)
	has := harness.Sh(t, "tar", "-tf", file("from-skopeo"))
	for _, name := range lines(harness.Sh(t, "tar", "-tf", file("first"))) {
		if !strings.Contains(has, name) && !strings.HasSuffix(name, digest.FromBytes(raw).Encoded()) {
			t.Errorf("%s is not in the archive that came by way of skopeo's", name)
		}
	}

	// Damage of what is kept is found, and mended from where it came from.
	sbom := filepath.Join(e.Root, "imaged/blobs/sha256", digest.FromBytes(large).Encoded())
	if err := os.WriteFile(sbom, []byte("x"), 0o400); err != nil {
		t.Fatal(err)
	}
	if r := e.Try("save", "--all-platforms", "-o", file("x"), ref); r.Code == 0 || !strings.Contains(r.Err, digest.FromBytes(large).String()) {
		t.Errorf("save of what is damaged: exit %d, %s", r.Code, r.Err)
	}
	if r := e.Try("image", "check"); r.Code == 0 || !strings.Contains(r.Out, digest.FromBytes(large).Encoded()[:12]) {
		t.Errorf("check: exit %d, %s%s", r.Code, r.Out, r.Err)
	}
	e.Berth(t, "image", "check", "--repair")
	e.Berth(t, "save", "--all-platforms", "-o", file("mended"), ref)
	sameFiles(t, file("first"), file("mended"))

	// What the registry has lost is told by name. Who wants one platform does not miss it.
	e.Berth(t, "image", "prune", "-a", "-f")
	lost := digest.FromBytes(large)
	if err := os.RemoveAll(filepath.Join(reg.Dir, "docker/registry/v2/blobs/sha256", lost.Encoded()[:2], lost.Encoded())); err != nil {
		t.Fatal(err)
	}
	reg.Restart() // it remembers what it had
	e.Fails(t, 1, []string{"does not have all that the index lists", lost.String()}, "pull", "-q", "--all-platforms", ref)
	if r := e.Try("image", "inspect", ref); r.Code == 0 {
		t.Error("the name is here after a pull that failed")
	}
	e.Berth(t, "pull", "-q", ref)
}

// writer puts things into a repository of a registry as they are.
type writer struct {
	t    *testing.T
	reg  *registrytest.Registry
	repo string
}

func (w writer) json(v any) []byte {
	w.t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

func (w writer) request(method, path, mediaType string, body []byte) *http.Response {
	w.t.Helper()
	if !strings.HasPrefix(path, "http://") {
		path = "http://" + w.reg.Host + "/v2/" + w.repo + "/" + path
	}
	r, err := http.NewRequest(method, path, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Content-Type", mediaType)
	r.Header.Set("Accept", mediaType)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	answer, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode >= 300 {
		w.t.Fatalf("%s %s: %s %s %v", method, path, resp.Status, answer, err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(answer))
	return resp
}

func (w writer) put(path, mediaType string, body []byte) {
	w.t.Helper()
	w.request("PUT", path, mediaType, body)
}

func (w writer) blob(mediaType string, b []byte) ocispec.Descriptor {
	w.t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	place := w.request("POST", "blobs/uploads/", "", nil).Header.Get("Location")
	w.put(place+"&digest="+d.Digest.String(), "application/octet-stream", b)
	return d
}

func (w writer) manifest(m ocispec.Manifest) ocispec.Descriptor {
	w.t.Helper()
	m.SchemaVersion, m.MediaType = 2, ocispec.MediaTypeImageManifest
	raw := w.json(m)
	d := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)), ArtifactType: m.ArtifactType}
	w.put("manifests/"+d.Digest.String(), m.MediaType, raw)
	return d
}

// describe is the descriptor of an image that the repository has under the name of its architecture.
func (w writer) describe(arch string) ocispec.Descriptor {
	w.t.Helper()
	raw, err := io.ReadAll(w.request("GET", "manifests/"+arch, ocispec.MediaTypeImageManifest, nil).Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw)), Platform: &ocispec.Platform{OS: "linux", Architecture: arch}}
}
