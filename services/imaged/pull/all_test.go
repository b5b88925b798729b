package pull

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"berth/internal/fault"
	"berth/services/imaged/images"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPullTags(t *testing.T) {
	r := newRig(t)
	r.registry.addImage(t, "team/app:1", "amd64", "gzip", layerTar(t, "a", "1"))
	r.registry.addImage(t, "team/app:2", "amd64", "gzip", layerTar(t, "a", "2"))
	r.registry.addImage(t, "team/other:1", "amd64", "gzip", layerTar(t, "a", "3"))
	artifact := []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","artifactType":"a/b","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`)
	r.registry.addManifest("team/app:sig", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8b"}, artifact)
	all, err := r.puller.PullTags(context.Background(), Request{Name: parse("team/app")}, r.puller.PullOne)
	if err != nil || len(all) != 2 || all[0].Name.String() != "docker.io/team/app:1" || all[1].Name.String() != "docker.io/team/app:2" {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, name := range []string{"team/app:1", "team/app:2"} {
		if _, err := r.images.Find(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.images.Find("team/other:1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("another repository: %v", err)
	}
	if _, err := r.puller.PullTags(context.Background(), Request{Name: parse("none")}, r.puller.PullOne); !fault.Is(err, fault.NotFound) {
		t.Errorf("no tags: %v", err)
	}
}

func TestPullPlatforms(t *testing.T) {
	r := newRig(t)
	host := platforms.DefaultSpec().Architecture
	one := r.registry.addImage(t, "s390x", "s390x", "gzip", layerTar(t, "arch", "s390x"))
	two := r.registry.addImage(t, "host", host, "gzip", layerTar(t, "arch", host))
	three := r.registry.addImage(t, "ppc", "ppc64le", "gzip", layerTar(t, "arch", "ppc64le"))
	index := r.registry.addIndex(t, "multi:1", one, two, three, r.registry.addAttestation(t, two, []byte(`{"sbom":1}`)))
	all, err := r.puller.PullPlatforms(context.Background(), Request{Name: parse("multi:1")})
	if err != nil || len(all) != 4 {
		t.Fatalf("%+v, %v", all, err)
	}
	if last := all[3]; last.Name.String() != "docker.io/library/multi:1" || last.Target != index || r.content(last, "arch") != host {
		t.Errorf("the name is %+v", last)
	}
	for i, arch := range []string{"s390x", host, "ppc64le"} {
		if got := r.content(all[i], "arch"); got != arch {
			t.Errorf("%s is %s", all[i].Name, got)
		}
		if found, err := r.images.Find(fmt.Sprint(all[i].Name)); err != nil || found.ID != all[i].Image.ID {
			t.Errorf("%s: %v", all[i].Name, err)
		}
	}
	// Without one for this host, the name goes to the first.
	r.registry.addIndex(t, "foreign:1", three, one)
	if all, err = r.puller.PullPlatforms(context.Background(), Request{Name: parse("foreign:1")}); err != nil || r.content(all[2], "arch") != "ppc64le" {
		t.Errorf("%+v, %v", all, err)
	}
}

// addAttestation publishes what builders do about an image: a manifest whose layers are documents, with a configuration as
// images have it, in the index under a platform that there is not.
func (f *fakeRegistry) addAttestation(t *testing.T, about ocispec.Descriptor, statement []byte) ocispec.Descriptor {
	t.Helper()
	config := f.addBlob(ocispec.MediaTypeImageConfig, []byte(`{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":["`+digest.FromBytes(statement).String()+`"]}}`))
	desc := f.addArtifact(t, "", config, f.addBlob("application/vnd.in-toto+json", statement))
	desc.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	desc.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": about.Digest.String()}
	return desc
}

func (f *fakeRegistry) addArtifact(t *testing.T, artifactType string, config ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType, Config: config, Layers: layers}
	m.SchemaVersion = 2
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)), ArtifactType: artifactType}
	f.addManifest("artifacts:"+desc.Digest.Encoded(), desc, raw)
	return desc
}

// wholeIndex publishes an index that lists about all that one can. It gives the digests of what is no image.
func (f *fakeRegistry) wholeIndex(t *testing.T, name string, statement []byte) (index, attestation digest.Digest, others map[digest.Digest]bool) {
	t.Helper()
	own := f.addImage(t, "own", platforms.DefaultSpec().Architecture, "gzip", layerTar(t, "arch", "own"))
	other := f.addImage(t, "other", "s390x", "gzip", layerTar(t, "arch", "other"))
	again := f.addImage(t, "other", "s390x", "zstd", layerTar(t, "arch", "other")) // one image, two manifests
	images := map[digest.Digest]bool{}
	for d := range f.blobs {
		images[d] = true
	}
	about := f.addAttestation(t, own, statement)
	empty := f.addBlob("application/vnd.oci.empty.v1+json", []byte("{}"))
	chart := f.addArtifact(t, "application/vnd.example.chart", empty, f.addBlob("application/gzip", []byte("\x1f\x8b\x08 is no tar")))
	chart.Platform = own.Platform
	odd := f.addArtifact(t, "application/vnd.example.odd", empty, f.addBlob("text/plain", []byte("odd")))
	odd.MediaType = "application/vnd.example.odd+json" // and is a manifest
	unknown := f.addBlob("application/wasm", []byte("no manifest at all"))
	lost := f.addArtifact(t, "application/vnd.example.inner", empty, f.addBlob("text/plain", []byte("inner")))
	nested := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: f.addIndex(t, "nested", lost)}
	nested.Size = int64(len(f.manifests[nested.Digest.String()]))
	others = map[digest.Digest]bool{about.Digest: true, chart.Digest: true, odd.Digest: true, lost.Digest: true, nested.Digest: true}
	for d := range f.blobs {
		if !images[d] {
			others[d] = true
		}
	}
	return f.addIndex(t, name, chart, own, other, about, odd, unknown, nested, again), about.Digest, others
}

