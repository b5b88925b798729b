package archive

import (
	"context"
	"io"
	"slices"
	"time"

	"berth/services/imaged/graph"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/store"
	"berth/services/imaged/worker"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// LoaderConfig are the parts a Loader works with.
type LoaderConfig struct {
	Store   *store.Store
	Driver  graph.Driver
	Images  *images.Images
	Unpacks int // layers unpacked at once, over all loads
	Workers *worker.Workers
}

// Loader loads archives. Its methods may be called from any goroutine.
type Loader struct {
	LoaderConfig
	unpacks chan struct{}
}

// NewLoader makes a loader.
func NewLoader(c LoaderConfig) *Loader {
	return &Loader{LoaderConfig: c, unpacks: make(chan struct{}, max(c.Unpacks, 1))}
}

// LoadRequest says what to load.
type LoadRequest struct {
	Archive io.Reader // tar, plain or compressed with gzip or zstd; read to its end
	// Platform "os/arch[/variant]" is what to take of images for several; empty:
	// the host's, or the only one that the archive has.
	Platform string
	// AllPlatforms takes all that the archive has; the name goes to the one Platform
	// would take, the others are named by digest.
	AllPlatforms bool
	// Progress is called from several goroutines; may be nil.
	Progress func(Progress)
}

// State is how far a layer is.
type State string

const (
	Reading    State = "reading"
	Extracting State = "extracting" // read, the rest is being unpacked
	Done       State = "done"
	Exists     State = "exists" // was here before
)

// Progress is the state of one layer of an archive.
type Progress struct {
	Layer   string // its digest, or "file:NAME" where the archive does not tell
	State   State
	Current int64 // bytes read
	Total   int64
}

// Loaded is an image that was loaded.
type Loaded struct {
	ID    digest.Digest
	Names []reference.Named // as the archive has them; none if it has none
}

// Load makes the images of an archive. All of them are recorded at once, when
// everything they need is on the disk; a failed load leaves nothing behind.
func (l *Loader) Load(ctx context.Context, r LoadRequest) ([]Loaded, error) {
	if r.Progress == nil {
		r.Progress = func(Progress) {}
	}
	if _, err := manifest.Platform(r.Platform); err != nil {
		return nil, err
	}
	lease := l.Images.Lease()
	defer lease.Release()
	in := &intake{
		Loader: l, lease: lease, progress: r.Progress, whole: r.AllPlatforms, entries: map[string]*entry{}, blobs: map[digest.Digest]*entry{},
		commit: &committer{lease: lease}, open: make(chan struct{}, maxOpen),
		content: func(blob digest.Digest, a digest.Algorithm) (digest.Digest, error) {
			return l.Workers.Content(ctx, l.Driver, l.Store, blob, a)
		},
	}
	if err := in.read(ctx, r.Archive); err != nil {
		return nil, err
	}
	found, err := in.find(r.Platform, r.AllPlatforms)
	if err != nil {
		return nil, err
	}
	return l.record(lease, found)
}

const importHint = "`berth import` makes an image of a root file system's archive"

// candidate is an image of an archive.
type candidate struct {
	raw    []byte             // its manifest
	desc   ocispec.Descriptor // of the manifest
	config *entry
	image  images.Image
	names  []reference.Named
	index  *entry          // that is kept with the names; nil for none
	tree   []digest.Digest // what is kept with it
}

// find reads what images the archive says it has and picks those to load.
func (in *intake) find(platform string, all bool) ([]*candidate, error) {
	_, oci := in.entries[indexFile]
	_, docker := in.entries[manifestFile]
	switch {
	case oci:
		layout, err := in.layout()
		if err != nil {
			return nil, err
		}
		if docker {
			if err := in.agree(layout); err != nil {
				return nil, err
			}
		}
		return layout.pick(platform, all)
	case docker:
		return in.dockerImages(platform)
	}
	return nil, refused("it has neither %s nor %s, so it holds no images", indexFile, manifestFile).
		Hint(importHint)
}

// makeOf completes a candidate from its manifest and configuration: all layers
// must be there and hold what the configuration says.
func (in *intake) makeOf(c *candidate, m manifest.Manifest, config manifest.Config) error {
	if err := config.Fits(m); err != nil {
		return err
	}
	c.image = images.Image{ID: c.config.digest, Manifest: c.desc.Digest, MediaType: m.MediaType, Layers: make([]images.Layer, len(m.Layers))}
	for i, desc := range m.Layers {
		diffID, err := in.layerOf(desc)
		if err != nil {
			return err
		}
		err = config.Holds(i, desc.Digest, diffID, func(a digest.Algorithm) (digest.Digest, error) {
			return in.content(desc.Digest, a)
		})
		if err != nil {
			return err
		}
		c.image.Layers[i] = images.Layer{Blob: desc.Digest, DiffID: diffID}
	}
	return nil
}

// layerOf gives what the layer desc contains: it came with the archive, or is
// in the store.
func (in *intake) layerOf(desc ocispec.Descriptor) (digest.Digest, error) {
	e := in.blobs[desc.Digest]
	if e == nil {
		e = &entry{kind: layer, size: desc.Size}
		if !in.have(e, desc.Digest) {
			return "", refused("it lacks layer %s", desc.Digest)
		}
	}
	if e.notLayer != nil {
		return "", e.notLayer
	}
	if e.kind != layer || e.diffID == "" {
		return "", refused("%s is no layer", desc.Digest)
	}
	if e.size != desc.Size {
		return "", refused("layer %s has %d bytes instead of %d", desc.Digest, e.size, desc.Size)
	}
	return e.diffID, nil
}

// record adds the images, all or none.
func (l *Loader) record(lease *images.Lease, found []*candidate) ([]Loaded, error) {
	var loaded []Loaded
	var add []images.Named
	refs := map[string]digest.Digest{}
	for _, c := range found {
		for d, raw := range map[digest.Digest][]byte{c.image.ID: c.config.raw, c.image.Manifest: c.raw} {
			if raw == nil { // it is here
				continue
			}
			if err := lease.AddDocument(raw, d); err != nil {
				return nil, err
			}
		}
		if c.index != nil {
			if err := lease.AddDocument(c.index.raw, c.index.digest); err != nil {
				return nil, err
			}
		}
		named := images.Named{Image: c.image, Refs: map[string]images.Ref{}}
		for _, n := range c.names {
			if other, ok := refs[n.String()]; ok && other != c.image.ID {
				return nil, refused("two of its images are called %s", images.Familiar(n.String()))
			}
			refs[n.String()] = c.image.ID
			ref := images.Ref{Image: c.image.ID, Since: time.Now()}
			if c.index != nil {
				ref.Index, ref.Tree = c.index.digest, c.tree
			}
			named.Refs[images.Key(n)] = ref
		}
		add = append(add, named)
		at := slices.IndexFunc(loaded, func(l Loaded) bool { return l.ID == c.image.ID })
		if at < 0 {
			at = len(loaded)
			loaded = append(loaded, Loaded{ID: c.image.ID})
		}
		loaded[at].Names = append(loaded[at].Names, c.names...)
	}
	return loaded, lease.AddImages(add)
}
