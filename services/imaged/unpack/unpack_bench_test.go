package unpack

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"testing"
)

// benchArchive names a tar of a real root file system, for example one made by
//
//	debootstrap --variant=minbase bookworm minbase && tar -C minbase --numeric-owner -cf minbase.tar .
const benchArchive = "BERTH_BENCH_TAR"

func archiveForBench(b *testing.B) string {
	path := os.Getenv(benchArchive)
	if path == "" {
		b.Skipf("SKIPPED: set %s to the tar of a root file system", benchArchive)
	}
	st, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(st.Size())
	return path
}

func BenchmarkExtract(b *testing.B) { benchmarkExtract(b, Options{}) }

// BenchmarkImage makes an EROFS image of the same archive.
func BenchmarkImage(b *testing.B) { benchmarkExtract(b, Options{Whiteouts: OverlayUser, Image: true}) }

func benchmarkExtract(b *testing.B, o Options) {
	path := archiveForBench(b)
	for b.Loop() {
		b.StopTimer()
		dir := openTemp(b)
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := Extract(context.Background(), dir, bufio.NewReaderSize(f, 1<<20), o); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		f.Close()
		os.RemoveAll(dir.Name())
		b.StartTimer()
	}
}

// BenchmarkTar is the peer: GNU tar with the options that do the same work.
func BenchmarkTar(b *testing.B) {
	path := archiveForBench(b)
	for b.Loop() {
		b.StopTimer()
		dir := openTemp(b)
		b.StartTimer()
		out, err := exec.Command("tar", "-C", dir.Name(), "--numeric-owner", "-xpf", path).CombinedOutput()
		if err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		b.StopTimer()
		os.RemoveAll(dir.Name())
		b.StartTimer()
	}
}

// openTemp is an empty directory, removed when the test ends.
func openTemp(tb testing.TB) *os.File {
	tb.Helper()
	path := tb.TempDir()
	f, err := os.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	return f
}
