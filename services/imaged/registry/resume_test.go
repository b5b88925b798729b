package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/fault"
	"berth/internal/journal"
	registrytest "berth/test/registry"

	"github.com/opencontainers/go-digest"
)

// uploads is a registry that keeps what it got of an upload, says how much that is and takes the rest. Its faults are as
// registries have them.
type uploads struct {
	t  *testing.T
	mu sync.Mutex

	got      []byte
	gone     bool // the session
	sessions int
	stored   digest.Digest
	bytesIn  int
	ranges   []string // of the chunks

	breaks  []int // the connection breaks off once a session has so many bytes; each once
	lies    bool  // says it has more than it has
	forgets bool  // a session does not survive a failure, as with docker-registry
	half    bool  // keeps only half of the first chunk, and says so
	mute    int   // answers questions after a session with this status
	refuses int   // answers chunks with this status
	deaf    bool  // breaks off before it reads anything
	busy    int   // answers so many chunks with 429
	wants   int   // chunks of at least
	onChunk func()
}

func (u *uploads) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if r.Method == http.MethodHead {
		if u.stored == "" {
			rw.WriteHeader(http.StatusNotFound)
		}
		rw.Header().Set("Content-Length", fmt.Sprint(len(u.got)))
		return
	}
	if r.Method == http.MethodPost {
		u.sessions, u.got, u.gone = u.sessions+1, nil, false
		rw.Header().Set("Location", u.location())
		if u.wants > 0 {
			rw.Header().Set("OCI-Chunk-Min-Length", fmt.Sprint(u.wants))
		}
		rw.WriteHeader(http.StatusAccepted)
		return
	}
	// An address names the session and, as with docker-registry, what it has.
	if want := u.location(); u.gone || r.URL.Path != strings.Split(want, "?")[0] || r.Method != http.MethodGet && r.URL.Query().Get("has") != strings.Split(want, "has=")[1] {
		rw.WriteHeader(http.StatusNotFound)
		return
	}
	switch r.Method {
	case http.MethodGet:
		if u.mute != 0 {
			rw.WriteHeader(u.mute)
			return
		}
		u.answer(rw, http.StatusNoContent)
	case http.MethodPatch:
		if u.busy > 0 {
			u.busy--
			rw.Header().Set("Retry-After", "0")
			rw.WriteHeader(http.StatusTooManyRequests)
			return
		}
		if u.refuses != 0 {
			rw.WriteHeader(u.refuses)
			return
		}
		u.ranges = append(u.ranges, r.Header.Get("Content-Range"))
		if want := fmt.Sprintf("%d-%d", len(u.got), int64(len(u.got))+r.ContentLength-1); !u.lies && r.Header.Get("Content-Range") != want {
			u.t.Errorf("a chunk says it is %q, want %q", r.Header.Get("Content-Range"), want)
		}
		u.receive(r.Body)
		if u.half {
			u.half = false
			u.got = u.got[:len(u.got)/2]
		}
		u.answer(rw, http.StatusAccepted)
		if u.onChunk != nil {
			u.onChunk()
		}
	case http.MethodPut:
		if r.ContentLength > 0 {
			u.got = nil
			u.receive(r.Body)
		}
		if dgst := digest.FromBytes(u.got); dgst.String() != r.URL.Query().Get("digest") {
			rw.WriteHeader(http.StatusBadRequest)
			return
		}
		u.stored, u.gone = digest.FromBytes(u.got), true
		rw.WriteHeader(http.StatusCreated)
	}
}

func (u *uploads) location() string {
	return fmt.Sprintf("/v2/team/web/blobs/uploads/%d?has=%d", u.sessions, len(u.got))
}

func (u *uploads) answer(rw http.ResponseWriter, status int) {
	n := len(u.got)
	if u.lies {
		n += 1000
	}
	rw.Header().Set("Location", u.location())
	rw.Header().Set("Range", fmt.Sprintf("0-%d", max(n-1, 0)))
	rw.WriteHeader(status)
}

// receive reads until the end or the next break, which ends the request.
func (u *uploads) receive(body io.Reader) {
	if u.deaf {
		panic(http.ErrAbortHandler)
	}
	buf := make([]byte, 1000)
	for {
		n, err := body.Read(buf)
		u.got = append(u.got, buf[:n]...)
		u.bytesIn += n
		if len(u.breaks) > 0 && len(u.got) >= u.breaks[0] {
			u.breaks, u.gone = u.breaks[1:], u.forgets
			panic(http.ErrAbortHandler)
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			u.gone = u.forgets
			panic(http.ErrAbortHandler)
		}
	}
}

