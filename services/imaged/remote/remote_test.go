package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"berth/internal/fault"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"
	registrytest "berth/test/registry"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// world is two real registries, one of which wants TLS and a login.
type world struct {
	*testing.T
	open, closed *registrytest.Registry
	remote       *Remote
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, open: registrytest.Start(t, registrytest.Options{}), closed: registrytest.Start(t, registrytest.Options{Auth: true, TLS: true})}
	client := registry.New(registry.Options{Hosts: map[string]registry.Host{w.closed.Host: {CAFiles: []string{w.closed.CAFile}}}})
	t.Cleanup(client.Close)
	w.remote = &Remote{Registry: client, Copies: 3}
	return w
}

// at names an image in the open registry, or with "closed/" before it in the other.
func (w *world) at(name string) Place {
	w.Helper()
	rest, closed := strings.CutPrefix(name, "closed/")
	text, p := w.open.Ref(rest), Place{}
	if closed {
		text, p.Auth = w.closed.Ref(rest), registry.Auth{Username: registrytest.User, Password: registrytest.Password}
	}
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		w.Fatal(err)
	}
	p.Name = reference.TagNameOnly(named)
	return p
}

func (w *world) pushBlob(p Place, mediaType string, b []byte) ocispec.Descriptor {
	w.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	if _, err := w.remote.Registry.PushBlob(w.Context(), p.repository(), d, open, "", p.Auth, nil); err != nil {
		w.Fatal(err)
	}
	return d
}

// pushImage makes an image of one layer for an architecture.
func (w *world) pushImage(name, arch string) digest.Digest {
	w.Helper()
	p := w.at(name)
	layer := w.pushBlob(p, ocispec.MediaTypeImageLayer, bytes.Repeat([]byte("layer of "+arch+"\n"), 20_000))
	config := fmt.Sprintf(`{"os":"linux","architecture":%q,"rootfs":{"type":"layers","diff_ids":[%q]}}`, arch, layer.Digest)
	raw, d, err := manifest.New(w.pushBlob(p, ocispec.MediaTypeImageConfig, []byte(config)), []ocispec.Descriptor{layer})
	if err != nil {
		w.Fatal(err)
	}
	if _, err := w.remote.Registry.PushManifest(w.Context(), p.Name, ocispec.MediaTypeImageManifest, raw, p.Auth); err != nil {
		w.Fatal(err)
	}
	return d
}

func (w *world) resolve(name string) (digest.Digest, error) {
	p := w.at(name)
	d, err := w.remote.Registry.Resolve(w.Context(), p.Name, p.Auth)
	return d.Digest, err
}

func (w *world) mustResolve(name string) digest.Digest {
	w.Helper()
	d, err := w.resolve(name)
	if err != nil {
		w.Fatal(err)
	}
	return d
}

