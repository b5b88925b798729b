package images

import (
	"maps"
	"slices"
	"sync"
	"time"

	"berth/internal/fault"
	"berth/internal/journal"
	"berth/services/imaged/graph"
	"berth/services/imaged/manifest"
	"berth/services/imaged/store"

	"github.com/opencontainers/go-digest"
)

// Lease keeps blobs and layers alive while an image is made of them. Release it
// in the end: what no image took over by then is deleted, except that compressed
// layers of a download stay where the next pull finds them (store.Resume). Its
// methods may be called from any goroutine.
type Lease struct {
	images *Images
	keep   bool // compressed layers then stay for the next download

	mu     sync.Mutex
	blobs  []digest.Digest
	layers []digest.Digest
}

// Lease makes an empty lease.
func (m *Images) Lease() *Lease { return &Lease{images: m} }

// DownloadLease makes an empty lease for what may be asked for again.
func (m *Images) DownloadLease() *Lease { return &Lease{images: m, keep: true} }

// Blob takes hold of blob d and reports whether it is in the store.
func (l *Lease) Blob(d digest.Digest) (Blob, bool) {
	m := l.images
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.blobs[d]
	if b == nil || !m.fullLength(d, b) {
		return Blob{}, false
	}
	l.holdBlob(d, b)
	return b.Blob, true
}

// fullLength tells whether a blob is as long as it should be. One that is not
// counts as missing from then on. The caller holds mu.
func (m *Images) fullLength(d digest.Digest, b *blob) bool {
	size, err := m.store.Size(d)
	if err == nil && size == b.Size || err != nil && !fault.Is(err, fault.NotFound) {
		return true
	}
	m.log.Error("blob is missing or cut short", "digest", d)
	m.missingBlobs.add(d, b.count)
	delete(m.blobs, d)
	return false
}

func (l *Lease) holdBlob(d digest.Digest, b *blob) {
	b.count++
	l.mu.Lock()
	l.blobs = append(l.blobs, d)
	l.mu.Unlock()
}

// Layer takes hold of the layer diffID and reports whether it is unpacked.
func (l *Lease) Layer(diffID digest.Digest) (graph.Layer, bool) {
	m := l.images
	m.mu.Lock()
	defer m.mu.Unlock()
	have := m.layers[diffID]
	if have == nil {
		return graph.Layer{}, false
	}
	l.holdLayer(diffID, have)
	return have.Layer, true
}

func (l *Lease) holdLayer(d digest.Digest, have *layer) {
	have.count++
	l.mu.Lock()
	l.layers = append(l.layers, d)
	l.mu.Unlock()
}

// AddDocument stores and records a small blob that must have the digest d, and
// takes hold of it.
func (l *Lease) AddDocument(raw []byte, d digest.Digest) error {
	b := Blob{Size: int64(len(raw))}
	return l.add(d, b, nil, "", func() error { return l.images.store.PutAs(raw, d) })
}

// AddLayer publishes and records a compressed layer, verified and on the disk,
// and takes hold of it. staged, which is synced, is what it contains: it is
// committed as the layer diffID, unless there is one already, which has to be the
// same; fault.DataLoss if it is not.
func (l *Lease) AddLayer(b *store.Staged, diffID digest.Digest, staged graph.Staged) error {
	return l.compared(diffID, staged, func(like string) error {
		return l.add(b.Digest(), Blob{Size: b.Size(), DiffID: diffID}, staged, like, publisher(b))
	})
}

func publisher(b *store.Staged) func() error {
	return func() error {
		_, err := b.Publish()
		return err
	}
}

// add is done under the lock from the publishing to the record: otherwise the
// sweep of an older copy could delete the new one in between. like is the layer
// that staged was compared with.
func (l *Lease) add(d digest.Digest, b Blob, staged graph.Staged, like string, publish func() error) (err error) {
	m := l.images
	m.mu.Lock()
	defer m.mu.Unlock()
	if staged != nil && !m.settled(b.DiffID, like) {
		return errMeanwhile
	}
	known := m.blobs[d] != nil
	if known && staged == nil { // perhaps as a layer, which says more
		l.holdBlob(d, m.blobs[d])
		return nil
	}
	if err := publish(); err != nil {
		return err
	}
	var fresh *layer
	defer func() {
		if err == nil {
			return
		}
		if !known {
			m.store.Delete(d)
		}
		if fresh != nil {
			m.driver.Remove(fresh.Name)
		}
	}()
	var batch journal.Batch
	if err := put(&batch, blobPrefix+d.String(), b); err != nil {
		return err
	}
	if staged != nil && m.layers[b.DiffID] == nil {
		if err := staged.Commit(); err != nil {
			return err
		}
		fresh = &layer{Layer: staged.Layer()}
		if err := put(&batch, layerPrefix+b.DiffID.String(), fresh.Layer); err != nil {
			return err
		}
	}
	// Not yet durable: the image's record will be, and without it these are
	// only garbage.
	if err := m.journal.Commit(&batch, false); err != nil {
		return err
	}
	m.hold(l, d, b, fresh)
	return nil
}

