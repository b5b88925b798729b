// Package images knows which images there are, what they are called and what
// they consist of, and deletes what nobody needs any more.
//
// Everything is a record in a journal, written last and removed first: a blob
// or a layer without a record is garbage from a crash and goes at the next
// start, and a record never promises what is not on the disk.
//
//	image/ID        Image                      ID is the digest of the configuration
//	ref/NAME        what a name points to; NAME is canonical, with tag or digest
//	blob/DIGEST     a compressed layer or a document
//	layer/DIFFID    an unpacked layer, by the digest of its uncompressed tar
//	past/NAME       what a name pointed to before
//
// Blobs and layers are counted: one for each image that needs them and one for
// each [Lease] under which something is being made of them. At zero they are
// deleted. An image stays while it has a name or a container uses it.
package images

import (
	"errors"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"berth/internal/faultpoint"
	"berth/internal/journal"
	"berth/services/imaged/graph"
	"berth/services/imaged/manifest"
	"berth/services/imaged/store"

	"github.com/hashicorp/go-hclog"
	"github.com/opencontainers/go-digest"
)

var (
	imageNamed = faultpoint.Declare("imaged.image-named", "an image's record is written, the answer not yet sent")
	rmiMarked  = faultpoint.Declare("imaged.rmi-marked", "an image's records are gone, its data is still there")
	rmiSwept   = faultpoint.Declare("imaged.rmi-swept", "an image's data is deleted, the answer not yet sent")
)

// Image is one image for one platform. It never changes, except that the same
// image may arrive once more with other manifest and blobs (a different
// compression), which then take the place of the old.
type Image struct {
	ID        digest.Digest `json:"id"`
	Manifest  digest.Digest `json:"manifest"`
	MediaType string        `json:"media_type"` // of the manifest
	Layers    []Layer       `json:"layers"`     // bottom first
	Stored    time.Time     `json:"stored"`     // when it was recorded here
	// Summary is what lists want of the configuration, so that a start need not
	// read ten thousand of them. nil in records of older versions.
	Summary *Summary `json:"summary,omitempty"`
}

