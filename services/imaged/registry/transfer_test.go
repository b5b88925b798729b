package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/internal/fault"
)

const regHost = "registry.test"

// blobWorld has one registry whose blob requests are answered by h.
func blobWorld(t *testing.T, h http.HandlerFunc) *world {
	w := newWorld(t)
	w.serve("https://"+regHost, h)
	return w
}

// hijack gives a handler the bare connection, to break off what it likes where it likes.
func hijack(rw http.ResponseWriter, f func(w io.Writer)) {
	conn, _, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	f(conn)
}

func TestF19StallsAreCutOff(t *testing.T) {
	blob, desc := randomBlob(t, 100_000)
	for name, h := range map[string]http.HandlerFunc{
		"before the header": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"in the middle": func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Length", strconv.Itoa(len(blob)))
			_, _ = rw.Write(blob[:50_000])
			_ = http.NewResponseController(rw).Flush()
			<-r.Context().Done()
		},
		"a byte at a time": func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Length", strconv.Itoa(len(blob)))
			for i := range blob {
				_, _ = rw.Write(blob[i : i+1])
				_ = http.NewResponseController(rw).Flush()
				select {
				case <-r.Context().Done():
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := blobWorld(t, h).client(func(o *Options) { o.StallTimeout = 300 * time.Millisecond })
			start := time.Now()
			rc, err := c.Blob(t.Context(), named(t, regHost+"/team/web"), desc, 0, Auth{})
			if err == nil {
				var got []byte
				got, err = io.ReadAll(rc)
				rc.Close()
				var broken *InterruptedError
				if !errors.As(err, &broken) || broken.Offset != int64(len(got)) || !bytes.Equal(got, blob[:len(got)]) {
					t.Errorf("after %d bytes: %v", len(got), err)
				}
			}
			if !errors.Is(err, fault.Unavailable) {
				t.Errorf("error %v", err)
			}
			if took := time.Since(start); took < 250*time.Millisecond || took > 3*time.Second {
				t.Errorf("cut off after %v", took)
			}
		})
	}
}

// TestF19SlowReaderIsNotAStall: time the caller spends between reads does not count.
func TestF19SlowReaderIsNotAStall(t *testing.T) {
	blob, desc := randomBlob(t, 4<<20)
	fake := newFake(blob)
	c := blobWorld(t, fake.ServeHTTP).client(func(o *Options) { o.StallTimeout = 200 * time.Millisecond })
	rc, err := c.Blob(t.Context(), named(t, regHost+"/team/web"), desc, 0, Auth{})
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	time.Sleep(500 * time.Millisecond)
	if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestF19ResumeByRange: a registry closes the connection every so often; each time the
// download goes on where it broke off.
func TestF19ResumeByRange(t *testing.T) {
	blob, desc := randomBlob(t, 100_000)
	fake := newFake(blob)
	c := blobWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		fake.ServeHTTP(&shortWriter{ResponseWriter: rw, left: 30_000}, r)
	}).client()
	var got []byte
	tries := 0
	for int64(len(got)) < desc.Size && tries < 10 {
		tries++
		rc, err := c.Blob(t.Context(), named(t, regHost+"/team/web"), desc, int64(len(got)), Auth{})
		if err != nil {
			t.Fatal(err)
		}
		part, err := io.ReadAll(rc)
		rc.Close()
		got = append(got, part...)
		var broken *InterruptedError
		if err != nil && (!errors.As(err, &broken) || broken.Offset != int64(len(got)) || broken.Size != desc.Size) {
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
	}
	if !bytes.Equal(got, blob) || tries != 4 {
		t.Errorf("%d bytes in %d tries", len(got), tries)
	}
}

// shortWriter breaks the connection off after so many bytes of body.
type shortWriter struct {
	http.ResponseWriter
	left int
}

