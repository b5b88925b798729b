package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"berth/internal/fault"
	registrytest "berth/test/registry"

	"github.com/opencontainers/go-digest"
)

// uploads is a registry that keeps what it got of an upload, says how much that is and takes the rest.
type uploads struct {
	t  *testing.T
	mu sync.Mutex

	got      []byte
	sessions int
	breakAt  int  // the connection breaks off once so many bytes came; 0: never
	lies     bool // says it has more than it has
	forgets  bool // sessions do not survive a failure
	stored   digest.Digest
	bytesIn  int
}

func (u *uploads) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	location := fmt.Sprintf("/v2/team/web/blobs/uploads/%d?step=%d", u.sessions, len(u.got))
	switch r.Method {
	case http.MethodHead:
		rw.WriteHeader(http.StatusNotFound)
	case http.MethodPost:
		u.mu.Lock()
		u.sessions, u.got = u.sessions+1, nil
		u.mu.Unlock()
		rw.Header().Set("Location", fmt.Sprintf("/v2/team/web/blobs/uploads/%d", u.sessions))
		rw.WriteHeader(http.StatusAccepted)
	case http.MethodGet:
		if u.forgets {
			rw.WriteHeader(http.StatusNotFound)
			return
		}
		n := len(u.got)
		if u.lies {
			n += 1000
		}
		rw.Header().Set("Location", location)
		rw.Header().Set("Range", fmt.Sprintf("0-%d", n-1))
		rw.WriteHeader(http.StatusNoContent)
	case http.MethodPatch, http.MethodPut:
		if want := fmt.Sprintf("%d-", len(u.got)); r.Method == http.MethodPatch && !bytes.HasPrefix([]byte(r.Header.Get("Content-Range")), []byte(want)) && !u.lies {
			u.t.Errorf("PATCH with range %q, the registry has %d bytes", r.Header.Get("Content-Range"), len(u.got))
		}
		if r.Method == http.MethodPut && r.ContentLength > 0 {
			u.got = nil
		}
		if !u.receive(r.Body) {
			panic(http.ErrAbortHandler)
		}
		if r.Method == http.MethodPatch {
			rw.Header().Set("Location", location)
			rw.WriteHeader(http.StatusAccepted)
			return
		}
		u.stored = digest.FromBytes(u.got)
		if u.stored.String() != r.URL.Query().Get("digest") {
			rw.WriteHeader(http.StatusBadRequest)
			return
		}
		rw.WriteHeader(http.StatusCreated)
	}
}

// receive reads until the end or the break, and reports which.
func (u *uploads) receive(body io.Reader) bool {
	buf := make([]byte, 1000)
	for {
		n, err := body.Read(buf)
		u.mu.Lock()
		u.got = append(u.got, buf[:n]...)
		u.bytesIn += n
		broken := u.breakAt > 0 && len(u.got) >= u.breakAt
		if broken {
			u.breakAt = 0
		}
		u.mu.Unlock()
		if broken {
			return false
		}
		if err != nil {
			return err == io.EOF
		}
	}
}

func TestF19PushGoesOn(t *testing.T) {
	const size = 300_000
	for name, c := range map[string]struct {
		change   func(*uploads)
		sessions int
		most     int // bytes sent in all
	}{
		"resumes":          {func(*uploads) {}, 1, size + 10_000},
		"session is gone":  {func(u *uploads) { u.forgets = true }, 2, 2 * size},
		"registry is lost": {func(u *uploads) { u.lies = true }, 2, 3 * size},
	} {
		t.Run(name, func(t *testing.T) {
			blob, desc := randomBlob(t, size)
			u := &uploads{t: t, breakAt: 200_000}
			c.change(u)
			w := blobWorld(t, u.ServeHTTP)
			var last int64
			_, err := w.client().PushBlob(t.Context(), named(t, regHost+"/team/web"), desc, opener(blob), "", Auth{}, func(n int64) { last = n })
			if err != nil || u.stored != desc.Digest || u.sessions != c.sessions || u.bytesIn > c.most || last != size {
				t.Errorf("%v; %d sessions, %d bytes came, progress ends at %d", err, u.sessions, u.bytesIn, last)
			}
		})
	}
}

// A push that was cancelled is gone on with by the next, for the same caller only.
func TestF19CancelledPushGoesOn(t *testing.T) {
	blob, desc := randomBlob(t, 300_000)
	u := &uploads{t: t}
	w := blobWorld(t, u.ServeHTTP)
	client := w.client()
	ctx, cancel := context.WithCancel(t.Context())
	slow := func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(blob[:200_000]), cancelReader{cancel, ctx})), nil
	}
	if _, err := client.PushBlob(ctx, named(t, regHost+"/team/web"), desc, slow, "", Auth{}, nil); err == nil {
		t.Fatal("pushed")
	}
	time.Sleep(100 * time.Millisecond) // until the server has noticed
	u.mu.Lock()
	had := len(u.got)
	u.mu.Unlock()
	if had == 0 {
		t.Fatal("nothing came")
	}
	if _, err := client.PushBlob(t.Context(), named(t, regHost+"/team/web"), desc, opener(blob), "", Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	if u.stored != desc.Digest || u.sessions != 1 || u.bytesIn != len(blob) {
		t.Errorf("%d sessions, %d bytes came in all of %d", u.sessions, u.bytesIn, len(blob))
	}
	s := &client.sessions
	k := sessionKey{repository: "r", digest: desc.Digest, caller: markerAuth.fingerprint()}
	s.keep(k, &url.URL{Host: "x"})
	other := k
	other.caller = Auth{}.fingerprint()
	if s.take(other) != nil || s.take(k) == nil || s.take(k) != nil {
		t.Error("a session is its caller's, and once only")
	}
}

// cancelReader cancels and then waits.
type cancelReader struct {
	cancel context.CancelFunc
	ctx    context.Context
}

func (c cancelReader) Read([]byte) (int, error) {
	time.Sleep(50 * time.Millisecond)
	c.cancel()
	<-c.ctx.Done()
	return 0, c.ctx.Err()
}

// The real registry does not take up what broke off in the middle of a request: the blob is sent once more, and stored.
func TestRealRegistryAfterBrokenPush(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{})
	client := New(Options{})
	defer client.Close()
	blob, desc := randomBlob(t, 5<<20)
	ctx, cancel := context.WithCancel(t.Context())
	broken := func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(blob[:3<<20]), cancelReader{cancel, ctx})), nil
	}
	repo := named(t, reg.Host+"/team/web")
	if _, err := client.PushBlob(ctx, repo, desc, broken, "", Auth{}, nil); err == nil || fault.KindOf(err) == fault.Internal {
		t.Fatalf("a cancelled push: %v", err)
	}
	if _, err := client.PushBlob(t.Context(), repo, desc, opener(blob), "", Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	body, err := client.Blob(t.Context(), repo, desc, 0, Auth{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