func (u *uploads) counts() (sessions, bytesIn int, stored digest.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sessions, u.bytesIn, u.stored
}

// chunked makes a client send chunks of n bytes.
func chunked(c *Client, n int64) *Client {
	c.chunks = chunks{n, n, n}
	return c
}

// TestF19PushGoesOn: whatever a registry does to an upload, the blob arrives, and no more is sent than must be.
func TestF19PushGoesOn(t *testing.T) {
	const size, chunk, some = 300_000, 100_000, 10_000 // some: read by the registry in one go, and lost
	for name, c := range map[string]struct {
		change   func(*uploads)
		chunk    int64
		sessions int
		most     int // bytes sent in all
	}{
		"in one piece":             {func(u *uploads) {}, size, 1, size},
		"in chunks":                {func(u *uploads) {}, chunk, 1, size},
		"one piece breaks":         {func(u *uploads) { u.breaks = []int{200_000} }, size, 1, size + some},
		"chunks break":             {func(u *uploads) { u.breaks = []int{50_000, 150_000, 151_000, 152_000, 250_000, 251_000, 252_000} }, chunk, 1, size + 7*some},
		"session is gone":          {func(u *uploads) { u.breaks, u.forgets = []int{200_000}, true }, size, 2, 2 * size},
		"chunked session is gone":  {func(u *uploads) { u.breaks, u.forgets = []int{250_000}, true }, chunk, 2, 2 * size},
		"says more than it has":    {func(u *uploads) { u.breaks, u.lies = []int{200_000}, true }, size, 2, 3 * size},
		"lies about chunks":        {func(u *uploads) { u.lies = true }, chunk, 2, chunk + size},
		"keeps half a chunk":       {func(u *uploads) { u.half = true }, chunk, 1, size + chunk/2},
		"does not say how much":    {func(u *uploads) { u.breaks, u.mute = []int{100_001}, http.StatusMethodNotAllowed }, chunk, 2, 2*size + chunk},
		"takes no chunks":          {func(u *uploads) { u.refuses = http.StatusMethodNotAllowed }, chunk, 2, size},
		"finds chunks malformed":   {func(u *uploads) { u.refuses = http.StatusBadRequest }, chunk, 2, size},
		"never knows a chunk":      {func(u *uploads) { u.refuses = http.StatusNotFound }, chunk, 2, size},
		"always stands elsewhere":  {func(u *uploads) { u.refuses = http.StatusRequestedRangeNotSatisfiable }, chunk, 2, size},
		"limits requests":          {func(u *uploads) { u.busy = 3 }, chunk, 1, size},
		"wants large chunks":       {func(u *uploads) { u.wants = 150_000 }, chunk, 1, size},
		"wants absurdly large":     {func(u *uploads) { u.wants = 1 << 40 }, chunk, 1, size},
		"breaks at the last chunk": {func(u *uploads) { u.breaks = []int{300_000} }, chunk, 1, size},
	} {
		t.Run(name, func(t *testing.T) {
			blob, desc := randomBlob(t, size)
			u := &uploads{t: t}
			c.change(u)
			w := blobWorld(t, u.ServeHTTP)
			var last int64
			_, err := chunked(w.client(), c.chunk).PushBlob(t.Context(), named(t, regHost+"/team/web"), desc, opener(blob), "", markerAuth, func(n int64) { last = n })
			sessions, bytesIn, stored := u.counts()
			if err != nil || stored != desc.Digest || sessions != c.sessions || bytesIn > c.most || last != size {
				t.Errorf("%v; %d sessions, %d bytes came (at most %d), progress ends at %d; chunks %v", err, sessions, bytesIn, c.most, last, u.ranges)
			}
			if least := int64(u.wants); least > 0 && least < size && !slices.Equal(u.ranges, []string{"0-149999", "150000-299999"}) {
				t.Errorf("chunks %v", u.ranges)
			}
		})
	}
}