func (s *shortWriter) Write(p []byte) (int, error) {
	n, _ := s.ResponseWriter.Write(p[:min(len(p), s.left)])
	if s.left -= n; s.left == 0 {
		_ = http.NewResponseController(s.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

func TestF20WrongLengthsAndRanges(t *testing.T) {
	blob, desc := randomBlob(t, 10_000)
	repo := named(t, regHost+"/team/web")
	raw := func(head string, body []byte) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) {
			hijack(rw, func(w io.Writer) { fmt.Fprintf(w, "HTTP/1.1 %s\r\n\r\n%s", head, body) })
		}
	}
	chunked := func(status int, header string, body []byte) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) {
			if header != "" {
				rw.Header().Set("Content-Range", header)
			}
			rw.WriteHeader(status)
			_ = http.NewResponseController(rw).Flush()
			_, _ = rw.Write(body)
		}
	}
	for name, c := range map[string]struct {
		offset int64
		h      http.HandlerFunc
		kind   fault.Kind // None: the blob must arrive
	}{
		"length too small":       {0, raw("200 OK\r\nContent-Length: 9999", blob[:9999]), fault.DataLoss},
		"length too large":       {0, raw("200 OK\r\nContent-Length: 10001", append(blob[:10000:10000], 0)), fault.DataLoss},
		"length a lie":           {0, raw("200 OK\r\nContent-Length: 10000", blob[:5000]), fault.Unavailable},
		"chunked, exact":         {0, chunked(200, "", blob), fault.None},
		"chunked, short":         {0, chunked(200, "", blob[:9999]), fault.Unavailable},
		"chunked, extra bytes":   {0, chunked(200, "", append(blob[:10000:10000], 0)), fault.DataLoss},
		"until close, exact":     {0, raw("200 OK", blob), fault.None},
		"until close, extra":     {0, raw("200 OK", append(blob[:10000:10000], 0)), fault.DataLoss},
		"range ignored":          {4000, raw("200 OK\r\nContent-Length: 10000", blob), fault.None},
		"range ignored, short":   {4000, raw("200 OK\r\nContent-Length: 10000", blob[:2000]), fault.Unavailable},
		"range right":            {4000, raw("206 PC\r\nContent-Range: bytes 4000-9999/10000\r\nContent-Length: 6000", blob[4000:]), fault.None},
		"range of another start": {4000, raw("206 PC\r\nContent-Range: bytes 3999-9999/10000\r\nContent-Length: 6001", blob[3999:]), fault.DataLoss},
		"range too short":        {4000, raw("206 PC\r\nContent-Range: bytes 4000-5000/10000\r\nContent-Length: 1001", blob[4000:5001]), fault.DataLoss},
		"range of another size":  {4000, raw("206 PC\r\nContent-Range: bytes 4000-9999/10001\r\nContent-Length: 6000", blob[4000:]), fault.DataLoss},
		"range without header":   {4000, raw("206 PC\r\nContent-Length: 6000", blob[4000:]), fault.DataLoss},
		"range nobody asked for": {0, raw("206 PC\r\nContent-Range: bytes 4000-9999/10000\r\nContent-Length: 6000", blob[4000:]), fault.DataLoss},
		"range, chunked, extra":  {4000, chunked(206, "bytes 4000-9999/10000", append(blob[4000:10000:10000], 1)), fault.DataLoss},
		"not satisfiable":        {4000, chunked(416, "bytes */10000", nil), fault.Unimplemented},
		"no content":             {0, chunked(204, "", nil), fault.Unimplemented},
	} {
		t.Run(name, func(t *testing.T) {
			rc, err := blobWorld(t, c.h).client().Blob(t.Context(), repo, desc, c.offset, Auth{})
			var got []byte
			if err == nil {
				got, err = io.ReadAll(rc)
				rc.Close()
			}
			if fault.KindOf(err) != c.kind {
				t.Errorf("error %v, want kind %q", err, c.kind)
			}
			if len(got) > 0 && !bytes.HasPrefix(blob[c.offset:], got) || err == nil && !bytes.Equal(got, blob[c.offset:]) {
				t.Errorf("%d wrong bytes", len(got))
			}
		})
	}
	for _, offset := range []int64{-1, 10_001} {
		_, err := blobWorld(t, http.NotFound).client().Blob(t.Context(), repo, desc, offset, Auth{})
		wantError(t, err, fault.InvalidArgument, "offset")
	}
}

