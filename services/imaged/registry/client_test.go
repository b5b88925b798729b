package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"berth/internal/fault"
)

func TestIsLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1": true, "127.255.0.9:80": true, "[::1]": true, "[::1]:5000": true,
		"[::ffff:127.0.0.1]:5000": true, "128.0.0.1": false, "localhost.example": false, "127.0.0.1.example:80": false,
		"0.0.0.0:5000": false, "[::]:5000": false, "docker.io": false, "": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("isLoopback(%q) = %v", host, got)
		}
	}
}

func TestWhereNamesLead(t *testing.T) {
	for ref, want := range map[string]string{
		"nginx":                         "registry-1.docker.io library/nginx",
		"docker.io/team/web:1":          "registry-1.docker.io team/web",
		"index.docker.io/team/web":      "registry-1.docker.io team/web",
		"localhost/web":                 "localhost web",
		"127.0.0.1:5000/a/b/c:tag":      "127.0.0.1:5000 a/b/c",
		"[::1]:5000/web":                "[::1]:5000 web",
		"Registry.Example.COM/team/web": "Registry.Example.COM team/web",
	} {
		repo, err := parseRepository(named(t, ref))
		if got := repo.host + " " + repo.path; err != nil || got != want {
			t.Errorf("%s leads to %q, %v; want %q", ref, got, err, want)
		}
	}
}

func TestOrigin(t *testing.T) {
	for _, same := range [][2]string{{"https://a.test/x", "https://A.test:443/y?z"}, {"http://a.test", "http://a.test:80"}} {
		a, _ := url.Parse(same[0])
		b, _ := url.Parse(same[1])
		if origin(a) != origin(b) {
			t.Errorf("%s and %s differ", a, b)
		}
	}
	for _, differ := range [][2]string{{"https://a.test", "http://a.test"}, {"https://a.test", "https://a.test:8443"}, {"https://a.test", "https://b.a.test"}, {"https://a.test:80", "http://a.test:80"}} {
		a, _ := url.Parse(differ[0])
		b, _ := url.Parse(differ[1])
		if origin(a) == origin(b) {
			t.Errorf("%s and %s are the same", a, b)
		}
	}
}

// BenchmarkBlob reads 64 MiB over the loopback in clear; BenchmarkPlainHTTP is net/http
// doing the same, for comparison.
func BenchmarkBlob(b *testing.B) {
	blob, desc := randomBlob(b, 64<<20)
	s := httptest.NewServer(newFake(blob))
	defer s.Close()
	c := New(Options{})
	repo := named(b, s.Listener.Addr().String()+"/team/web")
	b.SetBytes(desc.Size)
	for b.Loop() {
		rc, err := c.Blob(b.Context(), repo, desc, 0, Auth{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(onlyWriter{}, rc, make([]byte, 128<<10)); err != nil {
			b.Fatal(err)
		}
		rc.Close()
	}
}

func BenchmarkPlainHTTP(b *testing.B) {
	blob, desc := randomBlob(b, 64<<20)
	s := httptest.NewServer(newFake(blob))
	defer s.Close()
	b.SetBytes(desc.Size)
	for b.Loop() {
		resp, err := http.Get(s.URL + "/v2/team/web/blobs/" + desc.Digest.String())
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.CopyBuffer(onlyWriter{}, resp.Body, make([]byte, 128<<10))
		resp.Body.Close()
	}
}

// onlyWriter hides io.Discard's ReadFrom, whose buffer is smaller than anybody's who stores
// a layer.
type onlyWriter struct{}

func (onlyWriter) Write(p []byte) (int, error) { return len(p), nil }

// TestInterruptedHasReason: without a reason apid takes it for imaged being away.
func TestInterruptedHasReason(t *testing.T) {
	err := fmt.Errorf("layer x: %w", &InterruptedError{Offset: 1, Size: 2, Err: io.ErrUnexpectedEOF})
	if fault.KindOf(err) != fault.Unavailable || fault.ReasonOf(err) != "DOWNLOAD_INTERRUPTED" || fault.HintOf(err) == "" {
		t.Errorf("kind %v, reason %q, hint %q", fault.KindOf(err), fault.ReasonOf(err), fault.HintOf(err))
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("the cause is lost")
	}
}
