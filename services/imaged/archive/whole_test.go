package archive

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	"berth/services/imaged/images"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// artifact makes the blobs of a manifest that is no image, and its descriptor.
func artifact(t testing.TB, artifactType string, config []byte, mediaType string, layers ...[]byte) ([]item, ocispec.Descriptor) {
	t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType, Config: descOf(ocispec.MediaTypeImageConfig, config)}
	m.SchemaVersion = 2
	items := []item{blobItem(config)}
	for _, l := range layers {
		m.Layers = append(m.Layers, descOf(mediaType, l))
		items = append(items, blobItem(l))
	}
	raw := jsonOf(t, m)
	desc := descOf(m.MediaType, raw)
	desc.ArtifactType = artifactType
	return append(items, blobItem(raw)), desc
}

// attestation is what builders add to an index about an image.
func attestation(t testing.TB, about ocispec.Descriptor, statements ...[]byte) ([]item, ocispec.Descriptor) {
	t.Helper()
	items, desc := artifact(t, "", []byte(`{"os":"unknown","for":"`+about.Digest.String()+`"}`), "application/vnd.in-toto+json", statements...)
	desc.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	desc.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": about.Digest.String()}
	return items, desc
}

// wholeArchive has an index of two platforms, attestations about both with an SBOM that is larger than any manifest, and an
// artifact whose blobs look like a layer and are none.
func wholeArchive(t testing.TB) []item {
	t.Helper()
	own, ownDesc := ociImage(t, "amd64", "gzip", layerTar(t, "arch", "amd64"))
	other, otherDesc := ociImage(t, "arm64", "gzip", layerTar(t, "arch", "arm64"))
	large := append(bytes.Repeat([]byte(`{"sbom":1}`+strings.Repeat(" ", 1000)), 6000), '\n')
	about, aboutDesc := attestation(t, ownDesc, []byte(`{"provenance":1}`), large)
	about2, about2Desc := attestation(t, otherDesc, []byte(`{"provenance":2}`))
	chart, chartDesc := artifact(t, "application/vnd.example.chart", []byte("{}"), "application/gzip", []byte("\x1f\x8b\x08 but no archive"), []byte("plain"))
	index := jsonOf(t, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{otherDesc, ownDesc, aboutDesc, about2Desc, chartDesc}})
	index = bytes.Replace(index, []byte(`"schemaVersion":0`), []byte(`"schemaVersion":2`), 1)
	items := once(slices.Concat([]item{ociLayoutItem()}, own, other, about, about2, chart, []item{blobItem(index)}))
	return append(items, indexItem(t, called(descOf(ocispec.MediaTypeImageIndex, index), "docker.io/library/multi:1")))
}

func (r *rig) loadAll(archive []byte) ([]Loaded, error) {
	return r.loader.Load(context.Background(), LoadRequest{Archive: bytes.NewReader(archive), AllPlatforms: true})
}

func (r *rig) saveAll(name string) []byte {
	r.Helper()
	var out bytes.Buffer
	if err := r.saver.Save(context.Background(), SaveRequest{Images: []string{name}, Format: OCI, AllPlatforms: true}, &out); err != nil {
		r.Fatal(err)
	}
	return out.Bytes()
}

// TestWholeArchive: an index is loaded and saved with all that it leads to, whatever that is and however large, and the
// archive saved of that is the same again. It goes whole, too.
func TestWholeArchive(t *testing.T) {
	items := wholeArchive(t)
	blobs := len(items) - 2 // oci-layout, index.json
	from := newRig(t)
	if loaded, err := from.loadAll(tarOf(t, items...)); err != nil || len(loaded) != 2 {
		t.Fatalf("%+v, %v", loaded, err)
	}
	from.expect(blobs, 2)
	from.restart()
	from.expect(blobs, 2)
	archive := from.saveAll("multi:1")
	for _, i := range items {
		if strings.HasPrefix(i.name, blobsDir) && !bytes.Contains(archive, i.body) {
			t.Errorf("%s is not in the archive", i.name)
		}
	}
	to := newRig(t)
	if _, err := to.loadAll(archive); err != nil {
		t.Fatal(err)
	}
	to.expect(blobs, 2)
	if !bytes.Equal(to.saveAll("multi:1"), archive) {
		t.Error("saved again, the archive is another one")
	}
	if _, err := to.images.Prune(images.Rules{All: true}); err != nil {
		t.Fatal(err)
	}
	to.expect(0, 0)
}