func TestIndexAndCopy(t *testing.T) {
	w := newWorld(t)
	amd, arm := w.pushImage("one:amd", "amd64"), w.pushImage("two/deep:arm", "arm64")
	index, err := w.remote.CreateIndex(t.Context(), w.at("multi:1"), []Source{{Place: w.at("one:amd")}, {Place: w.at("two/deep:arm"), Annotations: map[string]string{"a": "b"}}}, map[string]string{"who": "me"})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.mustResolve("multi:1"); got != index {
		t.Errorf("the tag is %s, not %s", got, index)
	}
	raw, desc, err := w.remote.Manifest(t.Context(), w.at("multi:1"), "")
	if err != nil {
		t.Fatal(err)
	}
	var doc ocispec.Index
	if err := json.Unmarshal(raw, &doc); err != nil || desc.Digest != index || doc.Annotations["who"] != "me" || len(doc.Manifests) != 2 || doc.Manifests[1].Annotations["a"] != "b" ||
		doc.Manifests[0].Platform.Architecture != "amd64" || doc.Manifests[1].Platform.Architecture != "arm64" {
		t.Fatalf("%s, %v", raw, err)
	}
	for platform, want := range map[string]digest.Digest{"linux/amd64": amd, "linux/arm64": arm} {
		if _, d, err := w.remote.Manifest(t.Context(), w.at("multi:1"), platform); err != nil || d.Digest != want {
			t.Errorf("%s: %s, %v", platform, d.Digest, err)
		}
	}

	// To a registry that wants TLS and a login.
	states := map[digest.Digest]State{}
	progress := make(chan Progress, 1000)
	done, err := w.remote.Copy(t.Context(), CopyRequest{From: w.at("multi:1"), To: w.at("closed/copy:1"), Progress: func(p Progress) { progress <- p }})
	close(progress)
	for p := range progress {
		states[p.Blob] = p.State
	}
	if err != nil || done.Digest != index || done.Manifests != 3 || done.Blobs != 4 || done.Bytes < 400_000 || len(states) != 4 {
		t.Fatalf("%+v, %v, %v", done, states, err)
	}
	if got := w.mustResolve("closed/copy:1"); got != index {
		t.Errorf("copied as %s", got)
	}
	// Again, and within a registry: nothing is sent.
	for _, to := range []string{"closed/copy:2", "closed/elsewhere/x:1"} {
		from := w.at("closed/copy:1")
		if done, err := w.remote.Copy(t.Context(), CopyRequest{From: from, To: w.at(to)}); err != nil || done.Bytes != 0 || done.Digest != index {
			t.Errorf("%s: %+v, %v", to, done, err)
		}
	}
	if done, err := w.remote.Copy(t.Context(), CopyRequest{From: w.at("multi:1"), To: w.at("closed/arm:1"), Platform: "linux/arm64"}); err != nil || done.Digest != arm || done.Manifests != 1 {
		t.Errorf("one platform: %+v, %v", done, err)
	}
	anonymous := w.at("closed/copy:3")
	anonymous.Auth = registry.Auth{}
	if _, err := w.remote.Copy(t.Context(), CopyRequest{From: w.at("multi:1"), To: anonymous}); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("without login: %v", err)
	}
	if _, err := w.remote.Copy(t.Context(), CopyRequest{From: w.at("none:1"), To: w.at("x:1")}); !fault.Is(err, fault.NotFound) {
		t.Errorf("no source: %v", err)
	}
	if _, err := w.remote.CreateIndex(t.Context(), w.at("bad:1"), []Source{{Place: w.at("multi:1"), Platform: "linux/s390x"}}, nil); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("platform of an index: %v", err)
	}
	if _, err := w.remote.CreateIndex(t.Context(), w.at("bad:1"), nil, nil); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("no sources: %v", err)
	}
	if _, err := w.resolve("bad:1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a refused index was pushed: %v", err)
	}
}

