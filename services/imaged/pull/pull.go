// Package pull fetches images from a registry.
//
//	resolve name ─► pick platform ─► manifest ─┬─► configuration ──────────────┐
//	                                           ├─► layer ─┐                    ├─► record
//	                                           └─► layer ─┴─ (each: see fetch) ┘
//
// Layers are independent: each is downloaded, inflated, hashed and unpacked as
// one flow of bytes, all of them at once, without waiting for the configuration
// that says what they should contain. Nothing of it is visible before its
// digest was compared, and the image is recorded last of all, when everything
// it needs is on the disk.
//
// A layer that several pulls want at the same time is fetched once.
package pull

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"berth/internal/fault"
	"berth/services/imaged/gate"
	"berth/services/imaged/graph"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"
	"berth/services/imaged/store"
	"berth/services/imaged/trust"
	"berth/services/imaged/worker"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Registry is what a pull needs of a registry client.
type Registry interface {
	// Manifest fetches and verifies the manifest or index that ref names.
	Manifest(ctx context.Context, ref reference.Named, auth registry.Auth) ([]byte, ocispec.Descriptor, error)
	// Tags lists the tags of a repository.
	Tags(ctx context.Context, repo reference.Named, auth registry.Auth) ([]string, error)
	// Blob reads a blob from offset to its end. It does not verify the digest.
	// *registry.InterruptedError from the reader means that asking again from
	// where it ended may help.
	Blob(ctx context.Context, repo reference.Named, desc ocispec.Descriptor, offset int64, auth registry.Auth) (io.ReadCloser, error)
}

// Config are the parts a Puller works with.
type Config struct {
	Registry Registry
	Store    *store.Store
	Driver   graph.Driver
	Images   *images.Images
	Trust    *trust.Policy // nil: whatever is there may be pulled

	Downloads int // blobs downloaded at once, over all pulls, to begin with
	Unpacks   int // layers unpacked at once, over all pulls, to begin with
	Workers   *worker.Workers
}

// Puller pulls images. Its methods may be called from any goroutine.
type Puller struct {
	Config
	fetches fetches
	full    atomic.Int64 // when the disk was found full, Unix time in ns
}

// New makes a puller.
func New(c Config) *Puller {
	p := &Puller{Config: c}
	p.fetches = fetches{running: map[wanted]*fetch{}, ending: map[wanted]*fetch{}, downloads: gate.New(c.Downloads), unpacks: gate.New(c.Unpacks)}
	return p
}

// SetLimits changes how many blobs are downloaded and layers unpacked at once. Pulls under way obey; zero leaves a limit
// as it is.
func (p *Puller) SetLimits(downloads, unpacks int) {
	if downloads > 0 {
		p.fetches.downloads.SetLimit(downloads)
	}
	if unpacks > 0 {
		p.fetches.unpacks.SetLimit(unpacks)
	}
}

// Limits are how many blobs are downloaded and layers unpacked at once.
func (p *Puller) Limits() (downloads, unpacks int) {
	return p.fetches.downloads.Limit(), p.fetches.unpacks.Limit()
}

// Wait returns when what ended pulls left going on in the background, such as
// tidying up after them, is over. No pull may be running or begin.
func (p *Puller) Wait() { p.fetches.work.Wait() }

// Request says what to pull.
type Request struct {
	Name     reference.Named // with tag or digest
	Platform string          // "os/arch[/variant]"; empty: the host's
	Auth     registry.Auth
	// whole is the index that the name means, fetched before and to be kept; nil: only one platform is.
	whole *whole
	// Progress is called whenever a layer changes its state or has moved on a
	// little; from several goroutines, so it must be quick and safe for that.
	// May be nil.
	Progress func(Progress)

	// vouched is the digest of a manifest that an index lists whose signature is good.
	vouched digest.Digest
}

// Result is a pulled image.
type Result struct {
	Name       reference.Named
	Image      images.Image
	Target     digest.Digest // what the registry has under the name
	Downloaded int64         // bytes of layers fetched for this pull
	UpToDate   bool          // the image and the name were here already
}

// State is how far a layer is: one of these, or words about a registry that has to be waited for.
type State string

const (
	Waiting     State = "waiting"
	Downloading State = "downloading"
	Extracting  State = "extracting" // downloaded, the rest is being unpacked
	Done        State = "done"
	Exists      State = "exists" // was here before
)

// Progress is the state of one layer.
type Progress struct {
	Layer   digest.Digest // of the compressed blob
	State   State
	Current int64 // bytes downloaded
	Total   int64
}

