package pull

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/fault"
	"berth/internal/faultpoint"
	"berth/services/imaged/manifest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPull(t *testing.T) {
	for _, compression := range []string{"none", "gzip", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			r := newRig(t)
			r.registry.addImage(t, "app:1", "amd64", compression, layerTar(t, "a", "1"), layerTar(t, "b", "2"), layerTar(t, "a", "3"))
			var mu sync.Mutex
			last := map[digest.Digest]Progress{}
			result, err := r.puller.Pull(context.Background(), Request{Name: parse("app:1"), Progress: func(p Progress) {
				mu.Lock()
				defer mu.Unlock()
				last[p.Layer] = p
			}})
			if err != nil {
				t.Fatal(err)
			}
			if len(last) != 3 {
				t.Errorf("progress of %d layers", len(last))
			}
			for d, p := range last {
				if p.State != Done || p.Current != p.Total || p.Total == 0 {
					t.Errorf("last progress of %s is %+v", d, p)
				}
			}
			if a, b := r.content(result, "a"), r.content(result, "b"); a != "3" || b != "2" {
				t.Errorf("a=%q b=%q", a, b)
			}
			r.expect(5, 3)
			if err := r.images.Verify(result.Image.ID); err != nil {
				t.Error(err)
			}
			again := r.mustPull("app:1")
			if !again.UpToDate || again.Downloaded != 0 || result.UpToDate || result.Downloaded == 0 {
				t.Errorf("first %+v, then %+v", result, again)
			}
			r.restart()
			info, err := r.images.Inspect(result.Image.ID)
			if err != nil || fmt.Sprint(info.Tags) != "[app:1]" || len(info.Digests) != 1 || info.Size != 3 || info.Config.Config.Cmd[0] != "/bin/app:1" {
				t.Errorf("after restart: %+v, %v", info, err)
			}
			if _, err := r.images.Remove("app:1", false); err != nil {
				t.Fatal(err)
			}
			r.expect(0, 0)
		})
	}
}