func TestF20WrongManifestDigest(t *testing.T) {
	fake := newFake()
	raw := fake.addImage(t)
	other := digest.FromString("other")
	for name, c := range map[string]struct {
		ref    string
		answer func(http.Header)
		text   string
	}{
		"by digest":               {"@" + other.String(), func(http.Header) {}, "another digest"},
		"header of another image": {":v1", func(h http.Header) { h.Set("Docker-Content-Digest", other.String()) }, "says the manifest is"},
		"S-16 header malformed":   {":v1", func(h http.Header) { h.Set("Docker-Content-Digest", "sha256:../x") }, "malformed digest"},
	} {
		t.Run(name, func(t *testing.T) {
			h := func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				rw.Header().Set("Content-Length", strconv.Itoa(len(raw)))
				c.answer(rw.Header())
				_, _ = rw.Write(raw)
			}
			client := blobWorld(t, h).client()
			_, _, err := client.Manifest(t.Context(), named(t, regHost+"/team/web"+c.ref), Auth{})
			wantError(t, err, fault.DataLoss, c.text)
			if strings.HasPrefix(name, "header") {
				return // a HEAD cannot tell
			}
			_, err = client.Resolve(t.Context(), named(t, regHost+"/team/web"+c.ref), Auth{})
			wantError(t, err, fault.DataLoss, "digest")
		})
	}
}

func TestResolveWithoutUsefulHead(t *testing.T) {
	fake := newFake()
	raw := fake.addImage(t)
	for name, head := range map[string]http.HandlerFunc{
		"not allowed":      func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusMethodNotAllowed) },
		"without digest":   func(rw http.ResponseWriter, _ *http.Request) { rw.Header().Set("Content-Length", "5") },
		"without anything": func(http.ResponseWriter, *http.Request) {},
	} {
		c := blobWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				head(rw, r)
				return
			}
			fake.ServeHTTP(rw, r)
		}).client()
		desc, err := c.Resolve(t.Context(), named(t, regHost+"/team/web:v1"), Auth{})
		if err != nil || desc.Digest != digest.FromBytes(raw) || desc.Size != int64(len(raw)) {
			t.Errorf("%s: %+v, %v", name, desc, err)
		}
	}
}

func TestF21LoopsOf401End(t *testing.T) {
	for _, challenge := range []string{`Basic realm="x"`, `Bearer realm="https://` + regHost + `/token"`, `Negotiate`, `Digest realm="x"`, ``, `=`} {
		w := blobWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				_, _ = io.WriteString(rw, `{"token":"t"}`)
				return
			}
			rw.Header().Set("WWW-Authenticate", challenge)
			rw.WriteHeader(http.StatusUnauthorized)
		})
		_, err := w.client().Resolve(t.Context(), named(t, regHost+"/team/web:v1"), markerAuth)
		if !errors.Is(err, fault.Unauthenticated) && !errors.Is(err, fault.Unimplemented) {
			t.Errorf("%q: %v", challenge, err)
		}
		if n := len(w.seen()); n > 3 {
			t.Errorf("%q: %d requests", challenge, n)
		}
	}
}

func TestF21RetriesAreBounded(t *testing.T) {
	for _, status := range []int{408, 429, 500, 502, 503, 504} {
		w := blobWorld(t, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(status) })
		_, err := w.client().Resolve(t.Context(), named(t, regHost+"/team/web:v1"), Auth{})
		wantError(t, err, fault.Unavailable, "pull "+regHost+"/team/web:v1: registry "+regHost)
		if n := len(w.seen()); n != 5 {
			t.Errorf("%d: %d requests, want 5", status, n)
		}
	}
	for _, status := range []int{400, 401, 403, 404, 410, 416, 418, 501} {
		w := blobWorld(t, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(status) })
		_, _, err := w.client().Manifest(t.Context(), named(t, regHost+"/team/web:v1"), Auth{})
		if n := len(w.seen()); n != 1 || err == nil {
			t.Errorf("%d: %d requests, want 1; %v", status, n, err)
		}
	}
}

