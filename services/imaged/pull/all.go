package pull

import (
	"context"
	"sync/atomic"

	"berth/internal/fault"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"
	"berth/services/imaged/trust"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// PullTags pulls all tags of r.Name's repository, one after another. Tags that are no images, such as signatures, are
// passed over.
func (p *Puller) PullTags(ctx context.Context, r Request, one func(context.Context, Request) ([]Result, error)) ([]Result, error) {
	repo := reference.TrimNamed(r.Name)
	tags, err := p.Registry.Tags(ctx, repo, r.Auth)
	if err != nil {
		return nil, err
	}
	var all []Result
	for _, tag := range tags {
		named, err := reference.WithTag(repo, tag)
		if err != nil {
			return all, err
		}
		r.Name = named
		got, err := one(ctx, r)
		if fault.Is(err, fault.Unimplemented) {
			continue
		}
		if err != nil {
			return all, err
		}
		all = append(all, got...)
	}
	if len(all) == 0 {
		return nil, fault.NotFound.Errorf("NO_TAGS", "repository %s has no tag that is an image", repo.Name()).With("image", repo.Name())
	}
	return all, nil
}

// PullOne is Pull for the one platform of the request.
func (p *Puller) PullOne(ctx context.Context, r Request) ([]Result, error) {
	result, err := p.Pull(ctx, r)
	return []Result{result}, err
}

// PullPlatforms pulls an image for all its platforms, and what else its index lists. Each platform is named by its own
// digest; the name itself goes to the one for this host, or if there is none to the first, and the index with the rest
// stays with it. That one is the last of the results.
func (p *Puller) PullPlatforms(ctx context.Context, r Request) ([]Result, error) {
	if _, err := p.Trust.Needs(r.Name); err != nil {
		return nil, err
	}
	raw, desc, err := p.Registry.Manifest(ctx, r.Name, r.Auth)
	if err != nil {
		return nil, err
	}
	if !registry.IsIndex(desc.MediaType) {
		return p.PullOne(ctx, r)
	}
	index, err := manifest.ParseIndex(raw, desc.MediaType)
	if err != nil {
		return nil, err
	}
	untrusted := p.Trust.Check(ctx, r.Name, desc.Digest, r.Auth)
	if untrusted != nil && fault.ReasonOf(untrusted) != trust.Missing {
		return nil, untrusted
	}
	lease := p.Images.Lease() // two manifests may be of one image, in other compressions, of which the store knows the last
	defer lease.Release()
	var all []Result
	for _, d := range index {
		if !manifest.Runnable(d) {
			continue
		}
		each := r
		if each.Name, err = reference.WithDigest(reference.TrimNamed(r.Name), d.Digest); err != nil {
			return all, err
		}
		if untrusted == nil {
			each.vouched = d.Digest
		}
		result, err := p.Pull(ctx, each)
		if fault.Is(err, fault.Unimplemented) { // an artifact, whatever the index says
			continue
		}
		if err != nil {
			return all, err
		}
		for _, b := range result.Image.Blobs() {
			lease.Blob(b)
		}
		all = append(all, result)
		if r.Platform == "" {
			r.Platform = platforms.Format(*d.Platform)
		}
	}
	if _, err := manifest.Select(index, platforms.DefaultSpec()); err == nil {
		r.Platform = ""
	}
	r.whole = &whole{raw, desc, index}
	result, err := p.Pull(ctx, r)
	return append(all, result), err
}

// whole is an index that is kept with all it leads to.
type whole struct {
	raw    []byte
	desc   ocispec.Descriptor
	listed []ocispec.Descriptor
}

// tree fetches what an index leads to, up to records that the lease holds, and gives the bytes that took: the images in
// it are here by now, what else there is is not.
func (p *Puller) tree(ctx context.Context, r Request, lease *images.Lease) ([]digest.Digest, int64, error) {
	if err := lease.AddDocument(r.whole.raw, r.whole.desc.Digest); err != nil {
		return nil, 0, err
	}
	tree, err := manifest.ReadTree(r.whole.listed, func(d ocispec.Descriptor) ([]byte, error) {
		raw, err := p.listed(ctx, r, lease, d)
		return raw, incomplete(manifest.Called(d), d, err)
	})
	if err != nil {
		return nil, 0, err
	}
	var sum atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range tree.Blobs {
		g.Go(func() error {
			n, err := p.blob(ctx, r, lease, d)
			sum.Add(n)
			return incomplete("part of what it leads to", d, err)
		})
	}
	err = g.Wait()
	return tree.Digests(), sum.Load(), err
}

// listed fetches what an index lists. What is neither manifest nor index by its media type is looked for where containerd
// and ORAS do, among the blobs, and then where docker-registry wants it.
func (p *Puller) listed(ctx context.Context, r Request, lease *images.Lease, d ocispec.Descriptor) ([]byte, error) {
	if _, ok := lease.Blob(d.Digest); ok {
		return p.Store.ReadAll(d.Digest, manifest.MaxBytes)
	}
	if !manifest.Readable(d.MediaType) {
		raw, err := p.document(ctx, r, lease, d)
		if !fault.Is(err, fault.NotFound) {
			return raw, err
		}
	}
	ref, err := reference.WithDigest(reference.TrimNamed(r.Name), d.Digest)
	if err != nil {
		return nil, err
	}
	raw, _, err := p.Registry.Manifest(ctx, ref, r.Auth)
	if err != nil {
		return nil, err
	}
	return raw, lease.AddDocument(raw, d.Digest)
}

// incomplete says what a failure to fetch part of an index means, d being called what.
func incomplete(what string, d ocispec.Descriptor, err error) error {
	if !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.DataLoss) {
		return err
	}
	return fault.KindOf(err).Errorf("INDEX_INCOMPLETE", "the registry does not have all that the index lists: %s: %w", what, err).
		With("digest", d.Digest.String()).Hint("without --all-platforms the image is pulled for one platform, and nothing else of its index")
}
