package images

import (
	"berth/internal/fault"
	"berth/internal/journal"
	"berth/services/imaged/graph"
	"berth/services/imaged/store"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Sources are the repositories that are known to have had the image id: those it
// was pulled from or pushed to.
func (m *Images) Sources(id digest.Digest) (all []reference.Named) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e := m.images[id]
	if e == nil {
		return nil
	}
	seen := map[string]bool{}
	for name := range e.names {
		repo := repository(name)
		if m.refs[name].Target == "" || seen[repo] {
			continue
		}
		seen[repo] = true
		if named, err := reference.WithName(repo); err == nil {
			all = append(all, named)
		}
	}
	return all
}

// LayerNamed gives the layer diffID, if it is here.
func (m *Images) LayerNamed(diffID digest.Digest) (graph.Layer, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	l := m.layers[diffID]
	if l == nil {
		return graph.Layer{}, false
	}
	return l.Layer, true
}

// MendBlob puts a blob, verified and on the disk, in the place of one that is
// missing or damaged. diffID is what it contains, if it is a layer.
func (m *Images) MendBlob(b *store.Staged, diffID digest.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := b.Publish()
	if err != nil {
		return err
	}
	record := Blob{Size: b.Size(), DiffID: diffID}
	var batch journal.Batch
	if err := put(&batch, blobPrefix+d.String(), record); err != nil {
		return err
	}
	if err := m.journal.Commit(&batch, true); err != nil {
		return err
	}
	if have := m.blobs[d]; have != nil {
		have.Blob = record
	} else {
		m.blobs[d] = &blob{Blob: record, count: m.missingBlobs.take(d)}
	}
	return nil
}

// MendLayer puts a staged and synced layer in the place of one that is missing
// or damaged. FailedPrecondition while a container may have the old one mounted.
func (m *Images) MendLayer(diffID digest.Digest, staged graph.Staged) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.layers[diffID]
	if old != nil {
		for _, e := range m.images {
			for _, l := range e.Layers {
				if l.DiffID == diffID && e.users > 0 {
					return fault.FailedPrecondition.Errorf("IMAGE_IN_USE", "layer %s is used by containers of image %s", diffID, short(e.ID)).
						With("image", e.ID.String()).Hint("remove them first: what a container has mounted is not replaced")
				}
			}
		}
	}
	if err := staged.Commit(); err != nil {
		return err
	}
	fresh := &layer{Layer: staged.Layer()}
	var batch journal.Batch
	if err := put(&batch, layerPrefix+diffID.String(), fresh.Layer); err != nil {
		return err
	}
	if err := m.journal.Commit(&batch, true); err != nil {
		return err
	}
	m.layers[diffID] = fresh
	if old == nil {
		fresh.count = m.missingLayers.take(diffID)
		return nil
	}
	fresh.count = old.count
	return m.driver.Remove(old.Name)
}
