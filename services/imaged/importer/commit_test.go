package importer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"berth/services/imaged/graph/merge"
	"berth/services/imaged/graph/overlay"
	"berth/services/imaged/images"
	"berth/services/imaged/unpack"

	"github.com/opencontainers/go-digest"
)

// base imports an image of one file.
func (r *rig) base() images.Image {
	r.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "base", Mode: 0o644, Size: 1})
	w.Write([]byte("x"))
	w.Close()
	image, err := r.Import(context.Background(), Request{Archive: &archive})
	if err != nil {
		r.Fatal(err)
	}
	return image
}

// commit commits what is in upper on top of base.
func (r *rig) commit(base images.Image, upper string) (images.Image, error) {
	return r.Commit(context.Background(), CommitRequest{
		Base: base.ID,
		Layer: func(w io.Writer) error {
			return merge.WriteLayer(context.Background(), w, upper, "", unpack.OverlayUser)
		},
	})
}

// TestCommit: the blob of a committed layer is one gzip stream of the archive that its digest says, the unpacked layer has
// the files, and the same files give the same blob.
func TestCommit(t *testing.T) {
	r := newRig(t)
	upper := t.TempDir()
	rnd := rand.New(rand.NewPCG(3, 4))
	want := map[string][]byte{"empty": nil}
	for i := range 40 { // some MiB: several blocks
		content := bytes.Repeat([]byte(fmt.Sprint("file ", i, "\n")), 1+rnd.IntN(60_000))
		want[fmt.Sprint("file", i)] = content
	}
	for name, content := range want {
		if err := os.WriteFile(filepath.Join(upper, name), content, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	base := r.base()
	image, err := r.commit(base, upper)
	if err != nil {
		t.Fatal(err)
	}
	layer := image.Layers[len(image.Layers)-1]
	f, err := r.Store.Open(layer.Blob)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	z.Multistream(false)
	if d, err := digest.FromReader(z); err != nil || d != layer.DiffID {
		t.Errorf("the blob is an archive of digest %s, recorded as %s: %v", d, layer.DiffID, err)
	}
	use, err := r.Images.Use(image.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Images.Unuse(image.ID)
	root := r.Driver.(*overlay.Driver).Root(use.Layers[1].Name)
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != len(want) {
		t.Errorf("%d files instead of %d: %v", len(entries), len(want), err)
	}
	for name, content := range want {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes instead of %d: %v", name, len(got), len(content), err)
		}
	}
	again, err := r.commit(base, upper)
	if err != nil || again.Layers[1] != layer {
		t.Errorf("the same files give %v, then %v: %v", layer, again.Layers[1], err)
	}
}

// TestCommitFails: whatever ends it, a commit that fails leaves no file and no goroutine behind.
func TestCommitFails(t *testing.T) {
	r := newRig(t)
	base := r.base()
	blobs := r.files("blobs/*/*")
	before := runtime.NumGoroutine()
	gone := errors.New("the container's disk is gone")
	for name, layer := range map[string]func(io.Writer) error{
		"at once": func(io.Writer) error { return gone },
		"in the middle": func(w io.Writer) error {
			tw := tar.NewWriter(w)
			tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "a", Mode: 0o644, Size: 8 << 20})
			tw.Write(make([]byte, 3<<20))
			return gone
		},
		"refused": func(w io.Writer) error {
			tw := tar.NewWriter(w)
			tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "../a", Mode: 0o644, Size: 8 << 20})
			_, err := tw.Write(make([]byte, 8<<20))
			return errors.Join(err, tw.Close())
		},
	} {
		if _, err := r.Commit(context.Background(), CommitRequest{Base: base.ID, Layer: layer}); err == nil || name != "refused" && !errors.Is(err, gone) {
			t.Errorf("%s: %v", name, err)
		}
		for _, pattern := range []string{"staging/*", "l/new.*", "partial/*"} {
			if left := r.files(pattern); len(left) > 0 {
				t.Errorf("%s: left behind: %v", name, left)
			}
		}
	}
	if now := r.files("blobs/*/*"); !slices.Equal(now, blobs) {
		t.Errorf("blobs %v, then %v", blobs, now)
	}
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines more than before", runtime.NumGoroutine()-before)
		}
	}
}

// benchTree names a directory that stands for a container's writable layer. Put TMPDIR on the file system to be measured.
const benchTree = "BERTH_BENCH_TREE"

// BenchmarkCommit is a commit with all syncs.
func BenchmarkCommit(b *testing.B) {
	tree := os.Getenv(benchTree)
	if tree == "" {
		b.Skipf("SKIPPED: set %s to a directory with many files", benchTree)
	}
	r := newRig(b)
	base := r.base()
	before := processorTime()
	for b.Loop() {
		image, err := r.commit(base, tree)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if _, err := r.Images.Remove(image.ID.String(), true); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric((processorTime()-before).Seconds()/float64(b.N), "cpu-s/op")
}

// processorTime is what this process and those that unpacked have taken.
func processorTime() (sum time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		syscall.Getrusage(who, &u)
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}