// Pull fetches an image and records it under r.Name. A failed pull leaves
// nothing visible behind; what it has downloaded is kept for the next one, see
// [store.Store.Resume].
func (p *Puller) Pull(ctx context.Context, r Request) (Result, error) {
	if r.Progress == nil {
		r.Progress = func(Progress) {}
	}
	platform, err := manifest.Platform(r.Platform)
	if err != nil {
		return Result{}, err
	}
	if _, err := p.Trust.Needs(r.Name); err != nil {
		return Result{}, err
	}
	lease := p.Images.DownloadLease()
	defer lease.Release()

	raw, desc, err := p.named(ctx, r)
	if err != nil {
		return Result{}, err
	}
	target := desc.Digest
	if registry.IsIndex(desc.MediaType) {
		if raw, desc, err = p.pick(ctx, r, raw, desc, platform); err != nil {
			return Result{}, err
		}
	}
	m, err := manifest.Parse(raw, desc.MediaType)
	if err != nil {
		return Result{}, err
	}
	if err := p.check(ctx, r, target, desc.Digest); err != nil {
		return Result{}, err
	}
	image, downloaded, err := p.fetchAll(ctx, r, lease, m, func() error { return lease.AddDocument(raw, desc.Digest) })
	if err != nil {
		return Result{}, err
	}
	image.Manifest, image.MediaType = desc.Digest, m.MediaType
	result := Result{Name: r.Name, Image: image, Target: target, Downloaded: downloaded, UpToDate: p.current(r.Name, image)}
	refs := images.Names(r.Name, image.ID, target)
	if r.whole == nil {
		return result, lease.AddImage(image, refs)
	}
	tree, downloaded, err := p.tree(ctx, r, lease)
	if err != nil {
		return Result{}, err
	}
	result.Downloaded += downloaded
	for name, ref := range refs {
		ref.Index, ref.Tree = target, tree
		refs[name] = ref
	}
	return result, lease.AddImage(image, refs)
}

// named fetches what the name means, unless that was done.
func (p *Puller) named(ctx context.Context, r Request) ([]byte, ocispec.Descriptor, error) {
	if r.whole != nil {
		return r.whole.raw, r.whole.desc, nil
	}
	return p.Registry.Manifest(ctx, r.Name, r.Auth)
}

// check verifies that what was fetched may be used, by the digest of its bytes: all that comes next is fetched by digests
// that lie in it. The signature may be that of what the name means, or of the manifest that was picked from an index.
func (p *Puller) check(ctx context.Context, r Request, target, picked digest.Digest) error {
	if picked == r.vouched {
		return nil
	}
	err := p.Trust.Check(ctx, r.Name, target, r.Auth)
	if picked != target && fault.ReasonOf(err) == trust.Missing && p.Trust.Check(ctx, r.Name, picked, r.Auth) == nil {
		return nil
	}
	return err
}

// pick fetches the manifest in the index raw that runs on platform.
func (p *Puller) pick(ctx context.Context, r Request, raw []byte, desc ocispec.Descriptor, platform ocispec.Platform) ([]byte, ocispec.Descriptor, error) {
	index, err := manifest.ParseIndex(raw, desc.MediaType)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	chosen, err := manifest.Select(index, platform)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	ref, err := reference.WithDigest(reference.TrimNamed(r.Name), chosen.Digest)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	raw, got, err := p.Registry.Manifest(ctx, ref, r.Auth)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	if registry.IsIndex(got.MediaType) || got.Size != chosen.Size && chosen.Size != 0 {
		return nil, ocispec.Descriptor{}, fault.DataLoss.Errorf("BAD_IMAGE", "image refused: manifest %s is not what the index says", chosen.Digest)
	}
	return raw, got, nil
}

// fetchAll gets configuration and layers, and has the manifest stored, all at once.
func (p *Puller) fetchAll(ctx context.Context, r Request, lease *images.Lease, m manifest.Manifest, keep func() error) (images.Image, int64, error) {
	image := images.Image{ID: m.Config.Digest, Layers: make([]images.Layer, len(m.Layers))}
	fetched := make([]int64, len(m.Layers))
	var config manifest.Config
	g, together := errgroup.WithContext(ctx)
	g.Go(keep)
	g.Go(func() (err error) {
		config, err = p.config(together, r, lease, m)
		return err
	})
	for i, desc := range m.Layers {
		r.Progress(Progress{Layer: desc.Digest, State: Waiting, Total: desc.Size})
		g.Go(func() (err error) {
			image.Layers[i].Blob = desc.Digest
			image.Layers[i].DiffID, fetched[i], err = p.layer(together, r, lease, desc)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return images.Image{}, 0, err
	}
	var sum int64
	for i, l := range image.Layers {
		err := config.Holds(i, l.Blob, l.DiffID, func(a digest.Algorithm) (digest.Digest, error) {
			return p.Workers.Content(ctx, p.Driver, p.Store, l.Blob, a)
		})
		if err != nil {
			return images.Image{}, 0, err
		}
		sum += fetched[i]
	}
	return image, sum, nil
}

// config fetches the configuration and makes sure that it fits the manifest.
func (p *Puller) config(ctx context.Context, r Request, lease *images.Lease, m manifest.Manifest) (manifest.Config, error) {
	raw, err := p.document(ctx, r, lease, m.Config)
	if err != nil {
		return manifest.Config{}, err
	}
	c, err := manifest.ParseConfig(raw)
	if err != nil {
		return manifest.Config{}, err
	}
	return c, c.Fits(m)
}

// document fetches a small blob whole, unless it is in the store.
func (p *Puller) document(ctx context.Context, r Request, lease *images.Lease, desc ocispec.Descriptor) ([]byte, error) {
	if _, ok := lease.Blob(desc.Digest); ok {
		return p.Store.ReadAll(desc.Digest, manifest.MaxBytes)
	}
	body, err := p.Registry.Blob(ctx, reference.TrimNamed(r.Name), desc, 0, r.Auth)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, manifest.MaxBytes))
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", desc.Digest, err)
	}
	return raw, lease.AddDocument(raw, desc.Digest)
}

// current reports whether name already means image.
func (p *Puller) current(name reference.Named, image images.Image) bool {
	found, err := p.Images.Find(name.String())
	return err == nil && found.ID == image.ID && found.Manifest == image.Manifest
}
