package serve

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/faultpoint"
	"berth/services/imaged/hosted"
	"berth/services/imaged/images"
	"berth/services/imaged/store"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestPushMakesImages: what is pushed is an image of the store, by the registry's name, survives a restart, and goes with
// everything that was pushed with it.
func TestPushMakesImages(t *testing.T) {
	r := newRig(t, anybody())
	own, _ := r.arch()
	i := r.pushImage("team/app", "v1", own, "one")
	for range 2 {
		found, err := r.images.Find("localhost:5000/team/app:v1")
		if err != nil || found.ID != i.config.Digest || found.Manifest != i.desc.Digest {
			t.Fatalf("image is %+v, %v", found, err)
		}
		use, err := r.images.Use(found.ID)
		if err != nil || len(use.Layers) != 1 || strings.Join(use.Config.Config.Cmd, " ") != "/file" {
			t.Fatalf("a container would get %+v, %v", use, err)
		}
		r.images.Unuse(found.ID)
		a := r.as("", "GET", "/v2/team/app/manifests/v1", "")
		if r.want(a, 200, ""); a.body != string(i.raw) || a.header.Get("Docker-Content-Digest") != i.desc.Digest.String() {
			t.Errorf("manifest comes back as %q", a.body)
		}
		r.want(r.as("", "GET", "/v2/team/app/blobs/"+i.layer.Digest.String(), ""), 200, "")
		r.restart()
	}
	r.wantFiles(3, 0, 1)

	// Another compression of the same image in another repository takes nothing from the first.
	m := strings.Replace(string(i.raw), `"layers":`, `"annotations":{"a":"b"},"layers":`, 1)
	r.want(r.putManifest("other", "v1", []byte(m), i.desc.MediaType), http.StatusCreated, "")
	if a := r.do("GET", "/v2/team/app/manifests/"+i.desc.Digest.String(), ""); a.body != string(i.raw) {
		t.Errorf("the first manifest is now %q", a.body)
	}
	if a := r.do("GET", "/v2/other/manifests/v1", ""); a.body != m {
		t.Errorf("the second manifest is %q", a.body)
	}

	// rmi takes what was pushed under the name, and what nothing else needs.
	removal, err := r.images.Remove("localhost:5000/team/app:v1", false)
	r.check(err)
	_, err = r.hosted.Unnamed(removal.Untagged)
	r.check(err)
	r.want(r.do("GET", "/v2/team/app/manifests/"+i.desc.Digest.String(), ""), 404, manifestUnknown)
	r.want(r.do("GET", "/v2/other/manifests/v1", ""), 200, "")
	r.want(r.do("DELETE", "/v2/other/manifests/"+digest.FromString(m).String(), ""), 202, "")
	_, err = r.hosted.DropLoose(0)
	r.check(err)
	r.wantFiles(0, 0, 0)
	if n := len(r.images.List()); n != 0 {
		t.Errorf("%d images are left", n)
	}
}

// TestPushIndex: an index stands for the image for this host; those for others are images too, named by digest, and all of
// it stays while the index does.
func TestPushIndex(t *testing.T) {
	r := newRig(t, anybody())
	own, other := r.arch()
	mine, theirs := r.pushParts("app", own, "mine"), r.pushParts("app", other, "theirs")
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{theirs.desc, mine.desc}}
	index.SchemaVersion = 2
	raw := r.json(index)
	r.want(r.putManifest("app", "multi", raw, index.MediaType), 400, manifestBlobUnknown)
	for _, i := range []image{mine, theirs} {
		r.want(r.putManifest("app", i.desc.Digest.String(), i.raw, i.desc.MediaType), 201, "")
	}
	r.want(r.putManifest("app", "multi", raw, index.MediaType), 201, "")
	found, err := r.images.Find("localhost:5000/app:multi")
	if err != nil || found.ID != mine.config.Digest {
		t.Errorf("the index means %+v, %v", found, err)
	}
	if i, err := r.images.For(found, "linux/"+other); err != nil || i.ID != theirs.config.Digest {
		t.Errorf("for %s it means %+v, %v", other, i, err)
	}
	r.restart()
	if f, err := r.images.Family(found); err != nil || f.Index != digest.FromBytes(raw) || len(f.Tree.Manifests) != 2 {
		t.Errorf("the family is %+v, %v", f, err)
	}
	if n := len(r.images.List()); n != 2 {
		t.Errorf("%d images, want those of both platforms", n)
	}
	if a := r.do("GET", "/v2/app/manifests/multi", ""); a.body != string(raw) || a.header.Get("Content-Type") != index.MediaType {
		t.Errorf("the index comes back as %s %q", a.header.Get("Content-Type"), a.body)
	}
	_, err = r.hosted.Prune(0)
	r.check(err)
	r.want(r.do("GET", "/v2/app/manifests/"+theirs.desc.Digest.String(), ""), 200, "")

	removal, err := r.images.Remove("localhost:5000/app:multi", true)
	r.check(err)
	_, err = r.hosted.Unnamed(removal.Untagged)
	r.check(err)
	r.want(r.do("GET", "/v2/app/manifests/"+theirs.desc.Digest.String(), ""), 404, manifestUnknown)
	_, err = r.hosted.DropLoose(0)
	r.check(err)
	r.wantFiles(0, 0, 0)
}

