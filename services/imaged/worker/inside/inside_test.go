package inside

import (
	"os"
	"testing"

	"berth/services/imaged/unpack"
	"berth/services/imaged/worker/wire"
)

// benchArchive names a tar of a real root file system, as in package unpack.
const benchArchive = "BERTH_BENCH_TAR"

// BenchmarkMakeLayer is the work without the process: what BenchmarkLayer of package worker is to be held against.
func BenchmarkMakeLayer(b *testing.B) {
	benchmarkMakeLayer(b, unpack.Options{Whiteouts: unpack.OverlayUser})
}

// BenchmarkMakeImage is the same with a layer that is one file.
func BenchmarkMakeImage(b *testing.B) {
	benchmarkMakeLayer(b, unpack.Options{Whiteouts: unpack.OverlayUser, Image: true})
}

func benchmarkMakeLayer(b *testing.B, o unpack.Options) {
	path := os.Getenv(benchArchive)
	if path == "" {
		b.Skipf("SKIPPED: set %s to the tar of a root file system", benchArchive)
	}
	for b.Loop() {
		dir, err := os.Open(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := makeLayer(dir, f, wire.Request{Options: o}); err != nil {
			b.Fatal(err)
		}
		f.Close()
		os.RemoveAll(dir.Name())
		dir.Close()
	}
}
