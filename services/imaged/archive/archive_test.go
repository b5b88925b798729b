package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"berth/internal/fault"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestRoundTrip: what was saved loads into an empty store as the same images
// with the same digests, and saving it again gives the same bytes.
func TestRoundTrip(t *testing.T) {
	for _, compression := range []string{"none", "gzip", "zstd"} {
		for _, format := range []Format{Docker, OCI} {
			t.Run(compression+" "+string(format), func(t *testing.T) {
				a, b, c := layerTar(t, "a", "1"), layerTar(t, "b", "2"), layerTar(t, "a", "3")
				one, oneDesc := ociImage(t, "amd64", compression, a, b, c, a)
				two, twoDesc := ociImage(t, "amd64", compression, a, b)
				items := once(append(append([]item{ociLayoutItem()}, one...), two...))
				items = append(items, indexItem(t, called(oneDesc, "docker.io/library/one:1"), called(oneDesc, "host:5000/two/names:x"), called(twoDesc, "docker.io/library/two:latest")))
				from := newRig(t)
				loaded := from.mustLoad(tarOf(t, items...))
				if len(loaded) != 2 || names(loaded[0]) != "one:1 host:5000/two/names:x" || names(loaded[1]) != "two:latest" {
					t.Fatalf("loaded %v", loaded)
				}
				if a, b := from.content(loaded[0].ID, "a"), from.content(loaded[0].ID, "b"); a != "1" || b != "2" {
					t.Errorf("a=%q b=%q", a, b)
				}
				from.expect(7, 3)
				all := []string{"one:1", "host:5000/two/names:x", "two"}
				archive := from.mustSave(format, all...)

				to := newRig(t)
				again := to.mustLoad(archive)
				if fmt.Sprint(again) != fmt.Sprint(loaded) {
					t.Errorf("loaded %v, then %v", loaded, again)
				}
				to.expect(7, 3)
				found, err := to.images.Find("one:1")
				if err != nil || found.Manifest != oneDesc.Digest {
					t.Errorf("manifest %s instead of %s, %v", found.Manifest, oneDesc.Digest, err)
				}
				if err := to.images.Verify(found.ID); err != nil {
					t.Error(err)
				}
				to.restart()
				if !bytes.Equal(to.mustSave(format, all...), archive) {
					t.Error("saved again, the archive is another one")
				}
				if id := to.mustSave(format, loaded[1].ID.String()); bytes.Contains(id, []byte("library/two")) {
					t.Error("an image saved by its id has a name in the archive")
				}
			})
		}
	}
}

// TestForms: the archives of other tools, made by hand.
func TestForms(t *testing.T) {
	a, b := layerTar(t, "a", "1"), layerTar(t, "b", "2")
	config := configOf(t, "amd64", a, b)
	configName := digest.FromBytes(config).Encoded() + ".json"
	_, gz := compress(t, "gzip", b)
	forms := map[string][]item{
		"docker before 25": {
			{name: "l1/", typ: tar.TypeDir}, file1("l1/VERSION", []byte("1.0")), file1("l1/json", []byte("{}")), file1("l1/layer.tar", a),
			{name: "l2/", typ: tar.TypeDir}, file1("l2/layer.tar", b),
			file1(configName, config), manifestItem(t, dockerImage{configName, []string{"app:1"}, []string{"l1/layer.tar", "l2/layer.tar"}}),
			file1("repositories", []byte(`{"app":{"1":"l2"}}`)),
		},
		"links, before and after their targets": {
			symlink("l1/layer.tar", "../store/a.tar"), file1("store/a.tar", a), file1("store/b.tar", b),
			{name: "l2/layer.tar", typ: tar.TypeLink, link: "store/b.tar"}, symlink("l3", "l2/layer.tar"),
			file1(configName, config), manifestItem(t, dockerImage{configName, []string{"app:1"}, []string{"l1/layer.tar", "l3"}}),
		},
		"compressed layers, other names": {
			manifestItem(t, dockerImage{"c", []string{"app:1"}, []string{"./x.tar", "y.tar.gz"}}),
			file1("./x.tar", a), file1("./y.tar.gz", gz), file1("./c", config),
		},
	}
	for name, items := range forms {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			plain := tarOf(t, items...)
			for _, compression := range []string{"none", "gzip", "zstd"} {
				_, archive := compress(t, compression, plain)
				loaded := r.mustLoad(archive)
				if len(loaded) != 1 || names(loaded[0]) != "app:1" || loaded[0].ID != digest.FromBytes(config) {
					t.Fatalf("%s: loaded %v", compression, loaded)
				}
				if a, b := r.content(loaded[0].ID, "a"), r.content(loaded[0].ID, "b"); a != "1" || b != "2" {
					t.Errorf("a=%q b=%q", a, b)
				}
				r.expect(4, 2)
			}
			if _, err := r.images.Remove("app:1", false); err != nil {
				t.Fatal(err)
			}
			r.expect(0, 0)
		})
	}
}

// TestKeepsTheManifest: loading an image without a manifest leaves the one it
// has here, whose digest a registry knows.
func TestKeepsTheManifest(t *testing.T) {
	r := newRig(t)
	l := layerTar(t, "a", "1")
	items, desc := ociImage(t, "amd64", "gzip", l)
	r.mustLoad(tarOf(t, append(items, ociLayoutItem(), indexItem(t, called(desc, "docker.io/library/app:1")))...))
	config := configOf(t, "amd64", l)
	r.mustLoad(tarOf(t, file1("c", config), file1("l.tar", l), manifestItem(t, dockerImage{"c", []string{"app:2"}, []string{"l.tar"}})))
	found, err := r.images.Find("app:2")
	if err != nil || found.Manifest != desc.Digest {
		t.Errorf("manifest %s instead of %s, %v", found.Manifest, desc.Digest, err)
	}
	r.expect(3, 1)
}

