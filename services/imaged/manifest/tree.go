package manifest

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/services/imaged/registry"
)

// Tree is all that an index leads to: the images in it, and what else it lists. Builders put attestations about images
// there, others artifacts of their own, or indexes again. They do not run, but without them the index is not whole.
type Tree struct {
	Manifests []Listed             // what one of them lists comes before it
	Blobs     []ocispec.Descriptor // configurations and layers; each once
}

// Listed is a manifest or index that an index lists.
type Listed struct {
	Digest    digest.Digest
	MediaType string // of its own, whatever the index calls it
	Raw       []byte
}

// Digests are those of all of it, each once.
func (t Tree) Digests() (all []digest.Digest) {
	for _, m := range t.Manifests {
		all = append(all, m.Digest)
	}
	for _, b := range t.Blobs {
		all = append(all, b.Digest)
	}
	return all
}

const (
	// maxTree is how many manifests and blobs an index may lead to: a record holds their digests.
	maxTree = 4000
	// MaxNested is how deep indexes may stand in one another.
	MaxNested = 4
)

// ReadTree follows what an index lists. read gives the bytes behind a descriptor of an index; none, and it is left out.
func ReadTree(index []ocispec.Descriptor, read func(ocispec.Descriptor) ([]byte, error)) (Tree, error) {
	w := treeWalk{read: read, seen: map[digest.Digest]bool{}}
	err := w.list(index, 0)
	return w.tree, err
}

type treeWalk struct {
	read func(ocispec.Descriptor) ([]byte, error)
	seen map[digest.Digest]bool
	tree Tree
}

// first reports whether d was not seen yet.
func (w *treeWalk) first(d digest.Digest) (bool, error) {
	if w.seen[d] {
		return false, nil
	}
	if len(w.seen) >= maxTree {
		return false, refused("its index leads to more than %d manifests and blobs", maxTree)
	}
	w.seen[d] = true
	return true, nil
}

func (w *treeWalk) list(listed []ocispec.Descriptor, depth int) error {
	if depth > MaxNested {
		return refused("indexes in indexes in indexes")
	}
	for _, d := range listed {
		first, err := w.first(d.Digest)
		if err != nil {
			return err
		}
		if !first {
			continue
		}
		raw, err := w.read(d)
		if err != nil {
			return err
		}
		if raw == nil {
			continue
		}
		if err := w.document(d, raw, depth); err != nil {
			return err
		}
	}
	return nil
}

// document follows a manifest or index. What is listed by another media type need be neither: then it is a blob.
func (w *treeWalk) document(d ocispec.Descriptor, raw []byte, depth int) error {
	declared := ""
	if Readable(d.MediaType) {
		declared = d.MediaType
	}
	mediaType, err := registry.CheckManifest(raw, declared)
	if err != nil && declared == "" {
		w.tree.Blobs = append(w.tree.Blobs, d)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", Called(d), err)
	}
	if registry.IsIndex(mediaType) {
		inner, err := ParseIndex(raw, mediaType)
		if err != nil {
			return err
		}
		err = w.list(inner, depth+1)
		w.tree.Manifests = append(w.tree.Manifests, Listed{d.Digest, mediaType, raw})
		return err
	}
	var doc struct {
		Config ocispec.Descriptor   `json:"config"`
		Layers []ocispec.Descriptor `json:"layers"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return refused("%s: %v", Called(d), err)
	}
	w.tree.Manifests = append(w.tree.Manifests, Listed{d.Digest, mediaType, raw})
	for _, part := range append([]ocispec.Descriptor{doc.Config}, doc.Layers...) {
		if err := validate(Called(d), part, maxLayerBytes); err != nil {
			return err
		}
		first, err := w.first(part.Digest)
		if err != nil {
			return err
		}
		if first {
			w.tree.Blobs = append(w.tree.Blobs, part)
		}
	}
	return nil
}

// Readable reports whether a media type is of the documents that are understood here: manifests and indexes. Registries
// have them under their manifests, and whatever else an index lists among the blobs.
func Readable(mediaType string) bool {
	return registry.IsManifest(mediaType) || registry.IsIndex(mediaType)
}

// Called is what to call an element of an index: by its platform, if it is for one.
func Called(d ocispec.Descriptor) string {
	switch {
	case d.Annotations[annotationKind] == attestation:
		return "attestation " + d.Digest.String()
	case Runnable(d):
		return platforms.Format(*d.Platform)
	}
	return "manifest " + d.Digest.String()
}

// Builders mark a manifest so that is about another one of the index.
const (
	annotationKind = "vnd.docker.reference.type"
	attestation    = "attestation-manifest"
)

// isArtifact reports whether an index says of an element that it is no image.
func isArtifact(d ocispec.Descriptor) bool {
	return d.Annotations[annotationKind] != "" || d.ArtifactType != "" && !configTypes[d.ArtifactType] ||
		d.MediaType != "" && !registry.IsManifest(d.MediaType)
}
