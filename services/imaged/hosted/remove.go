package hosted

import (
	"errors"
	"math"
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
	removal, err := h.Images.Unname(h.namesOf(name, func(o digest.Digest) bool { return o == d })...)
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
	n, err := h.Images.LetGo(&batch, r.manifests[d].Blobs)
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

// namesOf are the names in a repository that go with the manifests that goes chooses. The caller holds mu.
func (h *Hosted) namesOf(name string, goes func(digest.Digest) bool) (all []string) {
	for n, ref := range h.Images.NamesIn(h.Canonical(name)) {
		i, _ := h.Images.Get(ref.Image)
		_, own, _ := strings.Cut(n, "@")
		target := h.has(name, ref.Target) && !goes(ref.Target)
		if goes(ref.Target) || own != "" && goes(digest.Digest(own)) || goes(i.Manifest) && !target {
			all = append(all, n)
		}
	}
	return all
}

// has reports whether a manifest was pushed to a repository. The caller holds mu.
func (h *Hosted) has(name string, d digest.Digest) bool {
	r := h.repos[name]
	return r != nil && r.manifests[d] != nil
}

// Never is an age that nothing reaches.
const Never = time.Duration(math.MaxInt64)

// Unnamed follows the removal of images' names that did not come through this package, such as by `berth rmi`: manifests
// that go by a digest among them go, with what an index among them lists and what is about them, unless a tag still leads
// there.
func (h *Hosted) Unnamed(names []string) (images.Removal, error) { return h.sweep(names, Never) }

// Prune deletes manifests that no tag leads to and that were pushed at least age ago.
func (h *Hosted) Prune(age time.Duration) (images.Removal, error) { return h.sweep(nil, age) }

// Follows is what Unnamed would do after the removal of names, and DropLoose and Prune after that.
func (h *Hosted) Follows(names []string, age time.Duration) (f images.Follow) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for path, goes := range h.going(names, age) {
		for d := range goes {
			f.LetGo = append(f.LetGo, h.repos[path].manifests[d].Blobs...)
		}
		f.Unname = append(f.Unname, h.namesOf(path, func(d digest.Digest) bool { return goes[d] })...)
	}
	for _, r := range h.repos {
		f.LetGo = append(f.LetGo, r.looseSince(age)...)
	}
	return f
}

// sweep deletes what is going.
func (h *Hosted) sweep(names []string, age time.Duration) (sum images.Removal, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for path, goes := range h.going(names, age) {
		for d := range goes {
			one, failed := h.removeManifest(path, d)
			sum.Add(one)
			err = errors.Join(err, failed)
		}
	}
	return sum, err
}

// going are, by repository, the manifests that go when images lose names, with what they list and what is about them, and
// those that were pushed at least age ago. Those stay that a tag, or a manifest that stays, leads to. The caller holds mu.
func (h *Hosted) going(names []string, age time.Duration) map[string]map[digest.Digest]bool {
	unnamed := map[string]bool{}
	lost := map[string][]digest.Digest{} // by repository
	for _, n := range names {
		unnamed[n] = true
		repo, d, ok := strings.Cut(n, "@")
		path, own := strings.CutPrefix(repo, h.Name+"/")
		if ok && own && h.has(path, digest.Digest(d)) {
			lost[path] = append(lost[path], digest.Digest(d))
		}
	}
	all := map[string]map[digest.Digest]bool{}
	for path, r := range h.repos {
		if len(lost[path]) == 0 && age == Never {
			continue
		}
		chosen := r.below(lost[path]...)
		roots := h.tagged(path, unnamed)
		for d, m := range r.manifests {
			if !chosen[d] && time.Since(m.Since) < age {
				roots = append(roots, d)
			}
		}
		stays := r.below(roots...)
		goes := map[digest.Digest]bool{}
		for d := range r.manifests {
			if !stays[d] {
				goes[d] = true
			}
		}
		all[path] = goes
	}
	return all
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
