package overlay_test

import (
	"testing"

	"berth/services/imaged/graph"
	"berth/services/imaged/graph/graphtest"
	"berth/services/imaged/graph/overlay"
	"berth/services/imaged/trash"
	"berth/services/imaged/unpack"
)

func TestConformance(t *testing.T) {
	form, err := overlay.Probe(t.TempDir())
	if err != nil {
		t.Skipf("SKIPPED: no overlay here: %v", err)
	}
	graphtest.Run(t, func(dir string, can *trash.Can) (graph.Driver, error) { return overlay.New(dir, form, can) })
}

func TestConformanceEROFS(t *testing.T) {
	if err := overlay.ProbeEROFS(); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	graphtest.Run(t, func(dir string, can *trash.Can) (graph.Driver, error) {
		return overlay.NewEROFS(dir, unpack.OverlayUser, can)
	})
}

// The form for kernels before 5.11, which newer ones still read.
func TestConformanceTrusted(t *testing.T) {
	graphtest.Run(t, func(dir string, can *trash.Can) (graph.Driver, error) {
		return overlay.New(dir, unpack.OverlayTrusted, can)
	})
}