// TestPullBySHA512: an image may name everything by sha512. Its layers are those of images that name the same by sha256,
// and what its configuration says of them is checked all the same.
func TestPullBySHA512(t *testing.T) {
	r := newRig(t)
	r.registry.addImage(t, "short:1", "amd64", "gzip", layerTar(t, "a", "1"), layerTar(t, "b", "2"))
	r.mustPull("short:1")
	r.registry.by = digest.SHA512
	r.registry.addImage(t, "long:1", "amd64", "gzip", layerTar(t, "a", "1"), layerTar(t, "c", "3"))
	result := r.mustPull("long:1")
	if a, c := r.content(result, "a"), r.content(result, "c"); a != "1" || c != "3" {
		t.Errorf("a=%q c=%q", a, c)
	}
	if result.Image.ID.Algorithm() != digest.SHA512 {
		t.Errorf("its id is %s", result.Image.ID)
	}
	r.expect(8, 3) // of two images: manifest, configuration and two layers each; one content in common
	r.restart()
	if again := r.mustPull("long:1"); !again.UpToDate {
		t.Errorf("then %+v", again)
	}
	wrong := r.registry.addBlob(ocispec.MediaTypeImageConfig, bytes.ReplaceAll(r.registry.blobs[result.Image.ID],
		[]byte(digest.SHA512.FromBytes(layerTar(t, "c", "3"))), []byte(digest.SHA512.FromString("else"))))
	m, d, err := manifest.New(wrong, []ocispec.Descriptor{
		{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: r.registry.layers[0], Size: int64(len(r.registry.blobs[r.registry.layers[0]]))},
		{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: r.registry.layers[1], Size: int64(len(r.registry.blobs[r.registry.layers[1]]))},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.registry.addManifest("wrong:1", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d}, m)
	if _, err := r.puller.Pull(context.Background(), Request{Name: parse("wrong:1")}); fault.ReasonOf(err) != "DIGEST_MISMATCH" {
		t.Errorf("another content: %v", err)
	}
	r.expect(8, 3)
}

func TestPullByIndexAndDigest(t *testing.T) {
	r := newRig(t)
	amd := r.registry.addImage(t, "one", "amd64", "gzip", layerTar(t, "arch", "amd64"))
	arm := r.registry.addImage(t, "two", "arm64", "gzip", layerTar(t, "arch", "arm64"))
	index := r.registry.addIndex(t, "multi:1", amd, arm)
	for platform, want := range map[string]string{"linux/arm64": "arm64", "linux/amd64": "amd64"} {
		result, err := r.puller.Pull(context.Background(), Request{Name: parse("multi:1"), Platform: platform})
		if err != nil {
			t.Fatal(err)
		}
		if got := r.content(result, "arch"); got != want || result.Target != index {
			t.Errorf("%s: got %s of %s", platform, got, result.Target)
		}
	}
	byDigest := "multi@" + arm.Digest.String()
	result := r.mustPull(byDigest)
	if found, err := r.images.Find(byDigest); err != nil || found.ID != result.Image.ID || result.Target != arm.Digest {
		t.Errorf("found %+v, %v", found, err)
	}
	if _, err := r.puller.Pull(context.Background(), Request{Name: parse("multi:1"), Platform: "linux/s390x"}); !errors.Is(err, fault.NotFound) {
		t.Errorf("s390x: %v", err)
	}
}

func TestF20BadLayersLeaveNothing(t *testing.T) {
	layer := layerTar(t, "a", strings.Repeat("content ", 10_000))
	for name, serve := range map[string]func(digest.Digest, []byte) []byte{
		"wrong byte": func(_ digest.Digest, b []byte) []byte {
			c := append([]byte(nil), b...)
			c[len(c)/2] ^= 1
			return c
		},
		"short": func(_ digest.Digest, b []byte) []byte { return b[:len(b)-1] },
		"long":  func(_ digest.Digest, b []byte) []byte { return append(b[:len(b):len(b)], 0) },
		"empty": func(digest.Digest, []byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.registry.addImage(t, "app", "amd64", "none", layer, layerTar(t, "b", "fine"))
			r.registry.serve = func(d digest.Digest, b []byte) []byte {
				if len(b) > 50_000 { // the layer in question
					return serve(d, b)
				}
				return b
			}
			before := runtime.NumGoroutine()
			if _, err := r.pull("app"); !errors.Is(err, fault.DataLoss) {
				t.Errorf("got %v", err)
			}
			r.settle(0, 0)
			after := runtime.NumGoroutine()
			for wait := 0; after > before && wait < 100; wait++ {
				time.Sleep(10 * time.Millisecond)
				after = runtime.NumGoroutine()
			}
			if after > before {
				t.Errorf("%d goroutines before, %d after", before, after)
			}
			r.registry.mu.Lock()
			r.registry.serve = nil
			r.registry.mu.Unlock()
			r.mustPull("app")
		})
	}
}

// A layer that is what it says, but not what the configuration says.
func TestPullWrongDiffID(t *testing.T) {
	r := newRig(t)
	r.registry.addImage(t, "app", "amd64", "gzip", layerTar(t, "a", "1"))
	other := r.registry.addImage(t, "other", "amd64", "gzip", layerTar(t, "a", "2"))
	// other's manifest with app's configuration
	var app, evil string
	for name, raw := range r.registry.manifests {
		if strings.Contains(name, "/app:") {
			app = string(raw)
		}
	}
	configOf := func(s string) string { return s[strings.Index(s, `"config"`):strings.Index(s, `"layers"`)] }
	evil = string(r.registry.manifests[other.Digest.String()])
	evil = strings.Replace(evil, configOf(evil), configOf(app), 1)
	other.Digest = digest.FromString(evil)
	r.registry.addManifest("evil", other, []byte(evil))
	if _, err := r.pull("evil"); !errors.Is(err, fault.DataLoss) {
		t.Errorf("got %v", err)
	}
	r.settle(0, 0)
}

func TestF19BrokenTransfersResume(t *testing.T) {
	r := newRig(t)
	r.registry.addImage(t, "app", "amd64", "none", layerTar(t, "a", strings.Repeat("x", 5000)))
	r.registry.breakAt = 1500
	result := r.mustPull("app")
	if n := r.registry.requests[result.Image.Layers[0].Blob]; n < 4 {
		t.Errorf("%d requests for the layer", n)
	}
	if got := r.content(result, "a"); len(got) != 5000 {
		t.Errorf("got %d bytes", len(got))
	}
}