func TestPlatforms(t *testing.T) {
	amd, amdDesc := ociImage(t, "amd64", "gzip", layerTar(t, "arch", "amd64"))
	arm, armDesc := ociImage(t, "arm64", "gzip", layerTar(t, "arch", "arm64"))
	index := indexItem(t, amdDesc, armDesc).body
	indexDesc := descOf(ocispec.MediaTypeImageIndex, index)
	name := called(indexDesc, "docker.io/library/multi:1")
	both := tarOf(t, append(append(amd, arm...), blobItem(index), ociLayoutItem(), indexItem(t, name))...)
	for platform, want := range map[string]string{"linux/arm64": "arm64", "linux/amd64": "amd64"} {
		r := newRig(t)
		loaded, err := r.loader.Load(context.Background(), LoadRequest{Archive: bytes.NewReader(both), Platform: platform})
		if err != nil || len(loaded) != 1 || names(loaded[0]) != "multi:1" {
			t.Fatalf("%s: %v, %v", platform, loaded, err)
		}
		if got := r.content(loaded[0].ID, "arch"); got != want {
			t.Errorf("%s: got %s", platform, got)
		}
		r.expect(3, 1)
		err = r.saver.Save(context.Background(), SaveRequest{Images: []string{"multi:1"}, Platform: "linux/s390x"}, io.Discard)
		if !errors.Is(err, fault.NotFound) {
			t.Errorf("save for another platform: %v", err)
		}
	}
	r := newRig(t)
	if _, err := r.loader.Load(context.Background(), LoadRequest{Archive: bytes.NewReader(both), Platform: "linux/s390x"}); !errors.Is(err, fault.NotFound) {
		t.Errorf("s390x: %v", err)
	}
	r.expect(0, 0)
	onlyArm := tarOf(t, append(arm, blobItem(index), ociLayoutItem(), indexItem(t, name))...)
	if l := r.mustLoad(onlyArm); r.content(l[0].ID, "arch") != "arm64" {
		t.Error("the only platform in the archive was not taken")
	}
}

// TestSharesLayers: of layers that are here nothing is kept twice, whatever the
// archive calls them.
func TestSharesLayers(t *testing.T) {
	r := newRig(t)
	l := layerTar(t, "a", strings.Repeat("content ", 100_000))
	config := configOf(t, "amd64", l)
	archive := tarOf(t, file1("c", config), file1("l.tar", l), manifestItem(t, dockerImage{"c", []string{"app:1"}, []string{"l.tar"}}))
	r.mustLoad(archive)
	var mu sync.Mutex
	last := map[string]State{}
	_, err := r.loader.Load(context.Background(), LoadRequest{Archive: bytes.NewReader(archive), Progress: func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		last[p.Layer] = p.State
	}})
	if err != nil || last["file:l.tar"] != Exists {
		t.Errorf("%v, %v", last, err)
	}
	r.expect(3, 1)
}

func TestSaveRepository(t *testing.T) {
	r := newRig(t)
	items, desc := ociImage(t, "amd64", "none", layerTar(t, "a", "1"))
	r.mustLoad(tarOf(t, append(items, ociLayoutItem(), indexItem(t, called(desc, "docker.io/library/app:1"), called(desc, "docker.io/library/app:2"), called(desc, "docker.io/library/app/x:3")))...))
	archive := r.mustSave(Docker, "app")
	for name, want := range map[string]bool{"library/app:1": true, "library/app:2": true, "app/x:3": false} {
		if bytes.Contains(archive, []byte(name)) != want {
			t.Errorf("%s in the archive: %v", name, !want)
		}
	}
	for _, name := range []string{"absent", "app:9", "Not//A:Name"} {
		if err := r.saver.Save(context.Background(), SaveRequest{Images: []string{"app:1", name}}, io.Discard); err == nil {
			t.Errorf("%s was saved", name)
		}
	}
}

// TestF11SaveSeesDamage: a damaged blob is not handed on.
func TestF11SaveSeesDamage(t *testing.T) {
	r := newRig(t)
	items, desc := ociImage(t, "amd64", "none", layerTar(t, "a", "content"))
	r.mustLoad(tarOf(t, append(items, ociLayoutItem(), indexItem(t, called(desc, "docker.io/library/app:1")))...))
	found, err := r.images.Find("app:1")
	if err != nil {
		t.Fatal(err)
	}
	path := r.dir + "/blobs/sha256/" + found.Layers[0].Blob.Encoded()
	flip(t, path)
	if err := r.saver.Save(context.Background(), SaveRequest{Images: []string{"app:1"}}, io.Discard); !errors.Is(err, fault.DataLoss) {
		t.Errorf("got %v", err)
	}
}

// TestManyLayers: more layers than are held at once.
func TestManyLayers(t *testing.T) {
	r := newRig(t)
	var items []item
	var layers [][]byte
	var files []string
	for i := range 3 * maxOpen {
		l := layerTar(t, fmt.Sprint("f", i), fmt.Sprint(i))
		layers = append(layers, l)
		files = append(files, fmt.Sprint(i, ".tar"))
		items = append(items, file1(files[i], l))
	}
	items = append(items, file1("c", configOf(t, "amd64", layers...)), manifestItem(t, dockerImage{"c", []string{"many:1"}, files}))
	loaded := r.mustLoad(tarOf(t, items...))
	if got := r.content(loaded[0].ID, "f100"); got != "100" {
		t.Errorf("got %q", got)
	}
}