// TestPruneCountsPushes: what a removal of pushed images frees is all that they took, and a dry run says so beforehand.
func TestPruneCountsPushes(t *testing.T) {
	r := newRig(t, anybody())
	own, other := r.arch()
	mine, theirs := r.pushParts("app", own, "mine"), r.pushParts("app", other, "theirs")
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{theirs.desc, mine.desc}}
	index.SchemaVersion = 2
	for _, i := range []image{mine, theirs} {
		r.want(r.putManifest("app", i.desc.Digest.String(), i.raw, i.desc.MediaType), 201, "")
	}
	r.want(r.putManifest("app", "multi", r.json(index), index.MediaType), 201, "")
	r.pushImage("single", "v1", own, "single")
	r.prune(images.Rules{All: true}, hosted.Never)
	left := r.images.Usage()
	if left.Images != 0 {
		t.Errorf("%d images are left", left.Images)
	}
	r.prune(images.Rules{}, 0) // and what was not needed, but waited for manifests
	if left = r.images.Usage(); left.Blobs != 0 {
		t.Errorf("%d bytes are left", left.Blobs)
	}
}

// TestPruneCountsUntagged: a dry run counts the images, too, that go only because the registry's manifests do that name
// them: by digest, or by a tag that moved on.
func TestPruneCountsUntagged(t *testing.T) {
	r := newRig(t, anybody())
	own, other := r.arch()
	digestOnly, moved := r.pushParts("app", own, "digest only"), r.pushImage("app", "v1", other, "moved")
	r.want(r.putManifest("app", digestOnly.desc.Digest.String(), digestOnly.raw, digestOnly.desc.MediaType), 201, "")
	stays := r.pushImage("app", "v1", own, "stays")
	used := r.pushParts("app", own, "used by a container")
	r.want(r.putManifest("app", used.desc.Digest.String(), used.raw, used.desc.MediaType), 201, "")
	_, err := r.images.Use(used.config.Digest)
	r.check(err)
	none := func(images.Info) bool { return false } // of the images themselves
	removal := r.prune(images.Rules{Match: none}, 0)
	for _, i := range []image{digestOnly, moved} {
		if _, ok := r.images.Get(i.config.Digest); ok || !slices.Contains(removal.Deleted, i.config.Digest) {
			t.Errorf("image %s is here: %v, told of: %v", i.config.Digest, ok, removal.Deleted)
		}
	}
	for _, i := range []image{stays, used} {
		if _, ok := r.images.Get(i.config.Digest); !ok {
			t.Errorf("image %s is gone", i.config.Digest)
		}
	}
}

