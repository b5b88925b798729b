package unpack_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"berth/internal/fault"
	"berth/services/imaged/graph"
	"berth/services/imaged/trash"
	"berth/services/imaged/unpack"
	"berth/services/imaged/worker/workertest"
)

func TestMain(m *testing.M) { os.Exit(workertest.Main(m)) }

// TestS11ByWorker has the corpus unpacked as imaged does it: every archive by a process of its own. What is refused in this
// process is refused there, with the same words, and nothing is changed or left.
func TestS11ByWorker(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: unpacking needs root")
	}
	base := t.TempDir()
	can, err := trash.Open(filepath.Join(base, "trash"), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(can.Close)
	layers, err := graph.OpenLayerDir(filepath.Join(base, "l"), unpack.Options{Whiteouts: unpack.OverlayUser}, can)
	if err != nil {
		t.Fatal(err)
	}
	canary := filepath.Join(base, "l", "canary")
	unpack.PlantCanary(t, canary)
	want := unpack.Snapshot(t, canary)
	workers := workertest.Workers(t)
	for _, a := range unpack.Corpus(t, canary) {
		s, _, err := workers.Unpack(t.Context(), layers, bytes.NewReader(a.Archive))
		switch {
		case a.Harmless && err != nil:
			t.Errorf("%s: %v", a.Name, err)
		case !a.Harmless && (!errors.Is(err, unpack.ErrRefused) || !errors.Is(err, fault.DataLoss)):
			t.Errorf("%s: not refused: %v", a.Name, err)
		}
		if err == nil {
			s.Discard()
		}
		if got := unpack.Snapshot(t, canary); got != want {
			t.Fatalf("%s changed the canary:\n%s\nwas\n%s", a.Name, got, want)
		}
		if names, _ := os.ReadDir(filepath.Join(base, "l")); len(names) != 1 {
			t.Fatalf("%s left %v beside the canary", a.Name, names)
		}
	}
}
