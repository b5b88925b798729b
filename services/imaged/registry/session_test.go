package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/journal"
)

// TestF19AnotherProcessGoesOn: a process that pushes ends without a word, and the machine restarts; the next one, for the
// same caller, sends what is missing and nothing else.
func TestF19AnotherProcessGoesOn(t *testing.T) {
	const size, chunk = 1_000_000, 100_000
	blob, desc := randomBlob(t, size)
	for name, caller := range map[string]struct {
		auth     Auth
		most     int
		sessions int
	}{
		"the same caller": {Auth{Username: "alice", Password: "changed since, " + marker}, size + chunk, 1},
		"another caller":  {Auth{Username: "mallory"}, 2 * size, 2},
	} {
		t.Run(name, func(t *testing.T) {
			u := &uploads{t: t}
			w := blobWorld(t, u.ServeHTTP)
			dir := t.TempDir()
			j, err := journal.Open(dir, journal.Options{})
			if err != nil {
				t.Fatal(err)
			}
			killed := &mortal{Records: j}
			chunks := 0
			u.onChunk = func() {
				if chunks++; chunks == 6 {
					killed.dead.Store(true) // nothing is written from now on
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			dies := opener(blob)
			first := chunked(w.client(func(o *Options) { o.Uploads, o.Retries = killed, -1 }), chunk)
			first.PushBlob(ctx, named(t, regHost+"/team/web"), desc, func() (io.ReadCloser, error) {
				rc, _ := dies()
				return io.NopCloser(io.MultiReader(io.LimitReader(rc, 630_000), failingReader{})), nil
			}, "", markerAuth, nil)
			j.Close()
			if j, err = journal.Open(dir, journal.Options{}); err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			for _, raw := range j.Range("") {
				if strings.Contains(string(raw), marker) || strings.Contains(string(raw), "alice") {
					t.Errorf("S-45: the record tells who pushes, or a secret: %s", raw)
				}
			}
			second := chunked(w.client(func(o *Options) { o.Uploads = j }), chunk)
			if _, err := second.PushBlob(t.Context(), named(t, regHost+"/team/web"), desc, opener(blob), "", caller.auth, nil); err != nil {
				t.Fatal(err)
			}
			sessions, bytesIn, stored := u.counts()
			if stored != desc.Digest || sessions != caller.sessions || bytesIn > caller.most {
				t.Errorf("%d sessions, %d bytes came for %d", sessions, bytesIn, size)
			}
			left := 0
			for range j.Range(sessionPrefix) {
				left++
			}
			if want := caller.sessions - 1; left != want {
				t.Errorf("%d sessions are remembered, want %d", left, want)
			}
		})
	}
}

// mortal are records that are written no more once their process is dead.
type mortal struct {
	Records
	dead atomic.Bool
}

func (m *mortal) Put(key string, value []byte, durable bool) error {
	if m.dead.Load() {
		return errors.New("dead")
	}
	return m.Records.Put(key, value, durable)
}

func (m *mortal) Delete(key string, durable bool) error {
	if m.dead.Load() {
		return errors.New("dead")
	}
	return m.Records.Delete(key, durable)
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("killed") }

// TestSessionsArePruned: old ones go, and the oldest of too many; damaged ones do no harm.
func TestSessionsArePruned(t *testing.T) {
	m := &memory{m: map[string][]byte{}}
	put := func(key string, age time.Duration) {
		m.Put(sessionPrefix+key, fmt.Appendf(nil, `{"at":"http://x/","sent":1,"since":%q}`, time.Now().Add(-age).Format(time.RFC3339)), false)
	}
	put("old", sessionLife+time.Minute)
	for i := range maxSessions + 10 {
		put(fmt.Sprint(i), time.Duration(i)*time.Minute/10)
	}
	m.Put(sessionPrefix+"damaged", []byte("{"), false)
	s := openSessions(m)
	if len(m.m) != maxSessions {
		t.Errorf("%d are left", len(m.m))
	}
	for _, key := range []string{"old", "damaged", fmt.Sprint(maxSessions)} {
		if _, ok := m.Get(sessionPrefix + key); ok {
			t.Errorf("%s is left", key)
		}
	}
	take := func(key string) (hold, session) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		h, found, err := s.take(ctx, sessionPrefix+key)
		if err != nil {
			t.Error(err)
		}
		return h, found
	}
	h, found := take("0")
	if found.at == nil || found.sent != 1 {
		t.Errorf("took %+v", found)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, _, err := s.take(ctx, h.key); !errors.Is(err, context.Canceled) {
		t.Errorf("a session is taken twice: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, h.leave)
	if h, found = take("0"); found.at == nil {
		t.Error("a session that was left is gone")
	}
	time.AfterFunc(20*time.Millisecond, h.done)
	if _, found = take("0"); found.at != nil {
		t.Error("a session that ended is there")
	}
	m.Put(sessionPrefix+"bad", []byte(`{"at":"%zz","since":"2999-01-01T00:00:00Z"}`), false)
	if _, found = take("bad"); found.at != nil {
		t.Error("took an address that is none")
	}
}

// TestSameBlobIsSentOnce: two pushes of one blob share one upload.
func TestSameBlobIsSentOnce(t *testing.T) {
	blob, desc := randomBlob(t, 300_000)
	u := &uploads{t: t}
	w := blobWorld(t, u.ServeHTTP)
	client := chunked(w.client(), 100_000)
	var pushes sync.WaitGroup
	var skips atomic.Int32
	for range 4 {
		pushes.Go(func() {
			skipped, err := client.PushBlob(t.Context(), named(t, regHost+"/team/web"), desc, opener(blob), "", markerAuth, nil)
			if err != nil {
				t.Error(err)
			}
			if skipped {
				skips.Add(1)
			}
		})
	}
	pushes.Wait()
	if sessions, bytesIn, _ := u.counts(); sessions != 1 || bytesIn != len(blob) || skips.Load() != 3 {
		t.Errorf("%d uploads, %d bytes, %d found it there", sessions, bytesIn, skips.Load())
	}
}

// TestSource: pieces in order open what they are of once, and others open it again.
func TestSource(t *testing.T) {
	blob, _ := randomBlob(t, 1000)
	opened, closed := 0, 0
	s := source{open: func() (io.ReadCloser, error) {
		opened++
		return &countedClose{Reader: io.MultiReader(bytes.NewReader(blob)), n: &closed}, nil
	}}
	read := func(from, n, stop int64) {
		t.Helper()
		rc, err := s.from(from, n)()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.LimitReader(rc, stop))
		if err != nil || !bytes.Equal(got, blob[from:from+stop]) {
			t.Errorf("%d bytes from %d, %v", len(got), from, err)
		}
		rc.Close()
		rc.Close()
	}
	read(0, 400, 400)
	read(400, 400, 400)
	if opened != 1 {
		t.Errorf("opened %d times for two pieces in order", opened)
	}
	read(300, 100, 50) // breaks off
	read(350, 650, 650)
	s.close()
	if opened != 3 || closed != opened {
		t.Errorf("opened %d times, closed %d", opened, closed)
	}
}

type countedClose struct {
	io.Reader
	n *int
}

func (c *countedClose) Close() error { *c.n++; return nil }