// TestChunksTakeASecond: they grow and shrink within bounds.
func TestChunksTakeASecond(t *testing.T) {
	u := &upload{blobPush: &blobPush{Client: New(Options{})}, chunk: firstChunk}
	for _, c := range []struct {
		took time.Duration
		want int64
	}{{time.Second, firstChunk}, {time.Millisecond, 2 * firstChunk}, {0, 4 * firstChunk}, {0, mostChunk}, {0, mostChunk}, {3 * time.Second, mostChunk / 2}, {time.Minute, mostChunk / 4}} {
		if u.took(c.took); u.chunk != c.want {
			t.Errorf("after %v a chunk is %d, want %d", c.took, u.chunk, c.want)
		}
	}
	for range 10 {
		u.took(time.Minute)
	}
	if u.chunk != leastChunk {
		t.Errorf("the least chunk is %d", u.chunk)
	}
}

// TestF19HopelessPushEnds: a registry that never gets on ends the push, with an error for the user.
func TestF19HopelessPushEnds(t *testing.T) {
	for name, change := range map[string]func(*uploads){
		"always busy":        func(u *uploads) { u.busy = 1 << 30 },
		"takes nothing":      func(u *uploads) { u.deaf = true },
		"breaks and forgets": func(u *uploads) { u.breaks, u.forgets = slices.Repeat([]int{150_000}, 1000), true },
	} {
		t.Run(name, func(t *testing.T) {
			blob, desc := randomBlob(t, 300_000)
			u := &uploads{t: t}
			change(u)
			w := blobWorld(t, u.ServeHTTP)
			_, err := chunked(w.client(), 100_000).PushBlob(t.Context(), named(t, regHost+"/team/web"), desc, opener(blob), "", Auth{}, nil)
			if sessions, bytesIn, _ := u.counts(); !fault.Is(err, fault.Unavailable) || sessions > 20 || bytesIn > 20*len(blob) {
				t.Errorf("%v; %d sessions, %d bytes", err, sessions, bytesIn)
			}
		})
	}
}

// counter stands before a registry and counts what clients send it.
type counter struct {
	addr string
	n    atomic.Int64
}

func newCounter(t *testing.T, to string) *counter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := &counter{addr: l.Addr().String()}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			go func() { io.Copy(client, server); client.Close() }()
			go func() { io.Copy(io.MultiWriter(server, c), client); server.Close() }()
		}
	}()
	return c
}

func (c *counter) Write(p []byte) (int, error) { c.n.Add(int64(len(p))); return len(p), nil }

// TestRealRegistryGoesOn: docker-registry keeps whole chunks only. A push that is cancelled ends with one, so that the next
// process, after a restart of the registry too, sends the rest only; one that broke off in the middle of a chunk is sent
// once more.
func TestRealRegistryGoesOn(t *testing.T) {
	const size, chunk = 16 << 20, 1 << 20
	for name, c := range map[string]struct {
		cancel bool
		most   int64 // bytes of both pushes
	}{
		"cancelled":         {true, size + 100<<10},
		"broken in a chunk": {false, 2*size + 100<<10},
	} {
		t.Run(name, func(t *testing.T) {
			// Without a secret of its own a registry forgets its uploads when it restarts.
			reg := registrytest.Start(t, registrytest.Options{Extra: "  secret: kept\n"})
			front := newCounter(t, reg.Host)
			j, err := journal.Open(t.TempDir(), journal.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			blob, desc := randomBlob(t, size)
			repo := named(t, front.addr+"/team/web")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			first := chunked(New(Options{Uploads: j, Retries: -1}), chunk)
			open := opener(blob)
			if !c.cancel {
				open = func() (io.ReadCloser, error) {
					return io.NopCloser(io.MultiReader(bytes.NewReader(blob[:8<<20+300_000]), failingReader{})), nil
				}
			}
			_, err = first.PushBlob(ctx, repo, desc, open, "", Auth{}, func(sent int64) {
				if c.cancel && sent > 8<<20+chunk/2 {
					cancel()
				}
			})
			first.Close()
			if err == nil || fault.KindOf(err) == fault.Internal && c.cancel {
				t.Fatalf("a push that broke off: %v", err)
			}
			reg.Restart()
			second := chunked(New(Options{Uploads: j}), chunk)
			defer second.Close()
			if _, err := second.PushBlob(t.Context(), repo, desc, opener(blob), "", Auth{}, nil); err != nil {
				t.Fatal(err)
			}
			if n := front.n.Load(); n < size || n > c.most {
				t.Errorf("%d bytes were sent for %d, at most %d", n, size, c.most)
			}
			body, err := second.Blob(t.Context(), repo, desc, 0, Auth{})
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blob) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}
