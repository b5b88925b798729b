package registry

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/internal/fault"
	registrytest "berth/test/registry"
)

// named parses a reference as the command line does.
func named(t testing.TB, s string) reference.Named {
	t.Helper()
	ref, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func randomBlob(t testing.TB, size int) ([]byte, ocispec.Descriptor) {
	t.Helper()
	b := make([]byte, size)
	_, _ = rand.Read(b)
	return b, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(size)}
}

func opener(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

func manifestOf(t testing.TB, config, layer ocispec.Descriptor) []byte {
	t.Helper()
	raw, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    []ocispec.Descriptor{layer},
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// roundTrip pushes an image and reads it back in every way there is.
func roundTrip(t *testing.T, c *Client, host string, auth Auth) {
	t.Helper()
	ctx := t.Context()
	repo := named(t, host+"/team/web")
	layer, layerDesc := randomBlob(t, 3<<20)
	config, configDesc := []byte(`{"os":"linux"}`), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig}
	configDesc.Digest, configDesc.Size = digest.FromBytes(config), int64(len(config))

	var sent int64
	skipped, err := c.PushBlob(ctx, repo, layerDesc, opener(layer), "", auth, func(n int64) { sent = n })
	if err != nil || skipped || sent != layerDesc.Size {
		t.Fatalf("PushBlob: skipped %v, sent %d of %d, %v", skipped, sent, layerDesc.Size, err)
	}
	if skipped, err = c.PushBlob(ctx, repo, layerDesc, opener(layer), "", auth, nil); err != nil || !skipped {
		t.Fatalf("PushBlob again: skipped %v, %v", skipped, err)
	}
	if _, err = c.PushBlob(ctx, repo, configDesc, opener(config), "", auth, nil); err != nil {
		t.Fatal(err)
	}
	empty := ocispec.Descriptor{Digest: digest.FromBytes(nil)}
	if _, err = c.PushBlob(ctx, repo, empty, opener(nil), "", auth, nil); err != nil {
		t.Fatalf("push the empty blob: %v", err)
	}
	never := func() (io.ReadCloser, error) { return nil, errors.New("was not to be opened") }
	if skipped, err = c.PushBlob(ctx, named(t, host+"/team/copy"), layerDesc, never, "team/web", auth, nil); err != nil || !skipped {
		t.Fatalf("mount from another repository: skipped %v, %v", skipped, err)
	}

	raw := manifestOf(t, configDesc, layerDesc)
	tagged, _ := reference.WithTag(repo, "v1")
	dgst, err := c.PushManifest(ctx, tagged, ocispec.MediaTypeImageManifest, raw, auth)
	if err != nil || dgst != digest.FromBytes(raw) {
		t.Fatalf("PushManifest: %s, %v", dgst, err)
	}
	want := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: dgst, Size: int64(len(raw))}
	digested, _ := reference.WithDigest(repo, dgst)
	for _, ref := range []reference.Named{tagged, digested} {
		if got, err := c.Resolve(ctx, ref, auth); err != nil || !same(got, want) {
			t.Errorf("Resolve(%s) = %+v, %v", ref, got, err)
		}
		got, desc, err := c.Manifest(ctx, ref, auth)
		if err != nil || !same(desc, want) || !bytes.Equal(got, raw) {
			t.Errorf("Manifest(%s) = %q, %+v, %v", ref, got, desc, err)
		}
	}
	for _, offset := range []int64{0, 1, layerDesc.Size / 2, layerDesc.Size - 1, layerDesc.Size} {
		if got := readBlob(t, c, repo, layerDesc, offset, auth); !bytes.Equal(got, layer[offset:]) {
			t.Errorf("Blob from %d: %d wrong bytes", offset, len(got))
		}
	}
	if got := readBlob(t, c, repo, empty, 0, auth); len(got) != 0 {
		t.Errorf("empty blob has %d bytes", len(got))
	}
	if err := c.Ping(ctx, host, auth); err != nil {
		t.Errorf("Ping: %v", err)
	}
}

func same(a, b ocispec.Descriptor) bool {
	return a.MediaType == b.MediaType && a.Digest == b.Digest && a.Size == b.Size
}

func readBlob(t *testing.T, c *Client, repo reference.Named, desc ocispec.Descriptor, offset int64, auth Auth) []byte {
	t.Helper()
	rc, err := c.Blob(t.Context(), repo, desc, offset, auth)
	if err != nil {
		t.Fatalf("Blob from %d: %v", offset, err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatalf("read blob from %d: %v", offset, err)
	}
	return b
}

// wantError asserts kind and text, and that no secret of the test's is in it.
func wantError(t *testing.T, err error, kind fault.Kind, text string) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("no error, want %v: %s", kind, text)
	case !errors.Is(err, kind):
		t.Errorf("error is not %q: %v", kind, err)
	case !strings.Contains(told(err), text):
		t.Errorf("error = %q, want it to contain %q", told(err), text)
	case strings.Contains(err.Error(), registrytest.Password), strings.Contains(err.Error(), "\n"):
		t.Errorf("error tells too much: %q", err)
	}
}

