package remote

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"berth/services/imaged/manifest"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// metered is a registry seen through a proxy that counts what blobs it serves.
type metered struct {
	host   string
	served atomic.Int64
}

func meter(t *testing.T, host string) *metered {
	t.Helper()
	m := &metered{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
			w = &meteredWriter{w, m}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	m.host = strings.TrimPrefix(server.URL, "http://")
	return m
}

type meteredWriter struct {
	http.ResponseWriter
	m *metered
}

func (w *meteredWriter) Write(p []byte) (int, error) {
	w.m.served.Add(int64(len(p)))
	return w.ResponseWriter.Write(p)
}

// TestF19CopyGoesOn: a copy that was cancelled is gone on with by the next one, in the target by what it has of an upload and
// in the source by a range.
func TestF19CopyGoesOn(t *testing.T) {
	w := newWorld(t)
	const size = 80 << 20 // several chunks
	big := make([]byte, size)
	for rnd, i := rand.NewChaCha8([32]byte{1}), 0; i < size; i += 1 << 20 {
		rnd.Read(big[i : i+1<<20])
	}
	p := w.at("big:1")
	layer := w.pushBlob(p, ocispec.MediaTypeImageLayer, big)
	config := w.pushBlob(p, ocispec.MediaTypeImageConfig, []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["`+layer.Digest.String()+`"]}}`))
	raw, want, err := manifest.New(config, []ocispec.Descriptor{layer})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.remote.Registry.PushManifest(t.Context(), p.Name, ocispec.MediaTypeImageManifest, raw, p.Auth); err != nil {
		t.Fatal(err)
	}
	source := meter(t, w.open.Host)
	from := Place{Name: mustName(t, source.host+"/big:1")}
	to := w.at("closed/big:1")

	ctx, cancel := context.WithCancel(t.Context())
	_, err = w.remote.Copy(ctx, CopyRequest{From: from, To: to, Progress: func(p Progress) {
		if p.Blob == layer.Digest && p.Current > 0 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("the copy was not cancelled: %v", err)
	}
	if _, err := w.resolve("closed/big:1"); err == nil {
		t.Fatal("half an image has a tag")
	}
	source.served.Store(0)
	done, err := w.remote.Copy(t.Context(), CopyRequest{From: from, To: to})
	if err != nil || done.Digest != want {
		t.Fatalf("%+v, %v", done, err)
	}
	if n := source.served.Load(); n == 0 || n > size*9/10 {
		t.Errorf("the second copy had %d bytes of the source, of a blob of %d", n, size)
	}
	if got := w.mustResolve("closed/big:1"); got != want {
		t.Errorf("copied as %s, not %s", got, want)
	}
	body, err := w.remote.Registry.Blob(t.Context(), to.repository(), layer, 0, to.Auth)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	v := layer.Digest.Verifier()
	if _, err := io.Copy(v, body); err != nil || !v.Verified() {
		t.Errorf("the copy is not what the source has: %v", err)
	}
}

func mustName(t *testing.T, text string) reference.Named {
	t.Helper()
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		t.Fatal(err)
	}
	return named
}
