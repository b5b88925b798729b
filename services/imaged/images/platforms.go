package images

import (
	"slices"
	"strings"

	"berth/internal/fault"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Family is an index and all it leads to: images for several platforms, and what else it lists.
type Family struct {
	Index     digest.Digest
	MediaType string
	Raw       []byte // the index
	Tree      manifest.Tree
}

// Family gives the index that the image found came with. An image that came alone has none. NotFound if something of it
// is not here.
func (m *Images) Family(found Found) (Family, error) {
	ref := m.Whole(found)
	if ref.Index == "" {
		return Family{}, nil
	}
	f, listed, err := m.index(ref.Index)
	if err != nil {
		return f, err
	}
	var missing []string
	for _, d := range listed {
		if !slices.Contains(ref.Tree, d.Digest) {
			missing = append(missing, manifest.Called(d))
		}
	}
	if len(missing) > 0 {
		name := Familiar(found.Name)
		return f, fault.NotFound.Errorf("PLATFORM_NOT_FOUND", "image %s is not here whole, it lacks %s", name, strings.Join(missing, ", ")).
			With("image", name).Hint("`berth pull --all-platforms` fetches what is missing")
	}
	f.Tree, err = m.tree(ref, listed, func(ocispec.Descriptor) (bool, error) { return true, nil })
	return f, err
}

// Wholes are the names of an image that have an index beside it, one for each.
func (m *Images) Wholes(id digest.Digest) (all []Ref) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e := m.images[id]
	if e == nil {
		return nil
	}
	for name := range e.names {
		r := m.refs[name]
		if r.Index != "" && !slices.ContainsFunc(all, func(o Ref) bool { return o.Index == r.Index }) {
			all = append(all, r)
		}
	}
	return all
}

// Tree reads what the index of a name leads to, as far as it is here and good says that it can be read.
func (m *Images) Tree(ref Ref, good func(ocispec.Descriptor) (bool, error)) (manifest.Tree, error) {
	_, listed, err := m.index(ref.Index)
	if err != nil {
		return manifest.Tree{}, err
	}
	return m.tree(ref, listed, good)
}

func (m *Images) tree(ref Ref, listed []ocispec.Descriptor, good func(ocispec.Descriptor) (bool, error)) (manifest.Tree, error) {
	return manifest.ReadTree(listed, func(d ocispec.Descriptor) ([]byte, error) {
		if !slices.Contains(ref.Tree, d.Digest) {
			return nil, nil
		}
		if ok, err := good(d); err != nil || !ok {
			return nil, err
		}
		return m.store.ReadAll(d.Digest, manifest.MaxBytes)
	})
}

// index reads an index.
func (m *Images) index(d digest.Digest) (f Family, listed []ocispec.Descriptor, err error) {
	f.Index = d
	if f.Raw, err = m.store.ReadAll(d, manifest.MaxBytes); err != nil {
		return f, nil, err
	}
	if f.MediaType, err = registry.CheckManifest(f.Raw, ""); err != nil {
		return f, nil, err
	}
	listed, err = manifest.ParseIndex(f.Raw, f.MediaType)
	return f, listed, err
}

// For gives the image found, or the one for a platform that it has beside it. NotFound if there is none.
func (m *Images) For(found Found, text string) (Image, error) {
	want, err := manifest.Platform(text)
	if err != nil {
		return Image{}, err
	}
	info, err := m.Inspect(found.ID)
	if err != nil {
		return Image{}, err
	}
	if manifest.RunsOn(info.Config, want) {
		return found.Image, nil
	}
	if index := m.Whole(found).Index; index != "" {
		_, listed, err := m.index(index)
		if err != nil {
			return Image{}, err
		}
		for _, d := range listed {
			i, ok := m.WithManifest(d.Digest)
			if ok && manifest.Runnable(d) && platforms.Only(want).Match(*d.Platform) {
				return i, nil
			}
		}
	}
	name := Familiar(found.Name)
	if name == "" {
		name = short(found.ID)
	}
	return Image{}, fault.NotFound.Errorf("PLATFORM_NOT_FOUND", "image %s is here for %s/%s, not for %s", name, info.Config.OS, info.Config.Architecture, text).
		With("image", name)
}
