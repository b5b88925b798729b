package pull

import (
	"context"

	"berth/internal/fault"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"
	"berth/services/imaged/trust"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
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

// PullPlatforms pulls an image for all its platforms. Each is named by its own digest; the name itself goes to the one
// for this host, or if there is none to the first, and the index stays with it. That one is the last of the results.
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
		if err != nil {
			return all, err
		}
		all = append(all, result)
		if r.Platform == "" {
			r.Platform = platforms.Format(*d.Platform)
		}
	}
	if _, err := manifest.Select(index, platforms.DefaultSpec()); err == nil {
		r.Platform = ""
	}
	r.keepIndex = true
	result, err := p.Pull(ctx, r)
	return append(all, result), err
}
