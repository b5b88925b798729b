package images

import (
	"slices"
	"strings"
	"time"

	"berth/internal/fault"
	"berth/internal/journal"
	"berth/services/imaged/graph"
	"berth/services/imaged/store"

	"github.com/opencontainers/go-digest"
)

// What else than images needs blobs, such as manifests that were pushed to this engine's registry, counts them here:
// Open is told at the start which ones, and Keep and LetGo change the counts together with the owner's own records.

// keep counts blobs that somebody else needs.
func (m *Images) keep(all []digest.Digest, n int) {
	for _, d := range all {
		if b := m.blobs[d]; b != nil {
			b.count += n
		} else {
			m.missingBlobs.add(d, n)
		}
	}
}

// Keep commits batch, which records that somebody needs these blobs, and counts them. The caller holds them by a lease.
func (m *Images) Keep(batch *journal.Batch, blobs []digest.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.journal.Commit(batch, true); err != nil {
		return err
	}
	m.keep(blobs, 1)
	return nil
}

// LetGo is the inverse of Keep: it commits batch and deletes those of the blobs that nobody needs any more. It gives
// their size in bytes. What it would come to, Prune tells; see Follow.
func (m *Images) LetGo(batch *journal.Batch, blobs []digest.Digest) (bytes int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.journal.Commit(batch, true); err != nil {
		return 0, err
	}
	m.keep(blobs, -1)
	unused := m.unused(slices.Values(blobs), none)
	bytes = m.bytes(unused)
	return bytes, m.drop(&journal.Batch{}, unused, false)
}

// AddBlob publishes and records a blob of unknown content, verified and on the disk, and takes hold of it.
func (l *Lease) AddBlob(b *store.Staged) error {
	return l.add(b.Digest(), Blob{Size: b.Size()}, nil, "", publisher(b))
}

// AddUnpacked records what blob d, which the lease holds, contains: the layer diffID, staged and on the disk.
func (l *Lease) AddUnpacked(d, diffID digest.Digest, staged graph.Staged) error {
	return l.compared(diffID, staged, func(like string) error { return l.addUnpacked(d, diffID, staged, like) })
}

func (l *Lease) addUnpacked(d, diffID digest.Digest, staged graph.Staged, like string) error {
	m := l.images
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.settled(diffID, like) {
		return errMeanwhile
	}
	b := m.blobs[d]
	if b == nil {
		return fault.Internal.Errorf("INCOMPLETE", "blob %s vanished while it was unpacked", d)
	}
	record := Blob{Size: b.Size, DiffID: diffID}
	var batch journal.Batch
	if err := put(&batch, blobPrefix+d.String(), record); err != nil {
		return err
	}
	var fresh *layer
	if m.layers[diffID] == nil {
		if err := staged.Commit(); err != nil {
			return err
		}
		fresh = &layer{Layer: staged.Layer()}
		if err := put(&batch, layerPrefix+diffID.String(), fresh.Layer); err != nil {
			m.driver.Remove(fresh.Name)
			return err
		}
	}
	if err := m.journal.Commit(&batch, false); err != nil {
		if fresh != nil {
			m.driver.Remove(fresh.Name)
		}
		return err
	}
	b.Blob = record
	if fresh != nil {
		fresh.count = m.missingLayers.take(diffID)
		m.layers[diffID] = fresh
	}
	l.holdLayer(diffID, m.layers[diffID])
	return nil
}

// RefOf gives what the canonical name points to.
func (m *Images) RefOf(name string) (Ref, Image, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	r, ok := m.refs[name]
	if !ok {
		return Ref{}, Image{}, false
	}
	return r, m.images[r.Image].Image, true
}

// named goes through the names in a repository ("host/path", without tag) and what they point to, in no order,
// until f is false. The caller holds mu.
func (m *Images) named(repo string, f func(name string, r Ref, e *entry) bool) {
	for name, r := range m.refs {
		if len(name) > len(repo) && strings.HasPrefix(name, repo) && repository(name) == repo && !f(name, r, m.images[r.Image]) {
			return
		}
	}
}

// ManifestIn finds the image of a repository whose manifest is d.
func (m *Images) ManifestIn(repo string, d digest.Digest) (found Image, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	m.named(repo, func(_ string, _ Ref, e *entry) bool {
		if e.Manifest == d {
			found, ok = e.Image, true
		}
		return !ok
	})
	return found, ok
}

// BesideIn reports whether d is beside an image of a repository: its index, or of what that leads to.
func (m *Images) BesideIn(repo string, d digest.Digest) (ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	m.named(repo, func(_ string, r Ref, _ *entry) bool {
		ok = slices.Contains(r.pins(), d)
		return !ok
	})
	return ok
}

// BlobIn reports whether an image of a repository needs blob d, or has it beside it.
func (m *Images) BlobIn(repo string, d digest.Digest) (ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.blobs[d] == nil {
		return false
	}
	m.named(repo, func(_ string, r Ref, e *entry) bool {
		if ok = e.ID == d || e.Manifest == d || slices.Contains(r.Tree, d); ok {
			return false
		}
		for _, l := range e.Layers {
			ok = ok || l.Blob == d
		}
		return !ok
	})
	return ok
}

// NamesIn are the names in a repository ("host/path", without tag) and what they point to.
func (m *Images) NamesIn(repo string) map[string]Ref {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := map[string]Ref{}
	m.named(repo, func(name string, r Ref, _ *entry) bool {
		all[name] = r
		return true
	})
	return all
}

// Get gives the image id.
func (m *Images) Get(id digest.Digest) (Image, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e := m.images[id]
	if e == nil {
		return Image{}, false
	}
	return e.Image, true
}

// Repositories are the names of all repositories that images have names in, without tags.
func (m *Images) Repositories() map[string]bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := map[string]bool{}
	for name := range m.refs {
		all[repository(name)] = true
	}
	return all
}

// Point makes names point to what refs say, images that are here, and returns when that is on the disk.
func (m *Images) Point(refs map[string]Ref) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, r := range refs {
		if m.images[r.Image] == nil {
			return notFound(r.Image.String())
		}
		r.Since = time.Now()
		refs[name] = r
	}
	return m.name(&journal.Batch{}, refs, func() {})
}

// Unname takes names away, and with them the images that no container uses and that have no other. Names that do not
// exist are passed over.
func (m *Images) Unname(names ...string) (Removal, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var sum Removal
	goes := map[*entry][]string{}
	for _, n := range names {
		if r, ok := m.refs[n]; ok {
			e := m.images[r.Image]
			goes[e] = append(goes[e], n)
		}
	}
	for e, names := range goes {
		r, err := m.remove(e, names, len(names) == len(e.names) && e.users == 0)
		if err != nil {
			return sum, err
		}
		sum.Add(r)
	}
	return sum, nil
}