// TestWholeIndex: with all platforms comes all that an index leads to, whatever it is, and goes with it; with one nothing
// of it does.
func TestWholeIndex(t *testing.T) {
	r := newRig(t)
	index, _, others := r.registry.wholeIndex(t, "multi:1", []byte(`{"sbom":1}`))
	r.mustPull("multi:1")
	r.expect(3, 1)
	for d := range others {
		if n := r.registry.requests[d]; n > 0 {
			t.Errorf("a pull for one platform asked %d times for %s", n, d)
		}
	}
	for range 2 {
		all, err := r.puller.PullPlatforms(context.Background(), Request{Name: parse("multi:1")})
		if err != nil || len(all) != 4 {
			t.Fatalf("%+v, %v", all, err)
		}
		// The index, an image, another one in two compressions, and the rest.
		r.expect(1+3+5+len(others), 2)
		r.restart()
	}
	found, err := r.images.Find("multi:1")
	if err != nil {
		t.Fatal(err)
	}
	f, err := r.images.Family(found)
	if err != nil || f.Index != index {
		t.Fatalf("%+v, %v", f, err)
	}
	here := map[digest.Digest]bool{}
	for _, d := range f.Tree.Digests() {
		here[d] = true
		if err := r.store.Verify(d); err != nil {
			t.Error(err)
		}
	}
	for d := range others {
		if !here[d] {
			t.Errorf("%s is not of the family", d)
		}
	}
	if _, err := r.images.Prune(images.Rules{All: true}); err != nil {
		t.Fatal(err)
	}
	r.expect(0, 0)
}

// TestF20IncompleteIndex: what an index leads to and the registry does not have, or has damaged, fails the pull of all
// platforms, by name; the index is not here then, and the image without it can still be pulled.
func TestF20IncompleteIndex(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(f *fakeRegistry, attestation, statement digest.Digest)
		kind   fault.Kind
	}{
		"no manifest": {func(f *fakeRegistry, d, _ digest.Digest) { delete(f.manifests, d.String()) }, fault.NotFound},
		"no blob":     {func(f *fakeRegistry, _, d digest.Digest) { delete(f.blobs, d) }, fault.NotFound},
		"other blob":  {func(f *fakeRegistry, _, d digest.Digest) { f.blobs[d] = []byte(`{"sbom":2}`) }, fault.DataLoss},
		"longer blob": {func(f *fakeRegistry, _, d digest.Digest) { f.blobs[d] = []byte(`{"sbom":123}`) }, fault.DataLoss},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			statement := []byte(`{"sbom":1}`)
			index, attestation, _ := r.registry.wholeIndex(t, "multi:1", statement)
			c.damage(r.registry, attestation, digest.FromBytes(statement))
			_, err := r.puller.PullPlatforms(context.Background(), Request{Name: parse("multi:1")})
			if fault.KindOf(err) != c.kind || fault.ReasonOf(err) != "INDEX_INCOMPLETE" || fault.HintOf(err) == "" {
				t.Fatalf("%s, %v", fault.ReasonOf(err), err)
			}
			r.settle(2*3, 2) // the images, by digest; of one in two compressions the last
			if _, err := r.images.Find("multi:1"); !fault.Is(err, fault.NotFound) {
				t.Errorf("the name is here: %v", err)
			}
			if _, err := r.store.Size(index); err == nil {
				t.Error("the index is here")
			}
			r.mustPull("multi:1")
		})
	}
}

// TestF19AttestationGoesOn: of a large document that was cut off only the rest is fetched.
func TestF19AttestationGoesOn(t *testing.T) {
	r := newRig(t)
	statement := bytes.Repeat([]byte(" "), 6<<20)
	r.registry.wholeIndex(t, "multi:1", statement)
	r.registry.dieAt = 5 << 20
	if _, err := r.puller.PullPlatforms(context.Background(), Request{Name: parse("multi:1")}); !fault.Is(err, fault.Unavailable) {
		t.Fatal(err)
	}
	r.puller.Wait()
	if r.kept() != 5<<20 {
		t.Errorf("%d bytes are kept", r.kept())
	}
	r.registry.dieAt = 0
	all, err := r.puller.PullPlatforms(context.Background(), Request{Name: parse("multi:1")})
	if err != nil {
		t.Fatal(err)
	}
	if n := all[len(all)-1].Downloaded; n >= 2<<20 || n < 1<<20 {
		t.Errorf("%d bytes were fetched again", n)
	}
}
