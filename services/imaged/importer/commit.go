package importer

import (
	"context"
	"io"
	"time"

	"berth/internal/fault"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CommitRequest says what to put on top of an image.
type CommitRequest struct {
	Base      digest.Digest             // id of the image
	Layer     func(w io.Writer) error   // writes the archive of the new layer
	Name      reference.Named           // may be nil
	Config    func(p *manifest.Process) // what the container was started with; may be nil
	Changes   []string                  // Dockerfile instructions, see apply
	Message   string                    // for the history, as the next two
	Author    string
	CreatedBy string
	Progress  func(written int64)
}

// emptyTar is the digest of an archive without files.
var emptyTar = digest.FromBytes(make([]byte, 1024))

// Commit makes an image of another and a layer on top. A layer without files is
// left out. A failed commit leaves nothing behind.
func (im *Importer) Commit(ctx context.Context, r CommitRequest) (images.Image, error) {
	lease := im.Images.Lease()
	defer lease.Release()
	b, err := im.base(r.Base, lease)
	if err != nil {
		return images.Image{}, err
	}
	if r.Config != nil {
		r.Config(&b.config.Config)
	}
	for _, change := range r.Changes {
		if err := apply(&b.config.Config, change); err != nil {
			return images.Image{}, err
		}
	}
	layer, diffID, err := im.written(ctx, r, lease)
	if err != nil {
		return images.Image{}, err
	}
	now := time.Now().UTC()
	b.config.Created = &now
	if r.Author != "" {
		b.config.Author = r.Author
	}
	b.config.History = append(b.config.History, manifest.History{
		Created: &now, CreatedBy: r.CreatedBy, Author: r.Author, Comment: r.Message, EmptyLayer: diffID == emptyTar,
	})
	if diffID != emptyTar {
		b.config.RootFS.DiffIDs = append(b.config.RootFS.DiffIDs, diffID)
		b.layers = append(b.layers, layer)
		b.image.Layers = append(b.image.Layers, images.Layer{Blob: layer.Digest, DiffID: diffID})
	}
	rawConfig, err := manifest.Derive(b.rawConfig, b.config)
	if err != nil {
		return images.Image{}, err
	}
	return im.finish(lease, b.image.Layers, rawConfig, b.layers, r.Name)
}

// base is an image that another is made of.
type base struct {
	image     images.Image
	config    manifest.Config
	rawConfig []byte
	layers    []ocispec.Descriptor
}

// base takes hold of an image.
func (im *Importer) base(id digest.Digest, lease *images.Lease) (base, error) {
	found, err := im.Images.Find(id.String())
	if err != nil {
		return base{}, err
	}
	b := base{image: found.Image}
	missing := func(d digest.Digest) error {
		return fault.DataLoss.Errorf("IMAGE_DAMAGED", "image %s is damaged: %s is missing", id, d).With("image", id.String()).Hint("pull it again")
	}
	for _, d := range b.image.Blobs() {
		if _, ok := lease.Blob(d); !ok {
			return base{}, missing(d)
		}
	}
	for _, l := range b.image.Layers {
		if _, ok := lease.Layer(l.DiffID); !ok {
			return base{}, missing(l.DiffID)
		}
	}
	if b.rawConfig, err = im.Store.ReadAll(id, manifest.MaxBytes); err != nil {
		return base{}, err
	}
	if b.config, err = manifest.ParseConfig(b.rawConfig); err != nil {
		return base{}, err
	}
	raw, err := im.Store.ReadAll(b.image.Manifest, manifest.MaxBytes)
	if err != nil {
		return base{}, err
	}
	m, err := manifest.Parse(raw, b.image.MediaType)
	for _, l := range m.Layers {
		b.layers = append(b.layers, ocispec.Descriptor{MediaType: manifest.OCILayerType(l.MediaType), Digest: l.Digest, Size: l.Size})
	}
	return b, err
}

// written stores the new layer while it is being written.
func (im *Importer) written(ctx context.Context, r CommitRequest, lease *images.Lease) (ocispec.Descriptor, digest.Digest, error) {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := r.Layer(pw)
		pw.CloseWithError(err)
		done <- err
	}()
	desc, diffID, err := im.layer(ctx, Request{Archive: pr, Progress: r.Progress}, lease)
	pr.CloseWithError(err) // of use if the writer is not at its end
	if werr := <-done; err == nil {
		err = werr
	}
	return desc, diffID, err
}

// finish records an image of layers that the lease holds.
func (im *Importer) finish(lease *images.Lease, layers []images.Layer, rawConfig []byte, descs []ocispec.Descriptor, name reference.Named) (images.Image, error) {
	config := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(rawConfig), Size: int64(len(rawConfig))}
	raw, manifestDigest, err := manifest.New(config, descs)
	if err != nil {
		return images.Image{}, err
	}
	for d, b := range map[digest.Digest][]byte{config.Digest: rawConfig, manifestDigest: raw} {
		if err := lease.AddDocument(b, d); err != nil {
			return images.Image{}, err
		}
	}
	image := images.Image{ID: config.Digest, Manifest: manifestDigest, MediaType: ocispec.MediaTypeImageManifest, Layers: layers}
	names := map[string]images.Ref{}
	if name != nil {
		names[name.String()] = images.Ref{Image: image.ID, Since: time.Now()}
	}
	return image, lease.AddImage(image, names)
}
