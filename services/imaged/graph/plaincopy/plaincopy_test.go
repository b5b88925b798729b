package plaincopy_test

import (
	"testing"

	"berth/services/imaged/graph"
	"berth/services/imaged/graph/graphtest"
	"berth/services/imaged/graph/plaincopy"
	"berth/services/imaged/trash"
)

func TestConformance(t *testing.T) {
	graphtest.Run(t, func(dir string, can *trash.Can) (graph.Driver, error) { return plaincopy.New(dir, can) })
}