// told is what a user reads: the sentence, then the hint.
func told(err error) string { return err.Error() + " (" + fault.HintOf(err) + ")" }

var account = Auth{Username: registrytest.User, Password: registrytest.Password}

func TestRealRegistryPlain(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{})
	c := New(Options{})
	roundTrip(t, c, reg.Host, Auth{})

	_, _, err := c.Manifest(t.Context(), named(t, reg.Ref("foo:bar")), Auth{})
	wantError(t, err, fault.NotFound, "pull "+reg.Host+"/foo:bar: not found in registry "+reg.Host+" (check the name and tag)")
	_, err = c.Resolve(t.Context(), named(t, reg.Ref("foo:bar")), Auth{})
	wantError(t, err, fault.NotFound, "pull "+reg.Host+"/foo:bar: not found in registry "+reg.Host+" (check the name and tag)")
	_, desc := randomBlob(t, 10)
	_, err = c.Blob(t.Context(), named(t, reg.Ref("team/web")), desc, 0, Auth{})
	wantError(t, err, fault.NotFound, "blob "+desc.Digest.String()+" not found")

	reg.Stop()
	err = c.Ping(t.Context(), reg.Host, Auth{})
	wantError(t, err, fault.Unavailable, "connect to registry "+reg.Host+": connection refused (is it running?)")
	reg.Restart()
	if err := c.Ping(t.Context(), reg.Host, Auth{}); err != nil {
		t.Errorf("after restart: %v", err)
	}
}

func TestRealRegistryBasicAuth(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{Auth: true})
	c := New(Options{})
	roundTrip(t, c, reg.Host, account)
	wantError(t, c.Ping(t.Context(), reg.Host, Auth{}), fault.Unauthenticated, "registry "+reg.Host+" asks for a login (log in with: berth login "+reg.Host+")")
	wrong := Auth{Username: registrytest.User, Password: "wrong-marker"}
	err := c.Ping(t.Context(), reg.Host, wrong)
	wantError(t, err, fault.Unauthenticated, "does not accept this user name and password")
	if strings.Contains(err.Error(), "wrong-marker") {
		t.Errorf("password in error: %v", err)
	}
	_, err = c.Resolve(t.Context(), named(t, reg.Ref("team/web:v1")), Auth{})
	wantError(t, err, fault.Unauthenticated, "asks for a login")
}

func TestRealRegistryTLS(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{TLS: true, Auth: true})
	roundTrip(t, New(Options{Hosts: map[string]Host{reg.Host: {CAFiles: []string{reg.CAFile}}}}), reg.Host, account)
	roundTrip(t, New(Options{Hosts: map[string]Host{reg.Host: {Insecure: true}}}), reg.Host, account)

	err := New(Options{}).Ping(t.Context(), reg.Host, account)
	wantError(t, err, fault.FailedPrecondition, "connect to registry "+reg.Host+": its certificate is signed by an unknown authority")
	missing := New(Options{Hosts: map[string]Host{reg.Host: {CAFiles: []string{"/nonexistent/ca.pem"}}}})
	wantError(t, missing.Ping(t.Context(), reg.Host, account), fault.FailedPrecondition, "read CA file")
	if strings.Contains(reg.Log(), `"GET / `) || strings.Contains(reg.Log(), "client sent an HTTP request") {
		t.Errorf("clear HTTP was tried:\n%s", reg.Log())
	}
	if b, err := os.ReadFile(reg.CAFile); err != nil || len(b) == 0 {
		t.Errorf("CA file: %v", err)
	}
}

// TestCertsDir wants a client certificate, and trusts a CA, by files alone.
func TestCertsDir(t *testing.T) {
	ca := registrytest.NewCA(t)
	dir := t.TempDir()
	caFile := filepath.Join(dir, "clients.pem")
	put := func(file string, content []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(caFile, ca.PEM)
	reg := registrytest.Start(t, registrytest.Options{TLS: true, ClientCA: caFile})
	certs := filepath.Join(dir, "certs.d")
	c := New(Options{CertsDir: certs})
	wantError(t, c.Ping(t.Context(), reg.Host, Auth{}), fault.FailedPrecondition, "put its CA certificate into "+certs)

	serverCA, err := os.ReadFile(reg.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	put(filepath.Join(certs, reg.Host, "ca.crt"), serverCA)
	wantError(t, New(Options{CertsDir: certs}).Ping(t.Context(), reg.Host, Auth{}), fault.FailedPrecondition, "it may want a client certificate")

	cert, key := ca.Issue(t, "client")
	put(filepath.Join(certs, reg.Host, "client.cert"), cert)
	put(filepath.Join(certs, reg.Host, "client.key"), key)
	if err := New(Options{CertsDir: certs}).Ping(t.Context(), reg.Host, Auth{}); err != nil {
		t.Error(err)
	}
}
