package importer

import (
	"os"
	"path/filepath"
	"testing"

	"berth/internal/journal"
	"berth/services/imaged/graph/overlay"
	"berth/services/imaged/images"
	"berth/services/imaged/store"
	"berth/services/imaged/trash"
	"berth/services/imaged/worker/workertest"

	"github.com/hashicorp/go-hclog"
)

func TestMain(m *testing.M) { os.Exit(workertest.Main(m)) }

// rig is imaged's store, and an importer to it.
type rig struct {
	testing.TB
	dir string
	Importer
}

func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: unpacking needs root")
	}
	r := &rig{TB: t, dir: t.TempDir()}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	j, err := journal.Open(filepath.Join(r.dir, "journal"), journal.Options{})
	check(err)
	can, err := trash.Open(filepath.Join(r.dir, "trash"), t.Logf)
	check(err)
	t.Cleanup(func() {
		can.Close()
		j.Close()
	})
	r.Store, err = store.Open(r.dir)
	check(err)
	r.Driver, err = overlay.New(filepath.Join(r.dir, "l"), can)
	check(err)
	r.Images, err = images.Open(j, r.Store, r.Driver, hclog.NewNullLogger())
	check(err)
	r.Workers = workertest.Workers(t)
	return r
}

// files are those in the store's directory that match pattern.
func (r *rig) files(pattern string) []string {
	r.Helper()
	all, err := filepath.Glob(filepath.Join(r.dir, pattern))
	if err != nil {
		r.Fatal(err)
	}
	return all
}
