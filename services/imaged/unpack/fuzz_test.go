package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
)

// FuzzExtract feeds arbitrary bytes: no panic, and nothing outside changes.
func FuzzExtract(f *testing.F) {
	for _, a := range corpus("/nonexistent/canary") {
		f.Add(archive(f, a.entries...))
	}
	f.Add(archive(f, device("d", tar.TypeChar, 1, 3), file(".wh.x", "")))
	f.Fuzz(func(t *testing.T, b []byte) {
		base := t.TempDir()
		canary := filepath.Join(base, "canary")
		plantCanary(t, canary)
		want := snapshot(t, canary)
		layer := filepath.Join(base, "layer")
		must(t, os.Mkdir(layer, 0o700))
		dir, err := os.Open(layer)
		must(t, err)
		defer dir.Close()
		limits := Limits{Entries: 1000, Bytes: 16 << 20}
		Extract(context.Background(), dir, bytes.NewReader(b), Options{Whiteouts: OverlayUser, Limits: limits})
		if got := snapshot(t, canary); got != want {
			t.Fatalf("the canary changed:\n%s\nwas\n%s", got, want)
		}
	})
}