// TestF21ComesBack fails a few times in different ways and then works.
func TestF21ComesBack(t *testing.T) {
	fake := newFake()
	fake.addImage(t)
	n := 0
	w := blobWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		switch n++; n {
		case 1:
			hijack(rw, func(io.Writer) {})
		case 2:
			rw.Header().Set("Retry-After", "0")
			rw.WriteHeader(http.StatusTooManyRequests)
		case 3:
			rw.WriteHeader(http.StatusBadGateway)
		default:
			fake.ServeHTTP(rw, r)
		}
	})
	if _, _, err := w.client().Manifest(t.Context(), named(t, regHost+"/team/web:v1"), Auth{}); err != nil || n != 4 {
		t.Errorf("after %d requests: %v", n, err)
	}
}

func TestF21RetryAfter(t *testing.T) {
	fake := newFake()
	fake.addImage(t)
	var at []time.Time
	after := "1"
	w := blobWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if at = append(at, time.Now()); len(at) == 1 {
			rw.Header().Set("Retry-After", after)
			rw.WriteHeader(http.StatusTooManyRequests)
			return
		}
		fake.ServeHTTP(rw, r)
	})
	if _, _, err := w.client().Manifest(t.Context(), named(t, regHost+"/team/web:v1"), Auth{}); err != nil || len(at) != 2 || at[1].Sub(at[0]) < time.Second {
		t.Errorf("%v, %v", at, err)
	}
	// Longer than anybody should wait unasked: the answer is an error that says how long.
	at, after = nil, "3600"
	_, _, err := w.client().Manifest(t.Context(), named(t, regHost+"/team/web:v1"), Auth{})
	wantError(t, err, fault.Unavailable, "try again in 1h0m0s")
	// The caller may leave during the wait.
	at, after = nil, "30"
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, _, err = w.client().Manifest(ctx, named(t, regHost+"/team/web:v1"), Auth{})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

func TestF21RedirectLoopEnds(t *testing.T) {
	w := blobWorld(t, func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, r.URL.Path, http.StatusFound) })
	_, err := w.client().Resolve(t.Context(), named(t, regHost+"/team/web:v1"), Auth{})
	wantError(t, err, fault.FailedPrecondition, "redirects more than 5 times")
	if n := len(w.seen()); n != 6 {
		t.Errorf("%d requests", n)
	}
}

func TestRedirectToADeadHost(t *testing.T) {
	_, desc := randomBlob(t, 100)
	w := blobWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, "https://cdn.test/blob?sig="+marker, http.StatusFound)
	})
	_, err := w.client().Blob(t.Context(), named(t, regHost+"/team/web"), desc, 0, Auth{})
	wantError(t, err, fault.Unavailable, "connect to storage host cdn.test of registry "+regHost+": no such host")
}

