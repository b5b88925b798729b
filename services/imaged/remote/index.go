package remote

import (
	"context"
	"encoding/json"
	"io"

	"berth/internal/fault"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Source is a manifest that becomes part of an index, or an index all of whose manifests do.
type Source struct {
	Place
	Platform    string // instead of what the image says; not for an index
	Annotations map[string]string
}

// CreateIndex pushes an index of the sources as to. Manifests of other repositories are copied first.
func (m *Remote) CreateIndex(ctx context.Context, to Place, sources []Source, annotations map[string]string) (digest.Digest, error) {
	if len(sources) == 0 {
		return "", fault.InvalidArgument.Errorf("NO_SOURCES", "an index needs at least one image")
	}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Annotations: annotations}
	index.SchemaVersion = 2
	for _, s := range sources {
		all, err := m.entries(ctx, s)
		if err != nil {
			return "", err
		}
		for _, d := range all {
			if err := m.bring(ctx, s.Place, to, d.Digest); err != nil {
				return "", err
			}
		}
		index.Manifests = append(index.Manifests, all...)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return "", err
	}
	return m.Registry.PushManifest(ctx, to.Name, index.MediaType, raw, to.Auth)
}

// entries are what an index lists of s.
func (m *Remote) entries(ctx context.Context, s Source) ([]ocispec.Descriptor, error) {
	doc, err := m.fetch(ctx, s.Place)
	if err != nil {
		return nil, err
	}
	if registry.IsIndex(doc.MediaType) {
		if s.Platform != "" {
			return nil, fault.InvalidArgument.Errorf("BAD_PLATFORM", "%s is an index, whose images have platforms of their own", s.Name)
		}
		return manifest.ParseIndex(doc.Raw, doc.MediaType)
	}
	d := ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: doc.Size, Annotations: s.Annotations}
	if s.Platform != "" {
		p, err := manifest.Platform(s.Platform)
		d.Platform = &p
		return []ocispec.Descriptor{d}, err
	}
	d.Platform, err = m.platformOf(ctx, s.Place, doc)
	return []ocispec.Descriptor{d}, err
}

// platformOf reads an image's configuration; nil for what is no image.
func (m *Remote) platformOf(ctx context.Context, p Place, doc document) (*ocispec.Platform, error) {
	parsed, err := manifest.Parse(doc.Raw, doc.MediaType)
	if fault.Is(err, fault.Unimplemented) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	body, err := m.Registry.Blob(ctx, p.repository(), parsed.Config, 0, p.Auth)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, manifest.MaxBytes))
	if err != nil {
		return nil, err
	}
	if parsed.Config.Digest.Algorithm().FromBytes(raw) != parsed.Config.Digest {
		return nil, fault.DataLoss.Errorf("DIGEST_MISMATCH", "configuration of %s is damaged", p.Name)
	}
	c, err := manifest.ParseConfig(raw)
	if err != nil {
		return nil, err
	}
	platform := platforms.Normalize(ocispec.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant})
	return &platform, nil
}

// bring makes sure that the target's repository has the manifest d of from's.
func (m *Remote) bring(ctx context.Context, from, to Place, d digest.Digest) error {
	if from.repository().String() == to.repository().String() {
		return nil
	}
	source, err := from.at(d)
	if err != nil {
		return err
	}
	target, err := to.at(d)
	if err != nil {
		return err
	}
	_, err = m.Copy(ctx, CopyRequest{From: source, To: target})
	return err
}