// prune does what a prune does, and makes sure that a dry run tells of just that.
func (r *rig) prune(rules images.Rules, age time.Duration) images.Removal {
	r.Helper()
	before := r.images.Usage()
	rules.DryRun = true
	dry, err := r.images.Prune(rules)
	r.check(err)
	rules.Follows = r.hosted.Follows(dry.Untagged, age)
	dry, err = r.images.Prune(rules)
	r.check(err)
	if again := r.images.Usage(); again != before {
		r.Errorf("a dry run changed %+v to %+v", before, again)
	}
	rules.DryRun = false
	removal, err := r.images.Prune(rules)
	r.check(err)
	for _, f := range []func() (images.Removal, error){
		func() (images.Removal, error) { return r.hosted.Unnamed(removal.Untagged) },
		func() (images.Removal, error) {
			n, err := r.hosted.DropLoose(age)
			return images.Removal{Bytes: n}, err
		},
		func() (images.Removal, error) { return r.hosted.Prune(age) },
	} {
		more, err := f()
		r.check(err)
		removal.Add(more)
	}
	after := r.images.Usage()
	if freed := before.Blobs + before.LayerBytes - after.Blobs - after.LayerBytes; removal.Bytes != freed || dry.Bytes != freed {
		r.Errorf("%d bytes were freed, of which the removal tells %d and the dry run %d", freed, removal.Bytes, dry.Bytes)
	}
	for _, all := range [][]string{dry.Untagged, removal.Untagged} {
		slices.Sort(all)
	}
	slices.Sort(dry.Deleted)
	slices.Sort(removal.Deleted)
	if !slices.Equal(dry.Untagged, removal.Untagged) || !slices.Equal(dry.Deleted, removal.Deleted) {
		r.Errorf("removed were\n%v %v, the dry run said\n%v %v", removal.Untagged, removal.Deleted, dry.Untagged, dry.Deleted)
	}
	return removal
}

// TestTagMoves: a tag has one owner, image or artifact.
func TestTagMoves(t *testing.T) {
	r := newRig(t, anybody())
	own, _ := r.arch()
	i := r.pushImage("app", "v1", own, "one")
	empty := r.pushBlob("app", []byte("{}"))
	artifact := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "x/y", Config: empty, Layers: []ocispec.Descriptor{empty}}
	artifact.SchemaVersion = 2
	raw := r.json(artifact)
	for range 2 {
		r.want(r.putManifest("app", "v1", raw, artifact.MediaType), 201, "")
		if a := r.do("GET", "/v2/app/manifests/v1", ""); a.body != string(raw) {
			t.Errorf("tag is %q, want the artifact", a.body)
		}
		if _, err := r.images.Find("localhost:5000/app:v1"); err == nil {
			t.Error("the image still has the tag")
		}
		r.restart()
		r.want(r.putManifest("app", "v1", i.raw, i.desc.MediaType), 201, "")
		if a := r.do("GET", "/v2/app/manifests/v1", ""); a.body != string(i.raw) {
			t.Errorf("tag is %q, want the image", a.body)
		}
	}
	a := r.do("GET", "/v2/app/tags/list", "")
	if a.body != `{"name":"app","tags":["v1"]}` {
		t.Errorf("tags are %s", a.body)
	}
}

