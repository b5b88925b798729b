package hosted

import (
	"errors"
	"maps"
	"strings"
	"time"

	"berth/internal/fault"
	"berth/internal/journal"
	"berth/services/imaged/images"

	"github.com/opencontainers/go-digest"
)

// RemoveTag takes a tag away, and nothing else. NotFound if there is none.
func (h *Hosted) RemoveTag(name, tag string) (images.Removal, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.tidy(name)
	known := false
	if r := h.repos[name]; r != nil {
		if _, known = r.tags[tag]; known {
			if err := h.journal.Delete(tagKey(name, tag), true); err != nil {
				return images.Removal{}, err
			}
			delete(r.tags, tag)
		}
	}
	removal, err := h.Images.Unname(h.Canonical(name) + ":" + tag)
	if err == nil && !known && len(removal.Untagged) == 0 {
		err = fault.NotFound.Errorf("TAG_NOT_FOUND", "no tag %s in repository %s", tag, name)
	}
	return removal, err
}

// RemoveManifest takes a manifest away with all tags that mean it. NotFound if there is none.
func (h *Hosted) RemoveManifest(name string, d digest.Digest) (images.Removal, error) {
	_, _, known := h.Manifest(name, d)
	if !known {
		return images.Removal{}, fault.NotFound.Errorf("MANIFEST_NOT_FOUND", "no manifest %s in repository %s", d, name)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.removeManifest(name, d)
}

// removeManifest is RemoveManifest for one that is known. The caller holds mu.
func (h *Hosted) removeManifest(name string, d digest.Digest) (images.Removal, error) {
	var names []string
	for n, ref := range h.Images.NamesIn(h.Canonical(name)) {
		i, _ := h.Images.Get(ref.Image)
		if ref.Target == d || strings.HasSuffix(n, "@"+d.String()) || i.Manifest == d && !h.has(name, ref.Target) {
			names = append(names, n)
		}
	}
	removal, err := h.Images.Unname(names...)
	if err != nil {
		return removal, err
	}
	r := h.repos[name]
	if r == nil || r.manifests[d] == nil {
		return removal, nil
	}
	var batch journal.Batch
	for t, own := range r.tags {
		if own.Digest == d {
			batch.Delete(tagKey(name, t))
		}
	}
	batch.Delete(manifestKey(name, d))
	n, err := h.Images.LetGo(&batch, r.manifests[d].Blobs, false)
	if removal.Bytes += n; err != nil {
		return removal, err
	}
	for t, own := range r.tags {
		if own.Digest == d {
			delete(r.tags, t)
		}
	}
	r.remove(d)
	h.tidy(name)
	return removal, nil
}

// has reports whether a manifest was pushed to a repository. The caller holds mu.
func (h *Hosted) has(name string, d digest.Digest) bool {
	r := h.repos[name]
	return r != nil && r.manifests[d] != nil
}

// Unnamed follows the removal of images' names that did not come through this package, such as by `berth rmi`: manifests
// that go by a digest among them go, with what an index among them lists and what is about them, unless a tag still leads
// there.
func (h *Hosted) Unnamed(names []string) (sum images.Removal, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range names {
		repo, d, ok := strings.Cut(n, "@")
		path, own := strings.CutPrefix(repo, h.Name+"/")
		if !ok || !own || !h.has(path, digest.Digest(d)) {
			continue
		}
		goes := h.repos[path].below(digest.Digest(d))
		err = errors.Join(err, h.sweep(&sum, path, func(d digest.Digest, _ *Manifest) bool { return goes[d] }, false))
	}
	return sum, err
}

// Keeps are the blobs that Unnamed would let go of after the removal of names, each as often as it would.
func (h *Hosted) Keeps(names []string) (all []digest.Digest) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	unnamed := map[string]bool{}
	goes := map[string]map[digest.Digest]bool{} // by repository
	for _, n := range names {
		unnamed[n] = true
		repo, d, ok := strings.Cut(n, "@")
		path, own := strings.CutPrefix(repo, h.Name+"/")
		if !ok || !own || !h.has(path, digest.Digest(d)) {
			continue
		}
		if goes[path] == nil {
			goes[path] = map[digest.Digest]bool{}
		}
		maps.Copy(goes[path], h.repos[path].below(digest.Digest(d)))
	}
	for path, chosen := range goes {
		r := h.repos[path]
		roots := h.tagged(path, unnamed)
		for d := range r.manifests {
			if !chosen[d] {
				roots = append(roots, d)
			}
		}
		stays := r.below(roots...)
		for d := range chosen {
			if m := r.manifests[d]; m != nil && !stays[d] {
				all = append(all, m.Blobs...)
			}
		}
	}
	return all
}

// Prune deletes manifests that no tag leads to and that were pushed at least age ago. A dry run changes nothing; the
// bytes it gives leave out what images share with them.
func (h *Hosted) Prune(age time.Duration, dryRun bool) (sum images.Removal, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range h.repos {
		err = errors.Join(err, h.sweep(&sum, name, func(_ digest.Digest, m *Manifest) bool { return time.Since(m.Since) >= age }, dryRun))
	}
	return sum, err
}

// sweep deletes the manifests of a repository that goes chooses, except those that a tag, or a manifest that stays, leads
// to. The caller holds mu.
func (h *Hosted) sweep(sum *images.Removal, name string, goes func(digest.Digest, *Manifest) bool, dryRun bool) error {
	r := h.repos[name]
	roots := h.tagged(name, nil)
	for d, m := range r.manifests {
		if !goes(d, m) {
			roots = append(roots, d)
		}
	}
	stays := r.below(roots...)
	if dryRun {
		var blobs []digest.Digest
		for d, m := range r.manifests {
			if !stays[d] {
				blobs = append(blobs, m.Blobs...)
			}
		}
		n, err := h.Images.LetGo(&journal.Batch{}, blobs, true)
		sum.Bytes += n
		return err
	}
	for d := range r.manifests {
		if stays[d] {
			continue
		}
		one, err := h.removeManifest(name, d)
		sum.Untagged, sum.Deleted, sum.Bytes = append(sum.Untagged, one.Untagged...), append(sum.Deleted, one.Deleted...), sum.Bytes+one.Bytes
		if err != nil {
			return err
		}
	}
	return nil
}

// below are roots with what they list and what is about them, and so on.
func (r *repo) below(roots ...digest.Digest) map[digest.Digest]bool {
	about := map[digest.Digest][]digest.Digest{}
	for d, m := range r.manifests {
		if m.Subject != "" {
			about[m.Subject] = append(about[m.Subject], d)
		}
	}
	found := map[digest.Digest]bool{}
	for len(roots) > 0 {
		d := roots[0]
		roots = roots[1:]
		if found[d] {
			continue
		}
		found[d] = true
		if m := r.manifests[d]; m != nil {
			roots = append(roots, m.Children...)
		}
		roots = append(roots, about[d]...)
	}
	return found
}
