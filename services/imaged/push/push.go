// Package push sends images to a registry, byte for byte as they came: the
// compressed blobs are in the store, so digests do not change.
package push

import (
	"context"
	"io"
	"strings"
	"sync/atomic"

	"berth/internal/fault"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"
	"berth/services/imaged/store"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Registry is what a push needs of a registry client.
type Registry interface {
	// PushBlob sends a blob unless the repository has it or can take it from
	// repository mountFrom. progress gets the bytes sent so far.
	PushBlob(ctx context.Context, repo reference.Named, desc ocispec.Descriptor, open func() (io.ReadCloser, error),
		mountFrom string, auth registry.Auth, progress func(sent int64)) (skipped bool, err error)
	PushManifest(ctx context.Context, ref reference.Named, mediaType string, raw []byte, auth registry.Auth) (digest.Digest, error)
}

// Pusher pushes images.
type Pusher struct {
	Registry Registry
	Store    *store.Store
	Images   *images.Images
	Uploads  int // blobs sent at once by one push; at least one
}

// State is how far a blob is.
type State string

const (
	Waiting   State = "waiting"
	Uploading State = "uploading"
	Done      State = "done"
	Exists    State = "exists" // the registry had it
)

// Progress is the state of one blob.
type Progress struct {
	Blob    digest.Digest
	State   State
	Current int64 // bytes sent
	Total   int64
}

// Request says what to push.
type Request struct {
	Name reference.NamedTagged
	Auth registry.Auth
	// AllPlatforms pushes the index that the image came from and all others in it.
	AllPlatforms bool
	Progress     func(Progress) // called from several goroutines; may be nil
}

// Result is what the registry now has.
type Result struct {
	Digest   digest.Digest // of the manifest
	Size     int64         // bytes of all blobs
	Uploaded int64         // bytes that were sent
}

// Push sends the image called r.Name to the registry in that name. Trying again
// after a failure goes on where it ended, blob by blob.
func (p *Pusher) Push(ctx context.Context, r Request) (Result, error) {
	if r.Progress == nil {
		r.Progress = func(Progress) {}
	}
	found, err := p.Images.Find(r.Name.String())
	if err != nil {
		return Result{}, err
	}
	result := Result{}
	if r.AllPlatforms {
		result, err = p.family(ctx, r, found)
	} else {
		result, err = p.image(ctx, r, found.Image, r.Name)
	}
	if err != nil {
		return Result{}, err
	}
	return result, p.Images.Pushed(found.ID, r.Name, result.Digest)
}

// family pushes all that an index leads to, and then the index: a registry takes it only with all it lists.
func (p *Pusher) family(ctx context.Context, r Request, found images.Found) (result Result, err error) {
	f, err := p.Images.Family(found)
	if err != nil {
		return Result{}, err
	}
	if f.Index == "" {
		return p.image(ctx, r, found.Image, r.Name)
	}
	lease := p.Images.Lease()
	defer lease.Release()
	result.Size, result.Uploaded, err = p.blobs(ctx, r, lease, f.Tree.Blobs, p.mountFrom(found.ID, r.Name))
	if err != nil {
		return Result{}, err
	}
	for _, m := range f.Tree.Manifests {
		name, err := reference.WithDigest(reference.TrimNamed(r.Name), m.Digest)
		if err != nil {
			return Result{}, err
		}
		if _, err := p.Registry.PushManifest(ctx, name, m.MediaType, m.Raw, r.Auth); err != nil {
			return Result{}, err
		}
	}
	result.Digest, err = p.Registry.PushManifest(ctx, r.Name, f.MediaType, f.Raw, r.Auth)
	return result, err
}

// image pushes one image under a name.
func (p *Pusher) image(ctx context.Context, r Request, image images.Image, name reference.Named) (Result, error) {
	raw, err := p.Store.ReadAll(image.Manifest, manifest.MaxBytes)
	if err != nil {
		return Result{}, err
	}
	m, err := manifest.Parse(raw, image.MediaType)
	if err != nil {
		return Result{}, err
	}
	lease := p.Images.Lease() // removing the image meanwhile must not take the blobs away
	defer lease.Release()
	size, sent, err := p.blobs(ctx, r, lease, append(m.Layers, m.Config), p.mountFrom(image.ID, r.Name))
	if err != nil {
		return Result{}, err
	}
	d, err := p.Registry.PushManifest(ctx, name, m.MediaType, raw, r.Auth)
	return Result{Digest: d, Size: size, Uploaded: sent}, err
}

func (p *Pusher) blobs(ctx context.Context, r Request, lease *images.Lease, all []ocispec.Descriptor, mountFrom string) (size, sent int64, err error) {
	var uploaded atomic.Int64
	seen := map[digest.Digest]bool{}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(p.Uploads, 1))
	for _, desc := range all {
		if seen[desc.Digest] {
			continue
		}
		seen[desc.Digest] = true
		size += desc.Size
		if _, ok := lease.Blob(desc.Digest); !ok {
			g.Go(func() error {
				return fault.DataLoss.Errorf("IMAGE_DAMAGED", "blob %s of the image is missing", desc.Digest).Hint("pull it again")
			})
			break
		}
		r.Progress(Progress{desc.Digest, Waiting, 0, desc.Size})
		g.Go(func() error {
			n, err := p.blob(ctx, r, desc, mountFrom)
			uploaded.Add(n)
			return err
		})
	}
	err = g.Wait()
	return size, uploaded.Load(), err
}

// blob sends one blob and gives the number of bytes that took.
func (p *Pusher) blob(ctx context.Context, r Request, desc ocispec.Descriptor, mountFrom string) (int64, error) {
	open := func() (io.ReadCloser, error) { return p.Store.Open(desc.Digest) }
	progress := func(sent int64) { r.Progress(Progress{desc.Digest, Uploading, sent, desc.Size}) }
	skipped, err := p.Registry.PushBlob(ctx, reference.TrimNamed(r.Name), desc, open, mountFrom, r.Auth, progress)
	if err != nil {
		return 0, err
	}
	if skipped {
		r.Progress(Progress{desc.Digest, Exists, desc.Size, desc.Size})
		return 0, nil
	}
	r.Progress(Progress{desc.Digest, Done, desc.Size, desc.Size})
	return desc.Size, nil
}

// mountFrom is another repository of the registry that very likely has the
// image's blobs, because the image has a name there as well.
func (p *Pusher) mountFrom(id digest.Digest, to reference.Named) string {
	info, err := p.Images.Inspect(id)
	if err != nil {
		return ""
	}
	for _, name := range info.Digests { // names with a digest were pulled or pushed
		named, err := reference.ParseNormalizedNamed(name)
		if err == nil && reference.Domain(named) == reference.Domain(to) && reference.Path(named) != reference.Path(to) &&
			!strings.HasPrefix(name, "sha256:") {
			return reference.Path(named)
		}
	}
	return ""
}

var _ Registry = (*registry.Client)(nil)
