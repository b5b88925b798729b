package pull

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"berth/internal/fault"
	"berth/internal/faultpoint"
	"berth/services/imaged/store"

	"github.com/opencontainers/go-digest"
)

// bigLayer is a layer that does not compress.
func bigLayer(t testing.TB, name string) []byte {
	t.Helper()
	noise := make([]byte, 3<<20)
	r := rand.New(rand.NewPCG(uint64(len(name)), uint64(name[0])))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	return layerTar(t, name, string(noise))
}

// kept are the bytes that earlier pulls left.
func (r *rig) kept() int64 {
	r.Helper()
	_, bytes, err := r.store.Partials()
	if err != nil {
		r.Fatal(err)
	}
	return bytes
}

func TestF19ResumesAfterFailure(t *testing.T) {
	r := newRig(t)
	r.registry.addImage(t, "app", "amd64", "gzip", bigLayer(t, "a"))
	r.registry.dieAt = 1 << 20
	if _, err := r.pull("app"); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("a registry that goes away: %v", err)
	}
	r.settle(0, 0)
	kept := r.kept()
	if kept < 900<<10 {
		t.Fatalf("%d bytes are kept of a mebibyte that came", kept)
	}
	r.restart() // what is kept outlives the process
	r.registry.dieAt = 0
	sent := r.registry.sentBytes()
	result := r.mustPull("app")
	if size := r.registry.largest(); result.Downloaded != size-kept || r.registry.sentBytes()-sent > size-kept+4096 {
		t.Errorf("%d of %d bytes were fetched again, the result says %d; %d were kept", r.registry.sentBytes()-sent, size, result.Downloaded, kept)
	}
	r.expect(3, 1)
	if r.kept() != 0 {
		t.Errorf("%d bytes are still kept", r.kept())
	}
	if err := r.images.Verify(result.Image.ID); err != nil {
		t.Error(err)
	}
}

func TestF19KeepsFinishedLayers(t *testing.T) {
	r := newRig(t)
	r.registry.addImage(t, "app", "amd64", "gzip", bigLayer(t, "a"), bigLayer(t, "bb"))
	missing := r.registry.layers[1]
	blob := r.registry.blobs[missing]
	delete(r.registry.blobs, missing)
	r.puller.Downloads = 1
	for range 20 { // which layer comes first is open
		if _, err := r.pull("app"); !errors.Is(err, fault.NotFound) {
			t.Fatalf("a layer is missing: %v", err)
		}
		r.settle(0, 0)
		if r.kept() == int64(len(r.registry.blobs[r.registry.layers[0]])) {
			break
		}
	}
	r.registry.blobs[missing] = blob
	if result := r.mustPull("app"); result.Downloaded > int64(len(blob)) {
		t.Errorf("%d bytes were fetched, the missing layer has %d", result.Downloaded, len(blob))
	}
	r.expect(4, 2)
}

func TestF19CancelledPullGoesOn(t *testing.T) {
	r := newRig(t)
	r.registry.addImage(t, "app", "amd64", "none", bigLayer(t, "a"))
	r.registry.stopAt = 1 << 20 // and waits
	ctx, cancel := context.WithCancel(context.Background())
	_, err := r.puller.Pull(ctx, Request{Name: parse("app"), Progress: func(p Progress) {
		if p.Current > 0 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	kept := int64(1 << 20) // once the cancelled pull has ended, which the next one waits for
	r.registry.stopAt = 0
	if result := r.mustPull("app"); result.Downloaded != r.registry.largest()-kept {
		t.Errorf("%d bytes kept, %d fetched", kept, result.Downloaded)
	}
}

func TestF20DamagedPartIsFetchedAnew(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"a byte":   func(path string) error { return flip(path, 500_000) },
		"zeros":    func(path string) error { return errors.Join(os.Truncate(path, 100_000), os.Truncate(path, 600_000)) },
		"too long": func(path string) error { return os.Truncate(path, 9<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.registry.addImage(t, "app", "amd64", "gzip", bigLayer(t, "a"))
			r.registry.dieAt = 1 << 20
			if _, err := r.pull("app"); err == nil {
				t.Fatal("pulled")
			}
			r.settle(0, 0)
			r.registry.dieAt = 0
			parts, _ := filepath.Glob(filepath.Join(r.dir, "partial/*"))
			if len(parts) != 1 {
				t.Fatalf("kept: %v", parts)
			}
			if err := damage(parts[0]); err != nil {
				t.Fatal(err)
			}
			result := r.mustPull("app")
			if err := r.images.Verify(result.Image.ID); err != nil || result.Downloaded != r.registry.largest() {
				t.Errorf("%d bytes fetched, %v", result.Downloaded, err)
			}
			r.expect(3, 1)
		})
	}
}

func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b[:], at)
	return err
}

func TestF01KilledDownloadGoesOn(t *testing.T) {
	if isChild(t, "kill") {
		if err := faultpoint.Arm("imaged.layer-unpacked=kill"); err != nil {
			t.Fatal(err)
		}
		r := &rig{T: t, dir: os.Getenv("TEST_DIR"), registry: newFakeRegistry()}
		r.registry.addImage(t, "app", "amd64", "gzip", bigLayer(t, "a"))
		r.open()
		r.mustPull("app")
		return
	}
	r := newRig(t)
	r.registry.addImage(t, "app", "amd64", "gzip", bigLayer(t, "a"))
	r.close()
	out, err := child(t, "kill", "TEST_DIR="+r.dir).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child was not killed: %v\n%s", err, out)
	}
	r.open()
	if result := r.mustPull("app"); result.Downloaded != 0 {
		t.Errorf("%d bytes were fetched once more", result.Downloaded)
	}
	r.expect(3, 1)
}

func TestPartialsEnd(t *testing.T) {
	r := newRig(t)
	r.registry.addImage(t, "app", "amd64", "gzip", bigLayer(t, "a"))
	r.registry.dieAt = 1 << 20
	if _, err := r.pull("app"); err == nil {
		t.Fatal("pulled")
	}
	r.settle(0, 0)
	parts, _ := filepath.Glob(filepath.Join(r.dir, "partial/*"))
	old := digest.FromString("old")
	if err := os.WriteFile(filepath.Join(r.dir, "partial", "sha256-"+old.Encoded()), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(parts[0])
	if err != nil {
		t.Fatal(err)
	}
	past := st.ModTime().Add(-store.PartialAge)
	if err := os.Chtimes(filepath.Join(r.dir, "partial", "sha256-"+old.Encoded()), past, past); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if n, _, _ := r.store.Partials(); n != 1 {
		t.Errorf("%d partial downloads after a start, one of two is too old", n)
	}
	if n, bytes, err := r.store.DropPartials(0); n != 1 || bytes != st.Size() || err != nil {
		t.Errorf("dropped %d of %d bytes, %v", n, bytes, err)
	}
	if r.kept() != 0 {
		t.Error("something is left")
	}
}
