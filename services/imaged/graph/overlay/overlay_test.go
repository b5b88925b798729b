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
)

func TestConformance(t *testing.T) {
	if err := overlay.Probe(t.TempDir()); err != nil {
		t.Skipf("SKIPPED: no overlay here: %v", err)
	}
	graphtest.Run(t, func(dir string, can *trash.Can) (graph.Driver, error) { return overlay.New(dir, can) })
}

func TestConformanceEROFS(t *testing.T) {
	if err := overlay.ProbeEROFS(t.TempDir()); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	if !mount.StacksDetached() {
		t.Skip("SKIPPED: this suite stacks detached mounts, which needs Linux 6.15")
	}
	for name, blockSize := range map[string]int{"least blocks": erofs.MinBlock, "pages": os.Getpagesize()} {
		t.Run(name, func(t *testing.T) {
			graphtest.Run(t, func(dir string, can *trash.Can) (graph.Driver, error) {
				return overlay.NewEROFS(dir, blockSize, can)
			})
		})
	}
}
