package manifest

import (
	"strings"

	"berth/internal/fault"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Platform parses "os/arch[/variant]"; the host's if empty.
func Platform(text string) (ocispec.Platform, error) {
	if text == "" {
		return platforms.DefaultSpec(), nil
	}
	p, err := platforms.Parse(text)
	if err != nil {
		return ocispec.Platform{}, fault.InvalidArgument.Errorf("BAD_PLATFORM", "platform %q is not os/arch[/variant]", text).
			With("platform", text)
	}
	return p, nil
}

// Select finds the manifest in an index that runs best on platform want. It
// takes a compatible older variant (arm64 runs arm/v7) but never another OS, and nothing
// of which the index says that it is no image.
func Select(index []ocispec.Descriptor, want ocispec.Platform) (ocispec.Descriptor, error) {
	matcher := platforms.Only(want)
	best := -1
	var known []string
	for i, d := range index {
		if d.Platform == nil || isArtifact(d) {
			continue
		}
		known = append(known, platforms.Format(*d.Platform))
		if matcher.Match(*d.Platform) && (best < 0 || matcher.Less(*d.Platform, *index[best].Platform)) {
			best = i
		}
	}
	switch {
	case best >= 0:
		return index[best], nil
	case len(index) == 1 && index[0].Platform == nil: // an index that says nothing about its only image
		return index[0], nil
	}
	return ocispec.Descriptor{}, fault.NotFound.Errorf("PLATFORM_NOT_FOUND",
		"image has no manifest for platform %s, only for: %s", platforms.Format(want), strings.Join(known, ", ")).
		With("platform", platforms.Format(want))
}

// RunsOn reports whether an image with configuration c is for platform want. A
// variant counts only if both name one.
func RunsOn(c Config, want ocispec.Platform) bool {
	return c.OS == want.OS && c.Architecture == want.Architecture && (want.Variant == "" || c.Variant == "" || c.Variant == want.Variant)
}

// Runnable leaves out attestations, which builders list under the platform "unknown", other artifacts, and what names no
// platform.
func Runnable(d ocispec.Descriptor) bool {
	return d.Platform != nil && d.Platform.OS != "" && d.Platform.OS != "unknown" && !isArtifact(d)
}
