package hosted

import (
	"context"

	"berth/internal/fault"
	"berth/internal/rest"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// image makes an image of a pushed manifest, whose blobs the lease holds, up to its record: for whatever platform it is,
// as a pull does. Errors of kind DataLoss, Unimplemented and NotFound mean that it is none.
func (h *Hosted) image(ctx context.Context, lease *images.Lease, p Push) (images.Image, error) {
	m, err := manifest.Parse(p.Raw, p.MediaType)
	if err != nil {
		return images.Image{}, err
	}
	raw, err := h.Store.ReadAll(m.Config.Digest, manifest.MaxBytes)
	if err != nil {
		return images.Image{}, err
	}
	config, err := manifest.ParseConfig(raw)
	if err != nil {
		return images.Image{}, err
	}
	if err := config.Fits(m); err != nil {
		return images.Image{}, err
	}
	image := images.Image{ID: m.Config.Digest, Manifest: p.Digest, MediaType: m.MediaType, Layers: make([]images.Layer, len(m.Layers))}
	rest.Begin()
	defer rest.End()
	g, ctx := errgroup.WithContext(ctx)
	for i, desc := range m.Layers {
		g.Go(func() error {
			diffID, err := h.layer(ctx, lease, desc.Digest)
			if err == nil {
				err = config.Holds(i, desc.Digest, diffID, func(a digest.Algorithm) (digest.Digest, error) {
					return h.Workers.Content(ctx, h.Driver, h.Store, desc.Digest, a)
				})
			}
			image.Layers[i] = images.Layer{Blob: desc.Digest, DiffID: diffID}
			return err
		})
	}
	return image, g.Wait()
}

// layer makes sure that a layer is unpacked, and gives its diff id.
func (h *Hosted) layer(ctx context.Context, lease *images.Lease, d digest.Digest) (_ digest.Digest, err error) {
	defer func() { // the archive comes from strangers: a bug in a parser must not end the daemon
		if v := recover(); v != nil {
			err = fault.Internal.Errorf("PANIC", "layer %s: %v", d, v)
		}
	}()
	if err := h.unpacks.Enter(ctx); err != nil {
		return "", err
	}
	defer h.unpacks.Leave()
	b, ok := lease.Blob(d)
	if !ok {
		return "", fault.NotFound.Errorf("BLOB_NOT_FOUND", "layer %s was not pushed", d)
	}
	if b.DiffID != "" {
		if _, ok := lease.Layer(b.DiffID); ok {
			return b.DiffID, nil
		}
	}
	blob, err := h.Store.Open(d)
	if err != nil {
		return "", err
	}
	defer blob.Close()
	staged, diffID, err := h.Workers.Unpack(ctx, h.Driver, blob)
	if err != nil {
		return "", err
	}
	defer staged.Discard()
	if err := staged.Sync(); err != nil {
		return "", err
	}
	return diffID, lease.AddUnpacked(d, diffID, staged)
}