// hold enters what was added, and the lease's hold on it.
func (m *Images) hold(l *Lease, d digest.Digest, b Blob, fresh *layer) {
	if m.blobs[d] == nil {
		m.blobs[d] = &blob{Blob: b, count: m.missingBlobs.take(d)}
	}
	m.blobs[d].Blob = b
	l.holdBlob(d, m.blobs[d])
	if fresh != nil {
		fresh.count = m.missingLayers.take(b.DiffID)
		m.layers[b.DiffID] = fresh
	}
	if have := m.layers[b.DiffID]; have != nil {
		l.holdLayer(b.DiffID, have)
	}
}

// Named is an image and the names it gets.
type Named struct {
	Image
	Refs map[string]Ref
}

// AddImage records an image all of whose parts are held by the lease, under
// the given names, and returns when that is on the disk. A name that pointed
// elsewhere is moved; what it pointed to stays, if need be without a name,
// until it is removed or pruned.
func (l *Lease) AddImage(i Image, refs map[string]Ref) error {
	return l.AddImages([]Named{{i, refs}})
}

// AddImages is AddImage for several images: all of them are recorded or none.
func (l *Lease) AddImages(all []Named) error {
	m := l.images
	configs := make([]manifest.Config, len(all))
	for n, i := range all {
		raw, err := m.store.ReadAll(i.ID, manifest.MaxBytes)
		if err != nil {
			return err
		}
		if configs[n], err = manifest.ParseConfig(raw); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var batch journal.Batch
	var undo []func()
	undoAll := func() {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}
	refs := map[string]Ref{}
	for n, i := range all {
		f, err := m.enter(&batch, i.Image, configs[n])
		if err != nil {
			undoAll()
			return err
		}
		undo = append(undo, f)
		maps.Copy(refs, i.Refs)
	}
	if err := m.name(&batch, refs, undoAll); err != nil {
		return err
	}
	return imageNamed.Hit()
}

// enter puts i into the batch and into memory; undo takes it out of there. The
// caller holds mu.
func (m *Images) enter(batch *journal.Batch, i Image, config manifest.Config) (undo func(), err error) {
	if err := m.complete(&i); err != nil {
		return nil, err
	}
	old := m.images[i.ID]
	i.Stored = time.Now()
	if old != nil {
		i.Stored = old.Stored
	}
	i.Summary = summaryOf(&config)
	if err := put(batch, imagePrefix+i.ID.String(), i); err != nil {
		return nil, err
	}
	e := &entry{Image: i, names: map[string]bool{}}
	e.config.Store(&config)
	if old != nil {
		e.users, e.names, e.used = old.users, old.names, old.used
	}
	m.images[i.ID] = e
	m.count(&e.Image, 1)
	if old != nil {
		m.count(&old.Image, -1)
	}
	return func() {
		m.count(&e.Image, -1)
		delete(m.images, i.ID)
		if old != nil {
			m.images[i.ID] = old
			m.count(&old.Image, 1)
		}
	}, nil
}

// complete makes sure that everything the image needs is there.
func (m *Images) complete(i *Image) error {
	for _, d := range i.Blobs() {
		if m.blobs[d] == nil {
			return fault.Internal.Errorf("INCOMPLETE", "image %s lacks blob %s", i.ID, d)
		}
	}
	for _, l := range i.Layers {
		if m.layers[l.DiffID] == nil {
			return fault.Internal.Errorf("INCOMPLETE", "image %s lacks layer %s", i.ID, l.DiffID)
		}
	}
	return nil
}

// Release ends the lease.
func (l *Lease) Release() {
	m := l.images
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range l.blobs {
		if b := m.blobs[d]; b != nil {
			b.count--
		} else {
			m.missingBlobs.add(d, -1) // found cut short meanwhile
		}
	}
	for _, d := range l.layers {
		if have := m.layers[d]; have != nil {
			have.count--
		}
	}
	unused := m.unused(slices.Values(l.blobs), slices.Values(l.layers))
	l.blobs, l.layers = nil, nil
	if err := m.drop(&journal.Batch{}, unused, l.keep); err != nil {
		m.log.Error("delete unused blobs and layers", "error", err)
	}
}
