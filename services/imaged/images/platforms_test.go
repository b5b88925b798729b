package images

import (
	"encoding/json"
	"testing"
	"time"

	"berth/internal/journal"
	"berth/services/imaged/manifest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestIndexStays: the index of an image for several platforms is here as long as a name has it, over a restart too.
func TestIndexStays(t *testing.T) {
	r := newRig(t, t.TempDir())
	one := r.add(image{created: day(1), layers: [][]byte{layerTar("a", "1")}, names: []string{"app@"}})
	two := r.add(image{created: day(2), layers: [][]byte{layerTar("a", "2")}, names: []string{"app@"}})
	indexOf := func(ids ...digest.Digest) digest.Digest {
		doc := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
		doc.SchemaVersion = 2
		for n, id := range ids {
			i, _ := r.images.Get(id)
			size, err := r.store.Size(i.Manifest)
			r.check(err)
			doc.Manifests = append(doc.Manifests, ocispec.Descriptor{MediaType: i.MediaType, Digest: i.Manifest, Size: size,
				Platform: &ocispec.Platform{OS: "linux", Architecture: []string{"amd64", "arm64"}[n]}})
		}
		raw, err := json.Marshal(doc)
		r.check(err)
		l := r.images.Lease()
		defer l.Release()
		d := digest.FromBytes(raw)
		r.check(l.AddDocument(raw, d))
		tree, err := manifest.ReadTree(doc.Manifests, func(d ocispec.Descriptor) ([]byte, error) { return r.store.ReadAll(d.Digest, 1<<20) })
		r.check(err)
		named, err := ParseName("app:1")
		r.check(err)
		r.images.mu.Lock()
		defer r.images.mu.Unlock()
		r.check(r.images.name(&journal.Batch{}, map[string]Ref{Key(named): {Image: ids[0], Target: d, Index: d, Tree: tree.Digests(), Since: time.Now()}}, func() {}))
		return d
	}
	here := func(what string, d digest.Digest, want bool) {
		t.Helper()
		if _, err := r.store.Size(d); (err == nil) != want {
			t.Errorf("%s: the index is here: %v", what, err == nil)
		}
	}
	both := indexOf(one, two)
	r.restart()
	here("after a restart", both, true)
	found, err := r.images.Find("app:1")
	r.check(err)
	f, err := r.images.Family(found)
	if err != nil || len(f.Tree.Manifests) != 2 || len(f.Tree.Blobs) != 4 || f.Index != both {
		t.Errorf("%+v, %v", f, err)
	}
	named, err := ParseName("other.example/app:2")
	r.check(err)
	r.check(r.images.Tag(one, named))
	reversed := indexOf(two, one)
	here("the tag moved on, another is left", both, true)
	undo := func(back digest.Digest) {
		t.Helper()
		app, err := ParseName("app:1")
		r.check(err)
		_, _, err = r.images.Undo(app)
		r.check(err)
		if r, _, _ := r.images.RefOf(Key(app)); r.Index != back || (len(r.Tree) > 0) != (back != "") {
			t.Errorf("after the undo the name is %+v, want index %q", r, back)
		}
	}
	undo(both)
	undo("") // to the other image, whose index had no name meanwhile
	reversed = indexOf(two, one)
	_, err = r.images.Remove("other.example/app:2", false)
	r.check(err)
	here("no name is left", both, false)
	here("the new one", reversed, true)
	i, _ := r.images.Get(one)
	_, err = r.images.Remove("app@"+i.Manifest.String(), false)
	r.check(err)
	r.restart()
	if _, ok := r.images.Get(one); ok {
		t.Error("the image of a platform was removed and is here")
	}
	found, err = r.images.Find("app:1")
	r.check(err)
	if f, err := r.images.Family(found); err != nil || len(f.Tree.Manifests) != 2 {
		t.Errorf("the image of a platform was removed, and the index is not whole: %+v, %v", f.Tree, err)
	}
	here("after another restart", reversed, true)
	dry, err := r.images.Prune(Rules{All: true, DryRun: true})
	r.check(err)
	before := r.images.Usage()
	removal, err := r.images.Prune(Rules{All: true})
	if err != nil || removal.Bytes != dry.Bytes || removal.Bytes != before.Blobs+before.LayerBytes {
		t.Errorf("%d bytes went of %d, a dry run said %d: %v", removal.Bytes, before.Blobs+before.LayerBytes, dry.Bytes, err)
	}
	here("everything is gone", reversed, false)
	r.restart()
	if n := r.counts(); n != "0 0" {
		t.Errorf("left: %s", n)
	}
}