func TestF22SharedLayersAreFetchedOnce(t *testing.T) {
	r := newRig(t)
	shared := layerTar(t, "shared", strings.Repeat("x", 100_000))
	const n = 20
	for i := range n {
		r.registry.addImage(t, fmt.Sprintf("app:%d", i), "amd64", "gzip", shared, layerTar(t, "own", fmt.Sprint(i)))
	}
	r.registry.hold = make(chan struct{})
	var all sync.WaitGroup
	results := make([]Result, n)
	errs := make([]error, n)
	var giveUp []context.CancelFunc
	for i := range n {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if i%2 == 1 {
			giveUp = append(giveUp, cancel)
		}
		all.Go(func() { results[i], errs[i] = r.puller.Pull(ctx, Request{Name: parse(fmt.Sprintf("app:%d", i))}) })
	}
	_, b := compress(t, "gzip", shared)
	for r.waiting(digest.FromBytes(b)) < n {
		time.Sleep(time.Millisecond)
	}
	for _, cancel := range giveUp {
		cancel()
	}
	close(r.registry.hold)
	all.Wait()
	for i, err := range errs {
		if i%2 == 0 && err != nil || i%2 == 1 && !errors.Is(err, context.Canceled) {
			t.Errorf("pull %d: %v", i, err)
		}
	}
	if got := r.registry.requests[results[0].Image.Layers[0].Blob]; got != 1 {
		t.Errorf("the shared layer was fetched %d times", got)
	}
	r.settle(1+n/2*3, 1+n/2)
	for i := 0; i < n; i += 2 {
		if _, err := r.images.Remove(fmt.Sprintf("app:%d", i), false); err != nil {
			t.Error(err)
		}
	}
	r.settle(0, 0)
}

// waiting is how many pulls wait for a layer.
func (r *rig) waiting(d digest.Digest) int {
	r.puller.fetches.mu.Lock()
	defer r.puller.fetches.mu.Unlock()
	f := r.puller.fetches.running[wanted{d, true}]
	if f == nil {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watch)
}

func TestF23PullAndRemoveAtOnce(t *testing.T) {
	r := newRig(t)
	r.registry.addImage(t, "app:1", "amd64", "gzip", layerTar(t, "a", "1"), layerTar(t, "b", "1"))
	r.registry.addImage(t, "app:2", "amd64", "gzip", layerTar(t, "a", "1"), layerTar(t, "b", "2"))
	var all sync.WaitGroup
	for i := range 4 {
		name := fmt.Sprintf("app:%d", i%2+1)
		all.Go(func() {
			for range 25 {
				result, err := r.pull(name)
				if err != nil {
					t.Errorf("pull: %v", err)
					return
				}
				if use, err := r.images.Use(result.Image.ID); err == nil {
					for _, l := range use.Layers {
						if _, err := os.Stat(r.driver.Path(l.Name)); err != nil {
							t.Errorf("layer in use: %v", err)
						}
					}
					r.images.Unuse(result.Image.ID)
				} else if !errors.Is(err, fault.NotFound) {
					t.Errorf("use: %v", err)
				}
				if _, err := r.images.Remove(name, false); err != nil && !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.FailedPrecondition) {
					t.Errorf("remove: %v", err)
				}
			}
		})
	}
	all.Wait()
	r.images.Remove("app:1", true)
	r.images.Remove("app:2", true)
	r.settle(0, 0)
}

