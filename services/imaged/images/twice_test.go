package images

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"berth/internal/fault"
	"berth/services/imaged/graph/graphtest"

	"github.com/opencontainers/go-digest"
)

// TestS11LayerOfAnother: a blob whose content is said to be that of a layer that is here, but is not, gets nowhere, and
// what is here stays as it is, whichever of the two came first. One that is the same is welcome.
func TestS11LayerOfAnother(t *testing.T) {
	r := newRig(t, t.TempDir())
	content := layerTar("passwd", "root")
	diffID := digest.FromBytes(content)
	add := func(blob string, tree []byte) error {
		l := r.images.Lease()
		t.Cleanup(l.Release)
		b, err := r.store.StageNew()
		r.check(err)
		defer b.Discard()
		_, err = b.Write([]byte(blob))
		r.check(err)
		r.check(b.Verify())
		s, err := r.driver.Stage(context.Background(), graphtest.Make(tree))
		r.check(err)
		defer s.Discard()
		return l.AddLayer(b, diffID, s)
	}
	r.check(add("one blob of it", content))
	r.check(add("another blob of it", bytes.Clone(content)))
	for name, tree := range map[string][]byte{
		"content": layerTar("passwd", "evil"), "more": append(layerTar("shadow", "evil")[:1024], content...), "other name": layerTar("shadow", "root"),
	} {
		if err := add("a blob with other "+name, tree); !errors.Is(err, fault.DataLoss) || !strings.Contains(err.Error(), "not what the store has") {
			t.Errorf("other %s: %v", name, err)
		}
	}
	if got, want := r.counts(), "2 1"; got != want {
		t.Errorf("blobs and layers: %s, want %s", got, want)
	}
}