// TestStoreIsServed: images that came here otherwise can be pulled under their whole name, those of Docker's registry
// under their path, and cannot be replaced.
func TestStoreIsServed(t *testing.T) {
	r := newRig(t, anybody())
	own, _ := r.arch()
	i := r.pushImage("app", "v1", own, "one")
	for _, name := range []string{"debian:12", "registry.corp:5000/web:1", "localhost:5000/again:1"} {
		named, err := parse(name)
		r.check(err)
		r.check(r.images.Tag(i.config.Digest, named))
	}
	for _, path := range []string{"docker.io/library/debian/manifests/12", "library/debian/manifests/12", "registry.corp_5000/web/manifests/1", "again/manifests/1"} {
		if a := r.as("", "GET", "/v2/"+path, ""); a.status != 200 || a.body != string(i.raw) {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	r.want(r.as("", "GET", "/v2/library/debian/blobs/"+i.layer.Digest.String(), ""), 200, "")
	r.want(r.as("", "GET", "/v2/library/none/blobs/"+i.layer.Digest.String(), ""), 404, blobUnknown)
	if a := r.as("", "GET", "/v2/_catalog", ""); a.body != `{"repositories":["again","app","docker.io/library/debian","registry.corp_5000/web"]}` {
		t.Errorf("catalog is %s", a.body)
	}
	if a := r.as("", "GET", "/v2/_catalog?n=2&last=again", ""); a.body != `{"repositories":["app","docker.io/library/debian"]}` || !strings.Contains(a.header.Get("Link"), "last=docker.io%2Flibrary%2Fdebian") {
		t.Errorf("page is %s, %s", a.body, a.header.Get("Link"))
	}
	for _, path := range []string{"docker.io/library/debian", "registry.corp_5000/web", "localhost/x"} {
		r.want(r.putManifest(path, "12", i.raw, i.desc.MediaType), 403, denied)
		r.want(r.do("POST", "/v2/"+path+"/blobs/uploads/", ""), 403, denied)
		r.want(r.do("DELETE", "/v2/"+path+"/manifests/12", ""), 403, denied)
	}
	// A push to the mirror's path makes an image of the registry's own name.
	r.pushImage("library/debian", "12", own, "mine")
	if found, err := r.images.Find("debian:12"); err != nil || found.ID != i.config.Digest {
		t.Errorf("debian:12 is now %+v, %v", found, err)
	}
}

// TestIndexIsServed: an image that came with an index can be pulled by the index's digest, and by tag as the index if all
// of it is here.
func TestIndexIsServed(t *testing.T) {
	r := newRig(t, anybody())
	own, other := r.arch()
	mine, theirs := r.pushParts("app", own, "mine"), r.pushParts("app", other, "theirs")
	for _, i := range []image{mine, theirs} {
		r.want(r.putManifest("app", i.desc.Digest.String(), i.raw, i.desc.MediaType), 201, "")
	}
	statement := r.pushBlob("app", []byte(`{"sbom":1}`))
	about := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "x/y", Config: r.pushBlob("app", []byte("{}")), Layers: []ocispec.Descriptor{statement}}
	about.SchemaVersion = 2
	attestation := r.json(about)
	r.want(r.putManifest("app", "sbom", attestation, about.MediaType), 201, "")
	aboutDesc := ocispec.Descriptor{MediaType: about.MediaType, Digest: digest.FromBytes(attestation), Size: int64(len(attestation))}
	for tag, all := range map[string][]ocispec.Descriptor{"whole": {mine.desc, aboutDesc}, "partly": {theirs.desc, mine.desc, aboutDesc}} {
		index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: all}
		index.SchemaVersion = 2
		raw := r.json(index)
		r.want(r.putManifest("app", tag, raw, index.MediaType), 201, "")
		d := digest.FromBytes(raw)
		ref := images.Ref{Image: mine.config.Digest, Target: d, Index: d, Tree: []digest.Digest{
			mine.desc.Digest, mine.config.Digest, mine.layer.Digest, aboutDesc.Digest, about.Config.Digest, statement.Digest,
		}}
		r.check(r.images.Point(map[string]images.Ref{"docker.io/library/debian:" + tag: ref}))
		want, mediaType := string(mine.raw), mine.desc.MediaType
		if tag == "whole" {
			want, mediaType = string(raw), index.MediaType
		}
		if a := r.as("", "GET", "/v2/library/debian/manifests/"+tag, ""); a.status != 200 || a.body != want || a.header.Get("Content-Type") != mediaType {
			t.Errorf("%s: %d %s %s", tag, a.status, a.header.Get("Content-Type"), a.body)
		}
		if a := r.as("", "GET", "/v2/docker.io/library/debian/manifests/"+d.String(), ""); a.status != 200 || a.body != string(raw) || a.header.Get("Content-Type") != index.MediaType {
			t.Errorf("%s, by digest: %d %s", tag, a.status, a.body)
		}
		r.want(r.as("", "GET", "/v2/library/debian/manifests/"+mine.desc.Digest.String(), ""), 200, "")
	}
	// What else the index lists is there, too.
	if a := r.as("", "GET", "/v2/library/debian/manifests/"+aboutDesc.Digest.String(), ""); a.status != 200 || a.body != string(attestation) || a.header.Get("Content-Type") != about.MediaType {
		t.Errorf("attestation: %d %s %s", a.status, a.header.Get("Content-Type"), a.body)
	}
	r.want(r.as("", "GET", "/v2/library/debian/blobs/"+statement.Digest.String(), ""), 200, "")
	r.want(r.as("", "GET", "/v2/library/debian/manifests/"+statement.Digest.String(), ""), 404, manifestUnknown)
	r.want(r.as("", "GET", "/v2/library/debian/blobs/"+theirs.layer.Digest.String(), ""), 404, blobUnknown)
}