func TestCancelEndsEverything(t *testing.T) {
	blob, desc := randomBlob(t, 100_000)
	w := blobWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Length", strconv.Itoa(len(blob)))
		_, _ = rw.Write(blob[:1000])
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	rc, err := w.client().Blob(ctx, named(t, regHost+"/team/web"), desc, 0, Auth{})
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	time.AfterFunc(50*time.Millisecond, cancel)
	start := time.Now()
	_, err = io.ReadAll(rc)
	if !errors.Is(err, context.Canceled) || time.Since(start) > time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

// TestPushRetriesWithAFreshSession: a registry loses the first session; the second one gets
// the whole blob.
func TestPushRetriesWithAFreshSession(t *testing.T) {
	blob, desc := randomBlob(t, 50_000)
	var sessions, puts int
	var got []byte
	w := blobWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			sessions++
			rw.Header().Set("Location", fmt.Sprintf("/v2/team/web/blobs/uploads/%d?state=x%%2By", sessions))
			rw.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			if puts++; puts == 1 {
				_, _ = io.CopyN(io.Discard, r.Body, 10_000)
				rw.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			if r.URL.Query().Get("state") != "x+y" || r.URL.Query().Get("digest") != desc.Digest.String() || !strings.HasSuffix(r.URL.Path, "/2") {
				t.Errorf("PUT %s", r.URL)
			}
			got, _ = io.ReadAll(r.Body)
			rw.WriteHeader(http.StatusCreated)
		default:
			rw.WriteHeader(http.StatusNotFound)
		}
	})
	skipped, err := w.client().PushBlob(t.Context(), named(t, regHost+"/team/web"), desc, opener(blob), "", Auth{}, nil)
	if err != nil || skipped || sessions != 2 || !bytes.Equal(got, blob) {
		t.Errorf("skipped %v, %d sessions, %d bytes, %v", skipped, sessions, len(got), err)
	}
}

func TestPushSourceFails(t *testing.T) {
	_, desc := randomBlob(t, 50_000)
	w := blobWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			rw.Header().Set("Location", "/upload")
			rw.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			_, _ = io.Copy(io.Discard, r.Body)
			rw.WriteHeader(http.StatusCreated)
		default:
			rw.WriteHeader(http.StatusNotFound)
		}
	})
	broken := errors.New("disk on fire")
	repo := named(t, regHost+"/team/web")
	for name, open := range map[string]func() (io.ReadCloser, error){
		"open": func() (io.ReadCloser, error) { return nil, broken },
		"read": func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader("abc"), failing{broken})), nil
		},
		"short": opener([]byte("abc")),
	} {
		_, err := w.client().PushBlob(t.Context(), repo, desc, open, "", Auth{}, nil)
		switch name {
		case "short":
			wantError(t, err, fault.Internal, "read what is to be sent: it ends after 3 of 50000 bytes")
		default:
			wantError(t, err, fault.Internal, name+" what is to be sent: disk on fire")
			if !errors.Is(err, broken) {
				t.Errorf("%s: the cause is lost", name)
			}
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestMirrors(t *testing.T) {
	w := newWorld(t)
	origin, mirror := newFake(), newFake()
	raw := origin.addImage(t)
	mirror.manifests, mirror.blobs = origin.manifests, origin.blobs
	w.serve("https://registry.test", origin.ServeHTTP)
	w.serve("https://mirror.test", mirror.ServeHTTP)
	w.serve("http://down.test:8080", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(503) })
	c := w.client(func(o *Options) {
		h := o.Hosts["registry.test"]
		h.Mirrors = []string{"ftp://x", "https://u:" + marker + "@mirror.test", "http://down.test:8080", "https://mirror.test/"}
		o.Hosts["registry.test"] = h
	})
	ref := named(t, "registry.test/team/web:v1")
	for range 2 {
		if got, _, err := c.Manifest(t.Context(), ref, markerAuth); err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("Manifest: %v", err)
		}
	}
	mirror.manifests = nil
	if _, _, err := c.Manifest(t.Context(), ref, markerAuth); err != nil {
		t.Errorf("mirror without the image: %v", err)
	}
	by := map[string]int{}
	for _, v := range w.seen() {
		by[v.origin]++
		if v.authorization != "" {
			t.Errorf("credentials: %+v", v)
		}
	}
	if by["http://down.test:8080"] != 5 || by["https://mirror.test:443"] != 3 || by["https://registry.test:443"] != 1 {
		t.Errorf("requests by host: %v", by)
	}
	if !strings.Contains(w.logged(), "leaving out a mirror") {
		t.Error("malformed mirrors were not logged")
	}
}
