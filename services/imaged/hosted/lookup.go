package hosted

import (
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Manifest finds a manifest of a repository, by its digest: one that was pushed, or an image that has a name there. It
// gives its media type and subject, if it is known to have one.
func (h *Hosted) Manifest(name string, d digest.Digest) (mediaType string, subject digest.Digest, ok bool) {
	h.mu.RLock()
	if r := h.repos[name]; r != nil && r.manifests[d] != nil {
		mediaType, subject, ok = r.manifests[d].MediaType, r.manifests[d].Subject, true
	}
	h.mu.RUnlock()
	if ok {
		return mediaType, subject, true
	}
	i, ok := h.Images.ManifestIn(h.Canonical(name), d)
	return i.MediaType, "", ok
}

// Tag gives the digest of what a tag of a repository means.
func (h *Hosted) Tag(name, tag string) (digest.Digest, bool) {
	ref, image, ok := h.Images.RefOf(h.Canonical(name) + ":" + tag)
	h.mu.RLock()
	defer h.mu.RUnlock()
	r := h.repos[name]
	if r == nil {
		return image.Manifest, ok
	}
	own, isOwn := r.tags[tag]
	switch {
	case isOwn && (!ok || own.Since.After(ref.Since)): // both: a crash came between the two records
		return own.Digest, true
	case ok && r.manifests[ref.Target] != nil:
		return ref.Target, true
	}
	return image.Manifest, ok
}

// Tags are those of a repository, sorted. It reports whether there is such a repository.
func (h *Hosted) Tags(name string) ([]string, bool) {
	all := map[string]bool{}
	known := false
	for n := range h.Images.NamesIn(h.Canonical(name)) {
		known = true
		if tag, ok := strings.CutPrefix(n, h.Canonical(name)+":"); ok {
			all[tag] = true
		}
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	if r := h.repos[name]; r != nil {
		known = known || len(r.manifests)+len(r.tags)+len(r.loose) > 0
		for t := range r.tags {
			all[t] = true
		}
	}
	return slices.Sorted(maps.Keys(all)), known
}

// Repositories are those that something was pushed to.
func (h *Hosted) Repositories() (all []string) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for name, r := range h.repos {
		if len(r.manifests) > 0 {
			all = append(all, name)
		}
	}
	return all
}

// Referrer is a manifest that is about another.
type Referrer struct {
	Digest digest.Digest
	*Manifest
}

// Referrers are the manifests of a repository that are about subject, by digest.
func (h *Hosted) Referrers(name string, subject digest.Digest) (all []Referrer) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if r := h.repos[name]; r != nil {
		for d, m := range r.manifests {
			if m.Subject == subject {
				all = append(all, Referrer{d, m})
			}
		}
	}
	slices.SortFunc(all, func(a, b Referrer) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return all
}

// tagged are the manifests that tags of a repository mean, among them those that are names of images, except for some
// names. The caller holds mu, at least for reading.
func (h *Hosted) tagged(name string, except map[string]bool) (all []digest.Digest) {
	for n, ref := range h.Images.NamesIn(h.Canonical(name)) {
		if strings.HasPrefix(n, h.Canonical(name)+":") && !except[n] {
			i, _ := h.Images.Get(ref.Image)
			all = append(all, ref.Target, i.Manifest)
		}
	}
	if r := h.repos[name]; r != nil {
		for _, t := range r.tags {
			all = append(all, t.Digest)
		}
	}
	return all
}
