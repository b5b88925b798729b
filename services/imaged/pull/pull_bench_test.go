package pull

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"berth/internal/journal"
	"berth/services/imaged/graph/overlay"
	"berth/services/imaged/images"
	"berth/services/imaged/registry"
	"berth/services/imaged/store"
	"berth/services/imaged/trash"
	"berth/services/imaged/worker/workertest"

	"github.com/hashicorp/go-hclog"
)

// benchImage names an image in a registry, such as 127.0.0.1:5000/debian. Put
// TMPDIR on the file system to be measured.
const benchImage = "BERTH_BENCH_IMAGE"

// BenchmarkPull is a cold pull into an empty store, with all syncs.
func BenchmarkPull(b *testing.B) {
	name := os.Getenv(benchImage)
	if name == "" {
		b.Skipf("SKIPPED: set %s to an image in a registry", benchImage)
	}
	client := registry.New(registry.Options{})
	defer client.Close()
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		b.StopTimer()
		dir, err := os.MkdirTemp("", "pull-")
		check(err)
		can, err := trash.Open(filepath.Join(dir, "trash"), b.Logf)
		check(err)
		s, err := store.Open(dir)
		check(err)
		driver, err := overlay.New(filepath.Join(dir, "l"), can)
		check(err)
		j, err := journal.Open(filepath.Join(dir, "records"), journal.Options{})
		check(err)
		all, err := images.Open(j, s, driver, hclog.NewNullLogger())
		check(err)
		p := New(Config{Registry: client, Store: s, Driver: driver, Images: all, Downloads: 8, Unpacks: 2, Workers: workertest.Workers(b)})
		b.StartTimer()
		r, err := p.Pull(context.Background(), Request{Name: parse(name)})
		b.StopTimer()
		check(err)
		b.SetBytes(r.Downloaded)
		j.Close()
		can.Close()
		os.RemoveAll(dir)
		b.StartTimer()
	}
}
