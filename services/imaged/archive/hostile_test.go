package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"berth/internal/fault"
	"berth/services/imaged/inflate"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func flip(t testing.TB, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// refusals are archives that must not load, by the row they belong to.
func refusals(t testing.TB) map[string]map[string][]byte {
	a, b := layerTar(t, "a", "1"), layerTar(t, "b", "2")
	config := configOf(t, "amd64", a)
	items, desc := ociImage(t, "amd64", "none", a)
	_, other := ociImage(t, "amd64", "none", b)
	app := called(desc, "docker.io/library/app:1")
	oci := func(more ...item) []byte {
		return tarOf(t, append(append([]item{ociLayoutItem()}, items...), more...)...)
	}
	docker := func(d dockerImage, more ...item) []byte {
		return tarOf(t, append([]item{file1("c", config), file1("a.tar", a), file1("b.tar", b), manifestItem(t, d)}, more...)...)
	}
	good := dockerImage{"c", []string{"app:1"}, []string{"a.tar"}}
	index := func(raw string) []byte { return oci(file1(indexFile, []byte(raw))) }
	hex := digest.FromString("x").Encoded()
	evil := func(d string) []byte {
		return index(`{"schemaVersion":2,"manifests":[{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + d + `","size":1}]}`)
	}
	badLayer := func(entries ...item) []byte {
		l := tarOf(t, entries...)
		c := configOf(t, "amd64", l)
		return tarOf(t, file1("c", c), file1("l", l), manifestItem(t, dockerImage{"c", []string{"app:1"}, []string{"l"}}))
	}
	plain := docker(good)
	return map[string]map[string][]byte{
		"S-11": {
			"entry ..":                   docker(good, file1("../evil", a)),
			"entry inside ..":            docker(good, file1("x/../../evil", a)),
			"absolute entry":             docker(good, file1("/etc/evil", a)),
			"layer outside":              docker(dockerImage{"c", nil, []string{"../../etc/passwd"}}),
			"layer absolute":             docker(dockerImage{"c", nil, []string{"/etc/passwd"}}),
			"config outside":             docker(dockerImage{"../../../etc/passwd", nil, nil}),
			"symlink outside":            docker(dockerImage{"c", nil, []string{"l"}}, symlink("l", "../../etc/passwd")),
			"absolute symlink":           docker(dockerImage{"c", nil, []string{"l"}}, symlink("l", "/etc/passwd")),
			"hard link outside":          docker(dockerImage{"c", nil, []string{"l"}}, item{name: "l", typ: tar.TypeLink, link: "../x"}),
			"link loop":                  docker(dockerImage{"c", nil, []string{"l"}}, symlink("l", "m"), symlink("m", "l")),
			"link to itself":             docker(dockerImage{"c", nil, []string{"l"}}, symlink("l", "l")),
			"link to a directory":        docker(dockerImage{"c", nil, []string{"l"}}, item{name: "d/", typ: tar.TypeDir}, symlink("l", "d")),
			"layer with ..":              badLayer(file1("../evil", a)),
			"layer through a link":       badLayer(symlink("d", "/"), file1("d/tmp/evil", a)),
			"layer hard links elsewhere": badLayer(item{name: "l", typ: tar.TypeLink, link: "/etc/passwd"}),
		},
		"S-13": {
			"truncated header":       plain[:300],
			"truncated entry":        plain[:len(plain)/2],
			"truncated gzip":         gz(t, plain)[:len(gz(t, plain))-5],
			"layer over its limit":   badLayer(item{name: "big", body: make([]byte, 65<<20)}),
			"sparse entry":           sparseArchive(t, docker),
			"manifest.json too long": tarOf(t, file1("c", config), file1("a.tar", a), file1(manifestFile, append([]byte(`[{"Config":"c","RepoTags":["`), append(bytes.Repeat([]byte("x"), 5<<20), `"]}]`...)...))),
			"deep JSON":              tarOf(t, file1("c", config), file1(manifestFile, []byte(strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000)))),
		},
		"S-15": {
			"entry twice":                    docker(good, file1("a.tar", b)),
			"entry twice, other spelling":    docker(good, file1("./a.tar", b)),
			"file and link":                  docker(good, symlink("a.tar", "b.tar")),
			"file and directory":             docker(good, item{name: "a.tar/", typ: tar.TypeDir}),
			"index.json twice":               oci(indexItem(t, app), indexItem(t, app)),
			"key twice":                      tarOf(t, file1("c", config), file1("a.tar", a), file1(manifestFile, []byte(`[{"Config":"c","Config":"d","RepoTags":null,"Layers":["a.tar"]}]`))),
			"key twice, other case":          tarOf(t, file1("c", config), file1("a.tar", a), file1(manifestFile, []byte(`[{"Config":"c","config":"c","RepoTags":null,"Layers":["a.tar"]}]`))),
			"index and manifest":             index(`{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}`),
			"manifest.json: other image":     oci(indexItem(t, app), file1("c", configOf(t, "arm64", a)), manifestItem(t, dockerImage{"c", []string{"app:1"}, []string{blobName(digest.FromBytes(a))}})),
			"manifest.json: other layers":    oci(indexItem(t, app), file1("b.tar", b), manifestItem(t, dockerImage{blobName(digest.FromBytes(config)), []string{"app:1"}, []string{"b.tar"}})),
			"manifest.json: same name":       twoMeanings(t),
			"one name for two images":        oneNameTwice(t),
			"one name, manifest.json":        docker2(t),
			"something follows":              append(bytes.Clone(plain), []byte("something follows the end mark")...),
			"another archive follows":        append(bytes.Clone(plain), plain...),
			"manifest with another size":     oci(indexItem(t, ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size + 1})),
			"manifest called an index":       oci(indexItem(t, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: desc.Digest, Size: desc.Size})),
			"layer the config does not have": docker(dockerImage{"c", nil, []string{"b.tar"}}),
			"layers that are too many":       docker(dockerImage{"c", nil, []string{"a.tar", "b.tar"}}),
			"layer called as a digest":       tarOf(t, file1("c", config), item{name: blobName(digest.FromBytes(b)), body: a}, manifestItem(t, dockerImage{"c", nil, []string{blobName(digest.FromBytes(b))}})),
			"document called as a digest":    tarOf(t, item{name: blobName(digest.FromBytes(b)), body: config}),
			"config called as a digest":      tarOf(t, file1(hex+".json", config), file1("a.tar", a), manifestItem(t, dockerImage{hex + ".json", nil, []string{"a.tar"}})),
		},
		"S-16": {
			"digest ..":           evil("sha256:../../../../etc/passwd"),
			"digest short":        evil("sha256:" + hex[:63]),
			"digest upper case":   evil("sha256:" + strings.ToUpper(hex)),
			"digest md5":          evil("md5:d41d8cd98f00b204e9800998ecf8427e"),
			"digest empty":        evil(""),
			"blob name ..":        oci(file1("blobs/sha256/..", a), indexItem(t, app)),
			"blob name short":     oci(file1("blobs/sha256/"+hex[:10], a), indexItem(t, app)),
			"blob name algorithm": oci(file1("blobs/md5/d41d8cd98f00b204e9800998ecf8427e", a), indexItem(t, app)),
			"blob name deep":      oci(file1("blobs/sha256/"+hex+"/x", a), indexItem(t, app)),
			"diff id":             tarOf(t, file1("c", []byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:../x"]}}`)), file1("a.tar", a), manifestItem(t, good)),
			"absent manifest":     oci(indexItem(t, called(other, "docker.io/library/app:1"))),
		},
		"S-19": {
			"device":              docker(good, item{name: "dev", typ: tar.TypeChar}),
			"fifo":                docker(good, item{name: "fifo", typ: tar.TypeFifo}),
			"name by digest":      docker(dockerImage{"c", []string{"app@sha256:" + hex}, []string{"a.tar"}}),
			"name of another":     oci(indexItem(t, called(desc, "docker.io/library/app@sha256:"+hex))),
			"name malformed":      docker(dockerImage{"c", []string{"../../x:1"}, []string{"a.tar"}}),
			"name upper case":     oci(indexItem(t, called(desc, "Docker.io/Library/App:1"))),
			"name with a newline": oci(indexItem(t, called(desc, "app:1\nother:2"))),
			"no images":           oci(file1(indexFile, []byte(`{"schemaVersion":2,"manifests":[]}`))),
			"no manifest":         tarOf(t, file1("c", config), file1("a.tar", a)),
			"no layout":           tarOf(t, append(items, indexItem(t, app))...),
			"layout of version 2": tarOf(t, append(items, indexItem(t, app), file1(layoutFile, []byte(`{"imageLayoutVersion":"2.0.0"}`)))...),
			"not an archive":      []byte(strings.Repeat("hello", 1000)),
			"empty":               {},
			"empty archive":       make([]byte, 1024),
		},
	}
}

func gz(t testing.TB, b []byte) []byte {
	_, z := compress(t, "gzip", b)
	return z
}

// sparseArchive has a file of a TiB that is all hole.
func sparseArchive(t testing.TB, docker func(dockerImage, ...item) []byte) []byte {
	body := make([]byte, 512)
	copy(body, "1\n1099511627776\n0\n")
	b := docker(dockerImage{"c", []string{"app:1"}, []string{"a.tar"}}, item{name: "sparse", body: body, pax: map[string]string{
		"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.name": "sparse", "XXX.sparse.realsize": "1099511627776"}})
	return bytes.ReplaceAll(b, []byte("XXX.sparse"), []byte("GNU.sparse")) // tar.Writer does not write such records
}

// twoMeanings names app:1 for one image in index.json, for another in manifest.json.
func twoMeanings(t testing.TB) []byte {
	a, b := layerTar(t, "a", "1"), layerTar(t, "b", "2")
	one, oneDesc := ociImage(t, "amd64", "none", a)
	two, twoDesc := ociImage(t, "amd64", "none", b)
	return tarOf(t, append(append(one, two...), ociLayoutItem(), indexItem(t, called(oneDesc, "docker.io/library/app:1"), twoDesc),
		manifestItem(t, dockerImage{blobName(digest.FromBytes(configOf(t, "amd64", b))), []string{"app:1"}, []string{blobName(digest.FromBytes(b))}}))...)
}

func oneNameTwice(t testing.TB) []byte {
	one, oneDesc := ociImage(t, "amd64", "none", layerTar(t, "a", "1"))
	two, twoDesc := ociImage(t, "amd64", "none", layerTar(t, "b", "2"))
	return tarOf(t, append(append(one, two...), ociLayoutItem(), indexItem(t, called(oneDesc, "docker.io/library/app:1"), called(twoDesc, "docker.io/library/app:1")))...)
}

func docker2(t testing.TB) []byte {
	a, b := layerTar(t, "a", "1"), layerTar(t, "b", "2")
	return tarOf(t, file1("c", configOf(t, "amd64", a)), file1("d", configOf(t, "amd64", b)), file1("a", a), file1("b", b),
		manifestItem(t, dockerImage{"c", []string{"app:1"}, []string{"a"}}, dockerImage{"d", []string{"app:1"}, []string{"b"}}))
}

func testRefusals(t *testing.T, row string) {
	r := newRig(t)
	canary, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	for name, archive := range refusals(t)[row] {
		l, err := r.load(archive)
		var f *fault.Error
		if !errors.As(err, &f) || f.Kind() != fault.InvalidArgument && f.Kind() != fault.DataLoss {
			t.Errorf("%s: %v, %v", name, l, err)
		} else if testing.Verbose() {
			t.Logf("%s: %v", name, err)
		}
		r.expect(0, 0)
		if n := len(r.images.List()); n != 0 {
			t.Fatalf("%s: %d images", name, n)
		}
	}
	if now, _ := os.ReadFile("/etc/passwd"); !bytes.Equal(now, canary) {
		t.Error("/etc/passwd was changed")
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines before, %d after", before, runtime.NumGoroutine())
}

func TestS11NothingOutside(t *testing.T) { testRefusals(t, "S-11") }

func TestS13Bombs(t *testing.T) { testRefusals(t, "S-13") }

func TestS15TwoMeanings(t *testing.T) { testRefusals(t, "S-15") }

func TestS16Digests(t *testing.T) { testRefusals(t, "S-16") }

func TestS19OnlyWhatIsNamed(t *testing.T) { testRefusals(t, "S-19") }

// TestS13CompressedBomb: an archive of few bytes that expands to very many is
// refused before the disk has them, and the disk is as it was.
func TestS13CompressedBomb(t *testing.T) {
	zeros := func(size int64) io.Reader { // an archive of one file of zeros, as far as anybody reads it
		var head bytes.Buffer
		tar.NewWriter(&head).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zeros.tar", Size: size, Mode: 0o644})
		return io.MultiReader(&head, io.LimitReader(zeroReader{}, min(size, 256<<20)))
	}
	r := newRig(t)
	r.loader.Workers.Inflate = inflate.Limits{Bytes: 128 << 20, Grace: 1 << 20, Ratio: 100}
	for name, archive := range map[string]io.Reader{
		"ratio":         gzipped(zeros(100 << 20)),
		"announced":     zeros(1 << 40),
		"in compressed": gzipped(zeros(1 << 40)),
	} {
		_, err := r.loader.Load(context.Background(), LoadRequest{Archive: archive})
		if !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
		t.Log(err)
		r.expect(0, 0)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// gzipped compresses what it reads.
func gzipped(in io.Reader) io.Reader {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	io.Copy(w, in)
	w.Close()
	return &out
}

// TestCancelled: a client that leaves in the middle leaves nothing behind.
func TestCancelled(t *testing.T) {
	r := newRig(t)
	archive := tarOf(t, file1("a.tar", layerTar(t, "a", strings.Repeat("x", 1<<20))), file1("b.tar", layerTar(t, "b", strings.Repeat("y", 1<<20))))
	for _, n := range []int{0, 100, 600, 1 << 20, len(archive) - 2000} {
		gone := errors.New("client is gone")
		_, err := r.loader.Load(context.Background(), LoadRequest{Archive: io.MultiReader(bytes.NewReader(archive[:n]), errReader{gone})})
		if !errors.Is(err, gone) {
			t.Errorf("after %d bytes: %v", n, err)
		}
		r.expect(0, 0)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// FuzzLoad: whatever comes, load answers, and what it refuses leaves nothing.
func FuzzLoad(f *testing.F) {
	a := layerTar(f, "a", "1")
	f.Add(tarOf(f, file1("c", configOf(f, "amd64", a)), file1("a.tar", a), manifestItem(f, dockerImage{"c", []string{"app:1"}, []string{"a.tar"}})))
	items, desc := ociImage(f, "amd64", "gzip", a)
	f.Add(tarOf(f, append(items, ociLayoutItem(), indexItem(f, called(desc, "docker.io/library/app:1")))...))
	for _, archives := range refusals(f) {
		for _, b := range archives {
			if len(b) < 64<<10 {
				f.Add(b)
			}
		}
	}
	r := newRig(f)
	f.Fuzz(func(t *testing.T, archive []byte) {
		loaded, err := r.load(archive)
		if err == nil && len(loaded) == 0 {
			t.Error("neither image nor error")
		}
		for _, l := range loaded {
			if _, err := r.images.Remove(l.ID.String(), true); err != nil {
				t.Error(err)
			}
		}
		if n := len(r.images.List()); n != 0 {
			t.Errorf("%d images left", n)
		}
	})
}