// Summary is part of an image's configuration.
type Summary struct {
	Created *time.Time        `json:"created,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

func summaryOf(c *manifest.Config) *Summary {
	return &Summary{Created: c.Created, Labels: c.Config.Labels}
}

// Layer is one layer of an image: the compressed blob and what it contains.
type Layer struct {
	Blob   digest.Digest `json:"blob"`
	DiffID digest.Digest `json:"diff_id"`
}

// Blobs are all the blobs the image needs, each once.
func (i *Image) Blobs() []digest.Digest {
	all := []digest.Digest{i.ID, i.Manifest}
	for _, l := range i.Layers {
		all = append(all, l.Blob)
	}
	return unique(all)
}

// diffIDs are the layers it needs, each once: an image may repeat the empty one.
func (i *Image) diffIDs() []digest.Digest {
	var all []digest.Digest
	for _, l := range i.Layers {
		all = append(all, l.DiffID)
	}
	return unique(all)
}

func unique(all []digest.Digest) []digest.Digest {
	slices.Sort(all)
	return slices.Compact(all)
}

// Ref is what a name points to.
type Ref struct {
	Image digest.Digest `json:"image"`
	// Target is the digest of what the registry had under the name: the
	// manifest, or an index that lists it. Empty for names given here.
	Target digest.Digest `json:"target,omitempty"`
	// Index is set if the index is here that the image is in, with images for
	// other platforms. The blob stays as long as a name has it.
	Index digest.Digest `json:"index,omitempty"`
	// Tree are the manifests and blobs that the index leads to, each once, as
	// far as they are here. They stay with it, whatever becomes of the images.
	Tree  []digest.Digest `json:"tree,omitempty"`
	Since time.Time       `json:"since"`
}

// pins are the blobs that are here because of the name, and not of the image.
func (r Ref) pins() []digest.Digest {
	if r.Index == "" {
		return nil
	}
	return append([]digest.Digest{r.Index}, r.Tree...)
}

// Blob is the record of a blob.
type Blob struct {
	Size int64 `json:"size"` // bytes
	// DiffID is set for layers: what it contains.
	DiffID digest.Digest `json:"diff_id,omitempty"`
	// Gone marks a blob that is being deleted, so that a start deletes what a crash left of it: a file without any record
	// may be of a pull, to be gone on with.
	Gone bool `json:"gone,omitempty"`
}

// Images is the set of images. Its methods may be called from any goroutine.
type Images struct {
	journal *journal.Journal
	store   *store.Store
	driver  graph.Driver
	log     hclog.Logger

	mu     sync.RWMutex
	images map[digest.Digest]*entry
	refs   map[string]Ref
	blobs  map[digest.Digest]*blob
	layers map[digest.Digest]*layer

	missingBlobs, missingLayers tally
	gone                        []digest.Digest // marked so at the start
}

// entry is an image in memory.
type entry struct {
	Image
	config atomic.Pointer[manifest.Config] // nil: not read yet, see configOf
	users  int                             // containers
	names  map[string]bool                 // that point to it
	used   time.Time                       // when a container last came or went, as far as this process knows
}

type blob struct {
	Blob
	count int
}

type layer struct {
	graph.Layer
	count int
}

// count adds n to the count of everything image i needs. The caller holds mu.
func (m *Images) count(i *Image, n int) {
	for _, d := range i.Blobs() {
		if b := m.blobs[d]; b != nil {
			b.count += n
		} else {
			m.missingBlobs.add(d, n)
		}
	}
	for _, d := range i.diffIDs() {
		if l := m.layers[d]; l != nil {
			l.count += n
		} else {
			m.missingLayers.add(d, n)
		}
	}
}

// tally counts the images that need a part which is not here: damaged ones wait
// for it.
type tally map[digest.Digest]int

func (t tally) add(d digest.Digest, n int) {
	if t[d] += n; t[d] <= 0 {
		delete(t, d)
	}
}

// take gives the count of d, which is here from now on.
func (t tally) take(d digest.Digest) int {
	n := t[d]
	delete(t, d)
	return n
}

// parts are blobs and layers.
type parts struct{ blobs, layers []digest.Digest }

// unused are those of the given blobs and layers that nothing needs any more.
// The caller holds mu.
func (m *Images) unused(blobs, layers iter.Seq[digest.Digest]) (p parts) {
	for d := range blobs {
		if b := m.blobs[d]; b != nil && b.count == 0 {
			p.blobs = append(p.blobs, d)
		}
	}
	for d := range layers {
		if l := m.layers[d]; l != nil && l.count == 0 {
			p.layers = append(p.layers, d)
		}
	}
	p.blobs, p.layers = unique(p.blobs), unique(p.layers)
	return p
}

// bytes is what the parts take on the disk.
func (m *Images) bytes(p parts) (sum int64) {
	for _, d := range p.blobs {
		sum += m.blobs[d].Size
	}
	for _, d := range p.layers {
		sum += m.layers[d].Bytes
	}
	return sum
}

// drop commits batch together with the removal of the parts, and then deletes these; with keep, compressed layers and other
// blobs that are no small documents stay where the next pull finds them (store.Resume): they are left of one that did not get to its end. The caller holds mu.
func (m *Images) drop(batch *journal.Batch, p parts, keep bool) error {
	for _, d := range p.blobs {
		if keep {
			batch.Delete(blobPrefix + d.String())
		} else if err := put(batch, blobPrefix+d.String(), Blob{Gone: true}); err != nil {
			return err
		}
	}
	for _, d := range p.layers {
		batch.Delete(layerPrefix + d.String())
	}
	if batch.Len() == 0 {
		return nil
	}
	// On the disk before anything is deleted, or a power cut could bring the
	// records back without what they promise.
	if err := m.journal.Commit(batch, true); err != nil {
		return err
	}
	if err := rmiMarked.Hit(); err != nil {
		return err
	}
	var errs []error
	var swept journal.Batch
	for _, d := range p.blobs {
		var err error
		if b := m.blobs[d]; keep && (b.DiffID != "" || b.Size > manifest.MaxBytes) {
			err = m.store.Demote(d)
		} else {
			err = m.store.Delete(d)
		}
		if err == nil && !keep {
			swept.Delete(blobPrefix + d.String())
		}
		errs = append(errs, err)
		delete(m.blobs, d)
	}
	for _, d := range p.layers {
		errs = append(errs, m.driver.Remove(m.layers[d].Name))
		delete(m.layers, d)
	}
	errs = append(errs, m.journal.Commit(&swept, false), rmiSwept.Hit())
	return errors.Join(errs...)
}
