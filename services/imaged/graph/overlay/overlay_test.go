package overlay_test

import (
	"os"
	"testing"

	"berth/libcontainer/mount"
	"berth/services/imaged/erofs"
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
	if _, err := overlay.ProbeEROFS(); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	if !mount.StacksDetached() {
		t.Skip("SKIPPED: this suite stacks detached mounts, which needs Linux 6.15")
	}
	for name, blockSize := range map[string]int{"least blocks": erofs.MinBlock, "pages": os.Getpagesize()} {
		t.Run(name, func(t *testing.T) {
			graphtest.Run(t, func(dir string, can *trash.Can) (graph.Driver, error) {
				return overlay.NewEROFS(dir, unpack.OverlayUser, blockSize, can)
			})
		})
	}
}

// The form for kernels before 5.11, which newer ones still read.
func TestConformanceTrusted(t *testing.T) {
	graphtest.Run(t, func(dir string, can *trash.Can) (graph.Driver, error) {
		return overlay.New(dir, unpack.OverlayTrusted, can)
	})
}