// TestOneOfAWholeArchive: of one platform nothing else is loaded, and what is wrong with the rest does not matter.
func TestOneOfAWholeArchive(t *testing.T) {
	items := slices.DeleteFunc(wholeArchive(t), func(i item) bool {
		return bytes.Contains(i.body, []byte(`"provenance"`))
	})
	r := newRig(t)
	loaded := r.mustLoad(tarOf(t, items...))
	if len(loaded) != 1 || r.content(loaded[0].ID, "arch") != "amd64" {
		t.Fatalf("%+v", loaded)
	}
	r.images.Prune(images.Rules{All: true})
	r.expect(0, 0)
}

// TestF20IncompleteArchive: what an index leads to and the archive lacks or has damaged is told, and nothing is loaded. What
// it lists and the archive leaves out, as docker does with platforms that it does not have, is not missed.
func TestF20IncompleteArchive(t *testing.T) {
	is := func(text string) func(item) bool {
		return func(i item) bool { return bytes.HasPrefix(i.body, []byte(text)) }
	}
	for name, c := range map[string]struct {
		drop func(item) bool
		want string // in the error; empty: it loads
	}{
		"a small blob":          {is(`{"provenance":2}`), "lacks blob"},
		"a large blob":          {is(`{"sbom"`), "lacks blob"},
		"what looks as a layer": {is("\x1f\x8b\x08 but"), "lacks blob"},
		"a manifest": {func(i item) bool {
			return bytes.Contains(i.body, []byte(`"artifactType":"application/vnd.example.chart","config"`)) && i.name != indexFile
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			items := wholeArchive(t)
			at := slices.IndexFunc(items, c.drop)
			if at < 0 {
				t.Fatal("the archive does not have it")
			}
			r := newRig(t)
			_, err := r.loadAll(tarOf(t, slices.Delete(slices.Clone(items), at, at+1)...))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("lacking it: %v", err)
			}
			if c.want == "" {
				return
			}
			r.expect(0, 0)
			items[at].body = append(bytes.Clone(items[at].body), ' ')
			if _, err := r.loadAll(tarOf(t, items...)); err == nil || !strings.Contains(err.Error(), "blob") {
				t.Errorf("it is damaged: %v", err)
			}
			r.expect(0, 0)
		})
	}
}

// TestS13LargeBlobs: a blob that is no layer is limited as layers are, and documents that are too much for memory go to the
// disk.
func TestS13LargeBlobs(t *testing.T) {
	r := newRig(t)
	r.loader.Workers.Inflate.Bytes = 5 << 20
	if _, err := r.loadAll(tarOf(t, wholeArchive(t)...)); err == nil || !strings.Contains(err.Error(), "has more than 5242880 bytes") {
		t.Errorf("a blob of 6 MB: %v", err)
	}
	r.expect(0, 0)

	items := wholeArchive(t)
	_, desc := ociImage(t, "amd64", "gzip", layerTar(t, "arch", "amd64"))
	var statements [][]byte
	for n := range 24 {
		statements = append(statements, append(bytes.Repeat([]byte(" "), 3<<20), byte('a'+n)))
		statements[n][0] = '{'
	}
	more, moreDesc := attestation(t, desc, statements...)
	index := jsonOf(t, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc, moreDesc}})
	index = bytes.Replace(index, []byte(`"schemaVersion":0`), []byte(`"schemaVersion":2`), 1)
	// The documents that are needed come last, when there is no room in memory any more.
	items = slices.Concat(more[1:len(more)-1], []item{more[0], more[len(more)-1]}, items[1:], []item{blobItem(index), ociLayoutItem()})
	items = slices.DeleteFunc(once(items), func(i item) bool { return i.name == indexFile })
	items = append(items, indexItem(t, called(descOf(ocispec.MediaTypeImageIndex, index), "docker.io/library/large:1")))
	r = newRig(t)
	if _, err := r.loadAll(tarOf(t, items...)); err != nil {
		t.Fatal(err)
	}
	r.expect(1+3+2+24, 1)
	one := newRig(t)
	if loaded := one.mustLoad(tarOf(t, items...)); len(loaded) != 1 {
		t.Errorf("%+v", loaded)
	}
	one.expect(3, 1)
}
