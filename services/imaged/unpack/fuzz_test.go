package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
)

// FuzzExtract feeds arbitrary bytes: no panic, and nothing outside changes. On
// a file system in memory (TMPDIR=/dev/shm) and with -fuzzminimizetime=20x it
// runs a hundred times faster.
func FuzzExtract(f *testing.F) {
	for i, a := range corpus("/nonexistent/canary") {
		if i%10 == 0 { // most differ in names only, which the fuzzer finds by itself
			f.Add(archive(f, a.entries...))
		}
	}
	f.Add(archive(f, device("d", tar.TypeChar, 1, 3), file(".wh.x", "")))
	base := f.TempDir()
	canary, layer := filepath.Join(base, "canary"), filepath.Join(base, "layer")
	f.Fuzz(func(t *testing.T, b []byte) {
		plantCanary(t, canary)
		want := snapshot(t, canary)
		must(t, os.Mkdir(layer, 0o700))
		dir, err := os.Open(layer)
		must(t, err)
		defer dir.Close()
		limits := Limits{Entries: 1000, Bytes: 1 << 20}
		Extract(context.Background(), dir, bytes.NewReader(b), Options{Whiteouts: OverlayUser, Limits: limits})
		if got := snapshot(t, canary); got != want {
			t.Fatalf("the canary changed:\n%s\nwas\n%s", got, want)
		}
		if names, _ := os.ReadDir(base); len(names) != 2 {
			t.Fatalf("left %v beside the layer", names)
		}
		must(t, os.RemoveAll(base))
		must(t, os.Mkdir(base, 0o700))
	})
}