func TestListsAndDelete(t *testing.T) {
	w := newWorld(t)
	first := w.pushImage("app:1", "amd64")
	w.pushImage("app:2", "amd64") // the same manifest
	w.pushImage("team/web:latest", "arm64")
	client, ctx := w.remote.Registry, t.Context()
	if repos, err := client.Repositories(ctx, w.open.Host, registry.Auth{}); err != nil || fmt.Sprint(repos) != "[app team/web]" {
		t.Errorf("%v, %v", repos, err)
	}
	tags := func() []string {
		all, err := client.Tags(ctx, w.at("app").repository(), registry.Auth{})
		if err != nil {
			t.Error(err)
		}
		slices.Sort(all)
		return all
	}
	if got := tags(); fmt.Sprint(got) != "[1 2]" {
		t.Errorf("%v", got)
	}
	// docker-registry deletes manifests only: the other tag of the same one must stay.
	if err := client.Delete(ctx, w.at("app:1").Name, registry.Auth{}); err != nil {
		t.Fatal(err)
	}
	if got := w.mustResolve("app:2"); got != first || fmt.Sprint(tags()) != "[2]" {
		t.Errorf("app:2 is %s, tags %v", got, tags())
	}
	if _, err := w.resolve("app:1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("app:1: %v", err)
	}
	if err := client.Delete(ctx, w.at("app:1").Name, registry.Auth{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("twice: %v", err)
	}
	byDigest, err := w.at("app").at(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Delete(ctx, byDigest.Name, registry.Auth{}); err != nil {
		t.Error(err)
	}
	if _, err := w.resolve("app:2"); !fault.Is(err, fault.NotFound) {
		t.Errorf("app:2: %v", err)
	}
	if _, err := client.Tags(ctx, w.at("none").repository(), registry.Auth{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("tags of nothing: %v", err)
	}
	if _, err := client.Repositories(ctx, "127.0.0.1:5000/x", registry.Auth{}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("odd host: %v", err)
	}
}

func TestArtifacts(t *testing.T) {
	w := newWorld(t)
	subject := w.pushImage("app:1", "amd64")
	file := func(name, content string) File {
		return File{Name: name, MediaType: "text/plain", Size: int64(len(content)), Digest: digest.FromString(content),
			Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }}
	}
	beside := w.at("app:1")
	beside.Name = beside.repository()
	sbom, err := w.remote.Push(t.Context(), beside, Artifact{Type: "application/spdx+json", Subject: w.at("app:1").Name, Annotations: map[string]string{"by": "test"},
		Files: []File{file("sbom.json", `{"spdx":1}`), file("empty", "")}})
	if err != nil {
		t.Fatal(err)
	}
	signature, err := w.remote.Push(t.Context(), beside, Artifact{Type: "application/vnd.test.signature", Subject: w.at("app:1").Name})
	if err != nil {
		t.Fatal(err)
	}
	list := func(p Place, artifactType string) (all []digest.Digest) {
		t.Helper()
		found, err := w.remote.Registry.Referrers(t.Context(), p.repository(), subject, artifactType, p.Auth)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range found {
			all = append(all, d.Digest)
		}
		return all
	}
	if got := list(w.at("app:1"), ""); !slices.Equal(got, []digest.Digest{sbom, signature}) {
		t.Errorf("referrers %v, want %s and %s", got, sbom, signature)
	}
	if got := list(w.at("app:1"), "application/spdx+json"); !slices.Equal(got, []digest.Digest{sbom}) {
		t.Errorf("of one type: %v", got)
	}
	if _, err := w.remote.Copy(t.Context(), CopyRequest{From: w.at("app:1"), To: w.at("closed/app:1"), Referrers: true}); err != nil {
		t.Fatal(err)
	}
	closed := w.at("closed/app:1")
	if got := list(closed, ""); !slices.Equal(got, []digest.Digest{sbom, signature}) {
		t.Errorf("copied referrers: %v", got)
	}
	from, err := closed.at(sbom)
	if err != nil {
		t.Fatal(err)
	}
	files, err := w.remote.Files(t.Context(), from)
	if err != nil || len(files) != 2 || files[0].Name != "sbom.json" || files[0].MediaType != "text/plain" {
		t.Fatalf("%+v, %v", files, err)
	}
	var content bytes.Buffer
	if err := w.remote.Read(t.Context(), from, files[0], &content); err != nil || content.String() != `{"spdx":1}` {
		t.Errorf("%q, %v", content.String(), err)
	}
	for name, a := range map[string]Artifact{
		"type": {Type: "nonsense"}, "name": {Type: "a/b", Files: []File{file("../x", "y")}}, "no name": {Type: "a/b", Files: []File{file("", "y")}},
	} {
		if _, err := w.remote.Push(t.Context(), w.at("bad:1"), a); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A registry that gives an artifact's file a name that leads elsewhere, or damages what is copied.
func TestS17HostileSource(t *testing.T) {
	good := digest.FromString("good")
	serve := http.NewServeMux()
	document := func(name string, layers string) {
		raw := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"a/b","digest":%q,"size":4},"layers":[%s]}`, ocispec.MediaTypeImageManifest, good, layers))
		serve.HandleFunc("/v2/bad/manifests/"+name, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			rw.Write(raw)
		})
	}
	layer := func(name string) string {
		title, _ := json.Marshal(name)
		return fmt.Sprintf(`{"mediaType":"a/b","digest":%q,"size":4,"annotations":{"org.opencontainers.image.title":%s}}`, good, title)
	}
	names := map[string]string{"up": "../x", "abs": "/etc/passwd", "dots": "..", "null": "a\x00b", "line": "a\nb", "long": strings.Repeat("x", 300)}
	for tag, name := range names {
		document(tag, layer(name))
	}
	document("twice", layer("a")+","+layer("a"))
	document("wrong", layer("fine"))
	serve.HandleFunc("/v2/bad/blobs/", func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, "evil") })
	s := httptest.NewServer(serve)
	defer s.Close()
	w := newWorld(t)
	at := func(tag string) Place {
		named, err := reference.ParseNormalizedNamed(strings.TrimPrefix(s.URL, "http://") + "/bad:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		return Place{Name: named}
	}
	for tag := range names {
		if files, err := w.remote.Files(t.Context(), at(tag)); !fault.Is(err, fault.DataLoss) {
			t.Errorf("%s: %v, %v", tag, files, err)
		}
	}
	if files, err := w.remote.Files(t.Context(), at("twice")); !fault.Is(err, fault.DataLoss) {
		t.Errorf("twice: %v, %v", files, err)
	}
	files, err := w.remote.Files(t.Context(), at("wrong"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.remote.Read(t.Context(), at("wrong"), files[0], io.Discard); !fault.Is(err, fault.DataLoss) {
		t.Errorf("damaged content: %v", err)
	}
	if _, err := w.remote.Copy(t.Context(), CopyRequest{From: at("wrong"), To: w.at("copy:1")}); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("damaged copy: %v", err)
	}
	if _, err := w.resolve("copy:1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the damaged copy is there: %v", err)
	}
}
