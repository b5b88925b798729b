package archive

import (
	"slices"
	"strings"

	"berth/internal/fault"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"
	"berth/services/imaged/strictjson"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layout is what an OCI image layout holds.
type layout struct {
	in  *intake
	top []*topImage
}

// topImage is an element of index.json: an image, for one platform or several.
type topImage struct {
	desc  ocispec.Descriptor
	names []reference.Named
	index []ocispec.Descriptor // nil if it is an image for one platform
	// images are those the archive has the manifest of, in the order of index.
	images []*candidate
}

// layout reads index.json and all indexes and manifests it leads to.
func (in *intake) layout() (*layout, error) {
	if err := in.checkLayout(); err != nil {
		return nil, err
	}
	e, err := in.documentAt(indexFile)
	if err != nil {
		return nil, err
	}
	descs, err := manifest.ParseIndex(e.raw, "")
	if err != nil {
		return nil, err
	}
	if len(descs) == 0 {
		return nil, refused("its %s lists no image", indexFile)
	}
	l := &layout{in: in}
	for _, desc := range descs {
		t := &topImage{desc: desc}
		if t.names, err = ociNames(desc); err != nil {
			return nil, err
		}
		if err := t.read(in); err != nil {
			return nil, err
		}
		l.top = append(l.top, t)
	}
	return l, nil
}

func (in *intake) checkLayout() error {
	e, err := in.documentAt(layoutFile)
	if err != nil {
		return err
	}
	var v ocispec.ImageLayout
	if err := strictjson.Decode(e.raw, &v); err != nil {
		return refused("%s: %v", layoutFile, err)
	}
	if major, _, _ := strings.Cut(v.Version, "."); major != "1" {
		return refused("version %.20q of the OCI layout is not known", v.Version)
	}
	return nil
}

// read reads the manifest, or the index and the manifests in it.
func (t *topImage) read(in *intake) error {
	e, err := in.documentAt(blobName(t.desc.Digest))
	if err != nil {
		return err
	}
	if !registry.IsIndex(t.desc.MediaType) {
		c, err := in.manifestOf(t.desc, e)
		t.images = []*candidate{c}
		return err
	}
	if t.index, err = manifest.ParseIndex(e.raw, t.desc.MediaType); err != nil {
		return err
	}
	for _, desc := range t.index {
		e := in.blobs[desc.Digest]
		if e == nil {
			continue // of a platform that was left out
		}
		if desc.Platform != nil && !manifest.Runnable(desc) || !registry.IsManifest(desc.MediaType) {
			continue // an attestation or another artifact
		}
		c, err := in.manifestOf(desc, e)
		if fault.Is(err, fault.Unimplemented) { // as well, though the index does not say so
			continue
		}
		if err != nil {
			return err
		}
		t.images = append(t.images, c)
	}
	return nil
}

func (in *intake) manifestOf(desc ocispec.Descriptor, e *entry) (*candidate, error) {
	if e.kind != document || desc.Size != e.size {
		return nil, refused("%s is not the manifest it should be", desc.Digest)
	}
	m, err := manifest.Parse(e.raw, desc.MediaType)
	if err != nil {
		return nil, err
	}
	config, err := in.documentAt(blobName(m.Config.Digest))
	if err != nil {
		return nil, err
	}
	if config.size != m.Config.Size {
		return nil, refused("configuration %s has %d bytes instead of %d", m.Config.Digest, config.size, m.Config.Size)
	}
	desc.MediaType = m.MediaType
	return &candidate{raw: e.raw, desc: desc, config: config}, nil
}

// complete finds the layers of an image that was picked.
func (in *intake) complete(c *candidate) error {
	m, err := manifest.Parse(c.raw, c.desc.MediaType)
	if err != nil {
		return err
	}
	config, err := manifest.ParseConfig(c.config.raw)
	if err != nil {
		return err
	}
	return in.makeOf(c, m, config)
}

// ociNames are the names that index.json gives to desc.
func ociNames(desc ocispec.Descriptor) ([]reference.Named, error) {
	text := desc.Annotations[annotationName]
	if text == "" {
		text = desc.Annotations[annotationRef]
		if !strings.ContainsAny(text, ":/") {
			return nil, nil // nothing, or a tag of an unnamed repository
		}
	}
	named, err := images.ParseName(text)
	if err != nil {
		return nil, refused("%v", err)
	}
	if c, ok := named.(reference.Canonical); ok && c.Digest() != desc.Digest {
		return nil, refused("image %s is called %.200q", desc.Digest, text)
	}
	return []reference.Named{named}, nil
}

// pick chooses of each image the one for platform, and with others its others, too.
func (l *layout) pick(platform string, others bool) ([]*candidate, error) {
	var all []*candidate
	for _, t := range l.top {
		c, err := t.pick(platform)
		if others && t.index != nil && platform == "" && fault.Is(err, fault.NotFound) {
			c, err = t.images[0], nil // none for this host
		}
		if err != nil {
			return nil, err
		}
		take := []*candidate{c}
		if others && t.index != nil {
			if take, err = t.family(l.in, c); err != nil {
				return nil, err
			}
		}
		for _, c := range take {
			if slices.Contains(all, c) {
				continue
			}
			if err := l.in.complete(c); err != nil {
				return nil, err
			}
			all = append(all, c)
		}
		c.names = append(c.names, t.names...)
	}
	return all, nil
}

// family names all images of an index but chosen, which gets the index's name and all that leads to, by digest.
func (t *topImage) family(in *intake, chosen *candidate) (all []*candidate, err error) {
	if chosen.index, err = in.documentAt(blobName(t.desc.Digest)); err != nil {
		return nil, err
	}
	if chosen.tree, err = in.tree(t.index); err != nil {
		return nil, err
	}
	for _, c := range t.images {
		all = append(all, c)
		for _, n := range t.names {
			if c == chosen {
				break
			}
			named, err := reference.WithDigest(reference.TrimNamed(n), c.desc.Digest)
			if err != nil {
				return nil, err
			}
			c.names = append(c.names, named)
		}
	}
	return all, nil
}

// tree takes hold of what an index leads to, except what it lists and the archive does not have.
func (in *intake) tree(index []ocispec.Descriptor) ([]digest.Digest, error) {
	tree, err := manifest.ReadTree(index, func(d ocispec.Descriptor) ([]byte, error) {
		e := in.blobs[d.Digest]
		if e == nil {
			return nil, nil
		}
		if e.size != d.Size {
			return nil, refused("%s has %d bytes instead of %d", d.Digest, e.size, d.Size)
		}
		return in.bytesOf(e)
	})
	if err != nil {
		return nil, err
	}
	for _, m := range tree.Manifests {
		if err := in.lease.AddDocument(m.Raw, m.Digest); err != nil {
			return nil, err
		}
	}
	for _, d := range tree.Blobs {
		if e := in.blobs[d.Digest]; e != nil && e.raw != nil {
			if err := in.lease.AddDocument(e.raw, d.Digest); err != nil {
				return nil, err
			}
		}
		if b, ok := in.lease.Blob(d.Digest); !ok || b.Size != d.Size {
			return nil, refused("it lacks blob %s of %d bytes, which a manifest of its index lists", d.Digest, d.Size)
		}
	}
	return tree.Digests(), nil
}

func (t *topImage) pick(platform string) (*candidate, error) {
	if t.index == nil {
		return t.images[0], t.images[0].runsOn(platform)
	}
	if len(t.images) == 0 {
		return nil, refused("it has none of the images that index %s lists", t.desc.Digest)
	}
	if platform == "" && len(t.images) == 1 {
		return t.images[0], nil
	}
	want, err := manifest.Platform(platform)
	if err != nil {
		return nil, err
	}
	var here []ocispec.Descriptor
	for _, c := range t.images {
		here = append(here, c.desc)
	}
	desc, err := manifest.Select(here, want)
	if err != nil {
		return nil, err
	}
	return t.images[slices.IndexFunc(t.images, func(c *candidate) bool { return c.desc.Digest == desc.Digest })], nil
}

// runsOn makes sure that an image for one platform is for the one asked for, if
// any was.
func (c *candidate) runsOn(platform string) error {
	if platform == "" {
		return nil
	}
	want, err := manifest.Platform(platform)
	if err != nil {
		return err
	}
	config, err := manifest.ParseConfig(c.config.raw)
	if err != nil {
		return err
	}
	is := ocispec.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant}
	_, err = manifest.Select([]ocispec.Descriptor{{Platform: &is}}, want)
	return err
}

// byConfig finds the image whose configuration is d.
func (l *layout) byConfig(d digest.Digest) []*candidate {
	var all []*candidate
	for _, t := range l.top {
		for _, c := range t.images {
			if c.config.digest == d {
				all = append(all, c)
			}
		}
	}
	return all
}

// holding is the element of index.json that c belongs to.
func (l *layout) holding(c *candidate) *topImage {
	return l.top[slices.IndexFunc(l.top, func(t *topImage) bool { return slices.Contains(t.images, c) })]
}
