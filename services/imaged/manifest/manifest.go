// Package manifest reads the three documents that make an image: index,
// manifest and configuration, of the OCI image specification 1.1 and of
// Docker's schema 2 before it.
//
// They decide what runs, and other programs will read the same bytes to decide
// whether it may. So a document that two readers could understand differently
// is refused: names that occur twice, also in another case; a manifest that is
// an index as well; digests that are not in canonical form.
package manifest

import (
	"encoding/json"
	"fmt"
	"strings"

	"berth/internal/fault"
	"berth/services/imaged/registry"
	"berth/services/imaged/store"
	"berth/services/imaged/strictjson"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// MaxBytes is the largest document of each of the three kinds.
	MaxBytes = registry.MaxManifestBytes
	// MaxLayers is how many layers an image may have.
	MaxLayers = 1000
	// maxIndex is how many manifests an index may list.
	maxIndex = 1000
	// maxLayerBytes is the largest compressed layer.
	maxLayerBytes = 64 << 30
)

// Manifest is an image for one platform.
type Manifest struct {
	MediaType string
	Config    ocispec.Descriptor
	Layers    []ocispec.Descriptor // bottom first, compressed as stored
}

// refused makes the error for a document that is not acceptable.
func refused(format string, args ...any) error {
	return fault.DataLoss.Errorf("BAD_IMAGE", "image refused: %s", fmt.Sprintf(format, args...))
}

// notImage is for documents that are fine in themselves.
func notImage(format string, args ...any) error {
	return fault.Unimplemented.Errorf("NOT_AN_IMAGE", format, args...)
}

// Parse reads a manifest. mediaType is what it came as; it may be empty.
func Parse(raw []byte, mediaType string) (Manifest, error) {
	mediaType, err := check(raw, mediaType)
	if err != nil {
		return Manifest{}, err
	}
	if !registry.IsManifest(mediaType) {
		return Manifest{}, refused("got an index where a manifest was expected")
	}
	var doc struct {
		Config ocispec.Descriptor   `json:"config"`
		Layers []ocispec.Descriptor `json:"layers"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return Manifest{}, refused("manifest: %v", err)
	}
	m := Manifest{MediaType: mediaType, Config: doc.Config, Layers: doc.Layers}
	return m, m.validate()
}

func (m Manifest) validate() error {
	if !configTypes[m.Config.MediaType] {
		return notImage("this is not a container image but %q", m.Config.MediaType)
	}
	if err := validate("configuration", m.Config, MaxBytes); err != nil {
		return err
	}
	if len(m.Layers) > MaxLayers {
		return refused("%d layers are more than %d", len(m.Layers), MaxLayers)
	}
	for i, l := range m.Layers {
		if !layerTypes[l.MediaType] {
			return notImage("layer %d has the unknown media type %q", i, l.MediaType)
		}
		if err := validate(fmt.Sprintf("layer %d", i), l, maxLayerBytes); err != nil {
			return err
		}
	}
	return nil
}

func validate(what string, d ocispec.Descriptor, limit int64) error {
	if err := store.Check(d.Digest); err != nil {
		return refused("%s: %v", what, err)
	}
	if d.Size < 0 || d.Size > limit {
		return refused("%s has a size of %d bytes", what, d.Size)
	}
	return nil
}

// Media types that Docker used before OCI, and the names it gave layers that
// are not to be uploaded again; "foreign" ones are fetched from the registry
// like all others, or not at all.
const (
	dockerConfig  = "application/vnd.docker.container.image.v1+json"
	dockerLayer   = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	ociForeign    = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

var configTypes = map[string]bool{ocispec.MediaTypeImageConfig: true, dockerConfig: true}

var layerTypes = map[string]bool{
	ocispec.MediaTypeImageLayer: true, ocispec.MediaTypeImageLayerGzip: true, ocispec.MediaTypeImageLayerZstd: true,
	dockerLayer: true, dockerLayer + ".gzip": true, dockerLayer + ".zstd": true,
	dockerForeign: true, dockerForeign + ".gzip": true,
	ociForeign: true, ociForeign + "+gzip": true, ociForeign + "+zstd": true,
}

// OCILayerType is the OCI media type of what Docker called otherwise.
func OCILayerType(mediaType string) string {
	for docker, oci := range map[string]string{dockerLayer: ocispec.MediaTypeImageLayer, dockerForeign: ociForeign} {
		if compression, ok := strings.CutPrefix(mediaType, docker); ok {
			return oci + strings.Replace(compression, ".", "+", 1)
		}
	}
	return mediaType
}

// ParseIndex reads an index: the manifests of one image for several platforms.
func ParseIndex(raw []byte, mediaType string) ([]ocispec.Descriptor, error) {
	mediaType, err := check(raw, mediaType)
	if err != nil {
		return nil, err
	}
	if !registry.IsIndex(mediaType) {
		return nil, refused("got a manifest where an index was expected")
	}
	var doc struct {
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, refused("index: %v", err)
	}
	if len(doc.Manifests) > maxIndex {
		return nil, refused("an index of %d manifests is larger than %d", len(doc.Manifests), maxIndex)
	}
	for i, d := range doc.Manifests {
		if err := validate(fmt.Sprintf("manifest %d of the index", i), d, MaxBytes); err != nil {
			return nil, err
		}
	}
	return doc.Manifests, nil
}

// check makes sure that raw can be understood in one way only.
func check(raw []byte, mediaType string) (string, error) {
	mediaType, err := registry.CheckManifest(raw, mediaType)
	if err != nil {
		return "", err
	}
	if err := strictjson.Check(raw); err != nil {
		return "", refused("%v", err)
	}
	return mediaType, nil
}

// New makes the manifest of an image built here, and its digest.
func New(config ocispec.Descriptor, layers []ocispec.Descriptor) ([]byte, digest.Digest, error) {
	var m ocispec.Manifest
	m.SchemaVersion = 2
	m.MediaType = ocispec.MediaTypeImageManifest
	m.Config, m.Layers = config, layers
	raw, err := json.Marshal(m)
	return raw, digest.FromBytes(raw), err
}
