package images

import (
	"maps"

	"berth/internal/journal"
	"berth/services/imaged/graph"
	"berth/services/imaged/manifest"
	"berth/services/imaged/store"

	"github.com/hashicorp/go-hclog"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// Open reads the records in j and makes disk and records agree: what is on the
// disk without a record goes, and so do records nobody refers to. Blobs that are
// kept for others than images, each as often as it is, stay (see Keep).
func Open(j *journal.Journal, s *store.Store, d graph.Driver, log hclog.Logger, kept ...digest.Digest) (*Images, error) {
	m := &Images{
		journal: j, store: s, driver: d, log: log,
		images: map[digest.Digest]*entry{}, refs: map[string]Ref{},
		blobs: map[digest.Digest]*blob{}, layers: map[digest.Digest]*layer{},
		missingBlobs: tally{}, missingLayers: tally{},
	}
	var all []*entry
	var g errgroup.Group // these three look at different things
	g.Go(m.loadBlobs)
	g.Go(m.loadLayers)
	g.Go(func() error {
		return each(m.journal, imagePrefix, decodeImage, func(_ string, i Image) error {
			all = append(all, &entry{Image: i})
			return nil
		})
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	m.images = make(map[digest.Digest]*entry, len(all))
	for _, e := range all {
		m.loadImage(e)
	}
	m.keep(kept, 1)
	if err := m.loadRefs(); err != nil {
		return nil, err
	}
	return m, m.dropUnused()
}

const (
	imagePrefix = "image/"
	refPrefix   = "ref/"
	blobPrefix  = "blob/"
	layerPrefix = "layer/"
)

// loadBlobs keeps the records whose blob is there, and takes away blobs without a
// record. An image that misses one is reported when it is used and mended by the
// next pull. Whether a blob has its full length is looked at when it is used: of
// 100,000 that takes longer than anything else here.
func (m *Images) loadBlobs() error {
	m.blobs = make(map[digest.Digest]*blob, m.journal.Len()/2)
	var some slab[blob]
	err := each(m.journal, blobPrefix, decodeBlob, func(key string, b Blob) error {
		if b.Gone {
			m.gone = append(m.gone, digest.Digest(key))
			return m.store.Delete(digest.Digest(key))
		}
		have := some.next()
		have.Blob = b
		m.blobs[digest.Digest(key)] = have
		return nil
	})
	if err != nil {
		return err
	}
	found := 0
	for d, err := range m.store.All() {
		if err != nil {
			return err
		}
		if b := m.blobs[d]; b != nil {
			b.count = onDisk
			found++
		} else if err := m.store.Demote(d); err != nil {
			return err
		}
	}
	missing := found < len(m.blobs)
	for d, b := range m.blobs {
		if missing && b.count != onDisk {
			m.log.Error("blob is missing", "digest", d)
			delete(m.blobs, d)
		}
		b.count = 0
	}
	return nil
}

// onDisk is the count of what was found there, while that is being looked up.
const onDisk = -1

// loadLayers is loadBlobs for layers.
func (m *Images) loadLayers() error {
	names, err := m.driver.Layers()
	if err != nil {
		return err
	}
	m.layers = make(map[digest.Digest]*layer, len(names))
	byName := make(map[string]*layer, len(names))
	var some slab[layer]
	err = each(m.journal, layerPrefix, decodeLayer, func(key string, l graph.Layer) error {
		have := some.next()
		have.Layer = l
		m.layers[digest.Digest(key)], byName[l.Name] = have, have
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range names {
		if l := byName[n]; l != nil {
			l.count = onDisk
		} else if err := m.driver.Remove(n); err != nil {
			return err
		}
	}
	for d, l := range m.layers {
		if l.count != onDisk {
			m.log.Error("layer is missing", "diff_id", d, "layer", l.Name)
			delete(m.layers, d)
		}
		l.count = 0
	}
	return nil
}

// slab allocates many of a kind at once. They stay together as long as one is needed.
type slab[T any] []T

func (s *slab[T]) next() *T {
	if len(*s) == 0 {
		*s = make([]T, 64)
	}
	one := &(*s)[0]
	*s = (*s)[1:]
	return one
}

func (m *Images) loadImage(e *entry) {
	e.names = make(map[string]bool, 1)
	if e.Summary == nil {
		c, err := m.configOf(e)
		if err != nil {
			m.log.Error("image is damaged", "image", e.ID, "error", err)
			c = &manifest.Config{}
		}
		e.Summary = summaryOf(c)
	}
	m.images[e.ID] = e
	m.count(&e.Image, 1)
}

// configOf gives the configuration of e, which is read when it is first asked
// for. DataLoss if it is damaged.
func (m *Images) configOf(e *entry) (*manifest.Config, error) {
	if c := e.config.Load(); c != nil {
		return c, nil
	}
	raw, err := m.store.ReadAll(e.ID, manifest.MaxBytes)
	if err != nil {
		return nil, err
	}
	c, err := manifest.ParseConfig(raw)
	if err != nil {
		return nil, err
	}
	e.config.Store(&c)
	return &c, nil
}

func (m *Images) loadRefs() error {
	return each(m.journal, refPrefix, decodeRef, func(name string, r Ref) error {
		if e := m.images[r.Image]; e != nil {
			m.refs[name] = r
			e.names[name] = true
			m.pin(r, 1)
		}
		return nil
	})
}

// dropUnused deletes what a crash left recorded but unused: layers of a pull
// that did not get to its image.
func (m *Images) dropUnused() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var batch journal.Batch
	m.dropPast(&batch)
	for _, d := range m.gone {
		batch.Delete(blobPrefix + d.String())
	}
	m.gone = nil
	return m.drop(&batch, m.unused(maps.Keys(m.blobs), maps.Keys(m.layers)), true)
}
