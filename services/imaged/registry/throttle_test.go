package registry

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestBandwidth(t *testing.T) {
	w := newWorld(t)
	blob, desc := randomBlob(t, 1<<20)
	w.serve("https://registry.test", newFake(blob).ServeHTTP)
	c := w.client(func(o *Options) { o.Bandwidth = 1 << 20 })
	fetch := func() time.Duration {
		began := time.Now()
		body, err := c.Blob(t.Context(), named(t, "registry.test/x"), desc, 0, Auth{})
		if err != nil {
			t.Error(err)
			return 0
		}
		defer body.Close()
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blob) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		return time.Since(began)
	}
	if took := fetch(); took < 800*time.Millisecond {
		t.Errorf("a mebibyte took %v at one a second", took)
	}
	// Two share it; lifting the limit helps what is under way.
	var both sync.WaitGroup
	both.Go(func() { fetch() })
	both.Go(func() { fetch() })
	time.Sleep(200 * time.Millisecond)
	began := time.Now()
	c.SetBandwidth(0)
	both.Wait()
	if took := time.Since(began); took > time.Second {
		t.Errorf("without limit the rest took %v", took)
	}
	if c.Bandwidth() != 0 {
		t.Errorf("limit %d", c.Bandwidth())
	}
}

func TestF21RateLimitIsShown(t *testing.T) {
	w := newWorld(t)
	f := newFake()
	f.addImage(t)
	asked := 0
	w.serve("https://registry.test", func(rw http.ResponseWriter, r *http.Request) {
		if asked++; asked == 1 {
			rw.Header().Set("Retry-After", "2")
			rw.WriteHeader(http.StatusTooManyRequests)
			return
		}
		f.ServeHTTP(rw, r)
	})
	var told []string
	ctx := WithNotice(context.Background(), func(text string) { told = append(told, text) })
	began := time.Now()
	_, desc, err := w.client().Manifest(ctx, named(t, "registry.test/x:v1"), Auth{})
	if err != nil || desc.MediaType != ocispec.MediaTypeImageManifest {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("came back after %v although the registry said 2 s", took)
	}
	if len(told) != 1 || !strings.Contains(told[0], "registry.test limits requests, next try in 2s") {
		t.Errorf("told %q", told)
	}
}