// Failing at every fault point leaves nothing behind, and the next try works.
func TestF01FaultPointsOfPull(t *testing.T) {
	for _, point := range []string{"imaged.blob-staged", "imaged.blob-verified", "imaged.blob-renamed",
		"imaged.layer-unpacked", "imaged.layer-synced", "imaged.layer-committed"} {
		t.Run(point, func(t *testing.T) {
			r := newRig(t)
			defer faultpoint.Reset()
			r.registry.addImage(t, "app", "amd64", "gzip", layerTar(t, "a", "1"))
			if err := faultpoint.Arm(point + "=1*error"); err != nil {
				t.Fatal(err)
			}
			if _, err := r.pull("app"); err == nil {
				t.Error("the pull succeeded")
			}
			faultpoint.Reset()
			r.restart() // what only a start sweeps is swept
			r.expect(0, 0)
			result := r.mustPull("app")
			if got := r.content(result, "a"); got != "1" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestF11DamagedImageIsMendedByPull(t *testing.T) {
	r := newRig(t)
	r.registry.addImage(t, "app", "amd64", "gzip", layerTar(t, "a", "1"), layerTar(t, "b", "2"))
	r.registry.addImage(t, "other", "amd64", "gzip", layerTar(t, "c", "3"))
	result, other := r.mustPull("app"), r.mustPull("other")
	layers, err := r.driver.Layers()
	if err != nil {
		t.Fatal(err)
	}
	use, err := r.images.Use(result.Image.ID)
	if err != nil || len(layers) != 3 {
		t.Fatal(err, layers)
	}
	if err := os.RemoveAll(r.driver.Path(use.Layers[0].Name)); err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(r.dir, "blobs/sha256", result.Image.Layers[1].Blob.Encoded())
	if err := os.Remove(blob); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if _, err := r.images.Use(result.Image.ID); !errors.Is(err, fault.DataLoss) {
		t.Errorf("use of a damaged image: %v", err)
	}
	if got := r.content(other, "c"); got != "3" {
		t.Errorf("the other image has %q", got)
	}
	r.mustPull("app")
	if a, b := r.content(result, "a"), r.content(result, "b"); a != "1" || b != "2" {
		t.Errorf("after mending: %q, %q", a, b)
	}
	r.restart()
	if a, b := r.content(result, "a"), r.content(result, "b"); a != "1" || b != "2" {
		t.Errorf("after mending and restart: %q, %q", a, b)
	}
	for _, name := range []string{"app", "other"} {
		if _, err := r.images.Remove(name, false); err != nil {
			t.Error(err)
		}
	}
	r.expect(0, 0)
}

func TestTagAndRemove(t *testing.T) {
	r := newRig(t)
	r.registry.addImage(t, "app:1", "amd64", "gzip", layerTar(t, "a", "1"))
	r.registry.addImage(t, "app:2", "amd64", "gzip", layerTar(t, "a", "1"), layerTar(t, "b", "1"))
	one, two := r.mustPull("app:1").Image, r.mustPull("app:2").Image
	for _, name := range []string{"app:extra", "localhost:5000/team/app"} {
		if err := r.images.Tag(one.ID, parse(name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{"app:1", "docker.io/library/app:extra", "localhost:5000/team/app:latest", one.ID.String(), one.ID.Encoded(), one.ID.Encoded()[:12]} {
		if f, err := r.images.Find(text); err != nil || f.ID != one.ID {
			t.Errorf("%s: %v, %v", text, f.ID, err)
		}
	}
	if _, err := r.images.Find("app"); !errors.Is(err, fault.NotFound) {
		t.Errorf("app:latest: %v", err)
	}
	if _, err := r.images.Find("bad name"); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("bad name: %v", err)
	}
	if _, err := r.images.Remove(one.ID.String(), false); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("id with several names: %v", err)
	}
	if _, err := r.images.Use(one.ID); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"app:1", "app:extra"} {
		if gone, err := r.images.Remove(name, false); err != nil || len(gone.Deleted) != 0 {
			t.Errorf("untag %s: %+v, %v", name, gone, err)
		}
	}
	if _, err := r.images.Remove("localhost:5000/team/app", false); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("in use: %v", err)
	}
	r.images.Unuse(one.ID)
	gone, err := r.images.Remove("localhost:5000/team/app", false)
	if err != nil || len(gone.Deleted) != 1 || gone.Deleted[0] != one.ID {
		t.Errorf("removed %+v, %v", gone, err)
	}
	r.expect(4, 2) // app:2 still has the shared layer
	if gone, err := r.images.Remove(two.ID.Encoded()[:12], false); err != nil || len(gone.Deleted) != 3 || gone.Bytes == 0 {
		t.Errorf("removed %+v, %v", gone, err)
	}
	r.expect(0, 0)
	r.restart()
	if all := r.images.List(); len(all) != 0 {
		t.Errorf("listed %v", all)
	}
}
