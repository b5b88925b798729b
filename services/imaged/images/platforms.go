package images

import (
	"strings"

	"berth/internal/fault"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Family is an image for several platforms, all of which are here.
type Family struct {
	Index     digest.Digest
	MediaType string
	Raw       []byte // the index
	Images    []Image
	Platforms []ocispec.Platform // of each of them
}

// Family gives the image found with all its platforms. An image for one platform is alone, without an index. NotFound
// if one of the platforms is not here.
func (m *Images) Family(found Found) (Family, error) {
	index := m.IndexOf(found)
	if index == "" {
		return Family{Images: []Image{found.Image}}, nil
	}
	f, missing, err := m.relatives(index)
	if err == nil && len(missing) > 0 {
		name := Familiar(found.Name)
		err = fault.NotFound.Errorf("PLATFORM_NOT_FOUND", "image %s is not here for %s", name, strings.Join(missing, ", ")).
			With("image", name).Hint("`berth pull --all-platforms` fetches what is missing")
	}
	return f, err
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
	if index := m.IndexOf(found); index != "" {
		f, _, err := m.relatives(index)
		if err != nil {
			return Image{}, err
		}
		for i, p := range f.Platforms {
			if platforms.Only(want).Match(p) {
				return f.Images[i], nil
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

// relatives are the images of an index that are here, and the platforms of those that are not.
func (m *Images) relatives(index digest.Digest) (f Family, missing []string, err error) {
	f.Index = index
	if f.Raw, err = m.store.ReadAll(index, manifest.MaxBytes); err != nil {
		return f, nil, err
	}
	if f.MediaType, err = registry.CheckManifest(f.Raw, ""); err != nil {
		return f, nil, err
	}
	descs, err := manifest.ParseIndex(f.Raw, f.MediaType)
	if err != nil {
		return f, nil, err
	}
	for _, d := range descs {
		if !manifest.Runnable(d) {
			continue
		}
		i, ok := m.WithManifest(d.Digest)
		if !ok {
			missing = append(missing, platforms.Format(*d.Platform))
			continue
		}
		f.Images, f.Platforms = append(f.Images, i), append(f.Platforms, *d.Platform)
	}
	return f, missing, nil
}