// TestConcurrentPushes: many clients push images that share a layer, at once and the same tags.
func TestConcurrentPushes(t *testing.T) {
	r := newRig(t, anybody())
	own, _ := r.arch()
	var work sync.WaitGroup
	for n := range 24 {
		work.Go(func() { r.pushImage(fmt.Sprintf("app%d", n%3), fmt.Sprintf("v%d", n%4), own, fmt.Sprint(n%6)) })
	}
	work.Wait()
	for n := range 24 {
		r.want(r.do("GET", fmt.Sprintf("/v2/app%d/manifests/v%d", n%3, n%4), ""), 200, "")
	}
	r.wantFiles(6*3, 0, 6)
	if n := len(r.images.List()); n != 6 {
		t.Errorf("%d images, want 6", n)
	}
}

// TestUploadsLeaveNothing: uploads that nobody ends are gone after a while, with a restart in between or not, and so are
// blobs that no manifest came for.
func TestUploadsLeaveNothing(t *testing.T) {
	r := newRig(t, anybody())
	var places []string
	for range 3 {
		a := r.do("POST", "/v2/app/blobs/uploads/", "")
		r.want(a, 202, "")
		places = append(places, a.header.Get("Location"))
		r.want(r.do("PATCH", a.header.Get("Location"), "half of it"), 202, "")
	}
	r.wantFiles(0, 3, 0)
	r.want(r.do("DELETE", places[0], ""), 204, "")
	r.want(r.do("PATCH", places[0], "more"), 404, uploadUnknown)
	r.wantFiles(0, 2, 0)
	r.server.discard(func(u *upload) bool { return time.Since(u.touched) < store.UploadAge })
	r.wantFiles(0, 0, 0)
	for range 2 {
		r.want(r.do("POST", "/v2/app/blobs/uploads/", ""), 202, "")
	}
	r.pushBlob("app", []byte("wanted later"))
	r.restart()
	r.wantFiles(1, 2, 0)
	r.server.discard(func(u *upload) bool { return time.Since(u.touched) < store.UploadAge })
	r.wantFiles(1, 0, 0)
	r.want(r.do("POST", "/v2/app/blobs/uploads/", ""), 202, "")
	r.close()
	files, err := filepath.Glob(filepath.Join(r.dir, "upload/*"))
	r.check(err)
	long := time.Now().Add(-store.UploadAge - time.Minute)
	for _, f := range files {
		r.check(os.Chtimes(f, long, long))
	}
	r.open()
	r.wantFiles(1, 0, 0)
	if _, err := r.hosted.DropLoose(time.Hour); err != nil {
		t.Fatal(err)
	}
	r.wantFiles(1, 0, 0)
	if n, err := r.hosted.DropLoose(0); err != nil || n != int64(len("wanted later")) {
		t.Errorf("freed %d bytes, %v", n, err)
	}
	r.wantFiles(0, 0, 0)
}

// TestF01PushCut ends a push between the record of its manifest and that of its image. Without either the next start has
// a registry that works, and the push done once more is whole.
func TestF01PushCut(t *testing.T) {
	r := newRig(t, anybody())
	own, _ := r.arch()
	i := r.pushParts("app", own, "one")
	r.check(faultpoint.Arm("imaged.manifest-hosted=1*error"))
	if a := r.putManifest("app", "v1", i.raw, i.desc.MediaType); a.status != 500 {
		t.Fatalf("got %d, want the fault point's error", a.status)
	}
	r.restart()
	if n := len(r.images.List()); n != 0 {
		t.Errorf("%d images of half a push", n)
	}
	r.want(r.do("GET", "/v2/app/manifests/v1", ""), 404, manifestUnknown)
	r.want(r.putManifest("app", "v1", i.raw, i.desc.MediaType), 201, "")
	if _, err := r.images.Find("localhost:5000/app:v1"); err != nil {
		t.Error(err)
	}
	r.want(r.do("DELETE", "/v2/app/manifests/"+i.desc.Digest.String(), ""), 202, "")
	_, err := r.hosted.DropLoose(0)
	r.check(err)
	r.wantFiles(0, 0, 0)
}
