package archive

import (
	"path"
	"slices"
	"strings"

	"berth/services/imaged/images"
	"berth/services/imaged/inflate"
	"berth/services/imaged/manifest"
	"berth/services/imaged/strictjson"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// dockerImage is an element of manifest.json. Its paths are names of the
// archive's files; a layer's file may be a link to another's.
type dockerImage struct {
	Config   string
	RepoTags []string // null if the image has none, as docker writes it
	Layers   []string
}

// dockerManifest reads manifest.json.
func (in *intake) dockerManifest() ([]dockerImage, error) {
	e, err := in.documentAt(manifestFile)
	if err != nil {
		return nil, err
	}
	var all []dockerImage
	if err := strictjson.Decode(e.raw, &all); err != nil {
		return nil, refused("%s: %v", manifestFile, err)
	}
	if len(all) == 0 {
		return nil, refused("its %s lists no image", manifestFile)
	}
	return all, nil
}

// dockerImages makes the images of an archive that has no manifests. It makes
// their manifests, always the same for the same archive.
func (in *intake) dockerImages(platform string) ([]*candidate, error) {
	all, err := in.dockerManifest()
	if err != nil {
		return nil, err
	}
	var found []*candidate
	for _, d := range all {
		c, err := in.dockerCandidate(d)
		if err != nil {
			return nil, err
		}
		if err := c.runsOn(platform); err != nil {
			return nil, err
		}
		if c.names, err = d.names(); err != nil {
			return nil, err
		}
		found = append(found, c)
	}
	return found, nil
}

func (in *intake) dockerCandidate(d dockerImage) (*candidate, error) {
	e, err := in.dockerConfig(d)
	if err != nil {
		return nil, err
	}
	config, err := manifest.ParseConfig(e.raw)
	if err != nil {
		return nil, err
	}
	m := manifest.Manifest{
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: e.digest, Size: e.size},
	}
	for _, file := range d.Layers {
		l, err := in.lookup(file)
		if err != nil {
			return nil, err
		}
		if l.kind != layer {
			return nil, refused("file %.200q is no layer of a kind that is known", file)
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: layerType[l.form], Digest: l.digest, Size: l.size})
	}
	c := &candidate{config: e}
	if c.raw, c.desc.Digest, err = manifest.New(m.Config, m.Layers); err != nil {
		return nil, err
	}
	if err := in.makeOf(c, m, config); err != nil {
		return nil, err
	}
	in.keepManifest(c)
	return c, nil
}

var layerType = map[inflate.Kind]string{
	inflate.None: ocispec.MediaTypeImageLayer, inflate.Gzip: ocispec.MediaTypeImageLayerGzip, inflate.Zstd: ocispec.MediaTypeImageLayerZstd,
}

// dockerConfig gives an image's configuration. A file called as a digest must
// have it.
func (in *intake) dockerConfig(d dockerImage) (*entry, error) {
	e, err := in.documentAt(d.Config)
	if err != nil {
		return nil, err
	}
	hex := strings.TrimSuffix(path.Base(d.Config), ".json")
	if named := digest.NewDigestFromEncoded(digest.SHA256, hex); named.Validate() == nil && named != e.digest && e.digest.Algorithm() == digest.SHA256 {
		return nil, refused("configuration %s came as %s", named, e.digest)
	}
	if e.digest.Algorithm() != digest.Canonical {
		return nil, refused("configuration %.200q is not named by its sha256 digest", d.Config)
	}
	return e, nil
}

// keepManifest leaves an image that is here whole as it is: the manifest it came
// with has a digest that others know, and the one made here does not.
func (in *intake) keepManifest(c *candidate) {
	have, err := in.Images.Find(c.image.ID.String())
	if err != nil {
		return
	}
	for _, l := range have.Layers {
		_, blob := in.lease.Blob(l.Blob)
		_, unpacked := in.lease.Layer(l.DiffID)
		if !blob || !unpacked {
			return
		}
	}
	_, config := in.lease.Blob(have.ID)
	_, manifest := in.lease.Blob(have.Manifest)
	if config && manifest {
		c.image, c.raw = have.Image, nil
	}
}

// names are the tags of the image.
func (d dockerImage) names() ([]reference.Named, error) {
	var all []reference.Named
	for _, text := range d.RepoTags {
		named, err := images.ParseName(text)
		if err != nil {
			return nil, refused("%v", err)
		}
		if _, ok := named.(reference.Canonical); ok {
			return nil, refused("%.200q is not a tag", text)
		}
		all = append(all, named)
	}
	return all, nil
}

// agree makes sure that manifest.json, if it speaks of the same images as
// index.json, says the same of them: one reader sees this, another that.
func (in *intake) agree(l *layout) error {
	all, err := in.dockerManifest()
	if err != nil {
		return err
	}
	named := map[string]*topImage{}
	for _, t := range l.top {
		for _, n := range t.names {
			named[n.String()] = t
		}
	}
	for _, d := range all {
		config, err := in.dockerConfig(d)
		if err != nil {
			return err
		}
		same := l.byConfig(config.digest)
		if len(same) == 0 {
			return refused("%s lists image %s, %s does not", manifestFile, config.digest, indexFile)
		}
		if err := in.sameLayers(d, same); err != nil {
			return err
		}
		names, err := d.names()
		if err != nil {
			return err
		}
		for _, n := range names {
			if t := named[n.String()]; t != nil {
				if !slices.ContainsFunc(t.images, func(c *candidate) bool { return slices.Contains(same, c) }) {
					return refused("%s and %s call different images %s", manifestFile, indexFile, images.Familiar(n.String()))
				}
				continue
			}
			t := l.holding(same[0])
			named[n.String()], t.names = t, append(t.names, n)
		}
	}
	return nil
}

// sameLayers makes sure that one of the images has the layers that d lists.
func (in *intake) sameLayers(d dockerImage, images []*candidate) error {
	var have []digest.Digest
	for _, file := range d.Layers {
		e, err := in.lookup(file)
		if err != nil {
			return err
		}
		have = append(have, e.digest)
	}
	for _, c := range images {
		m, err := manifest.Parse(c.raw, c.desc.MediaType)
		if err != nil {
			return err
		}
		if slices.EqualFunc(have, m.Layers, func(d digest.Digest, l ocispec.Descriptor) bool { return d == l.Digest }) {
			return nil
		}
	}
	return refused("%s and %s give image %s different layers", manifestFile, indexFile, images[0].config.digest)
}
