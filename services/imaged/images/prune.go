package images

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Rules say which images Prune deletes. Never one that a container uses.
type Rules struct {
	// All: not only images without a tag.
	All bool
	// KeepLast keeps, of each repository, the so many newest images.
	KeepLast int
	// Repository chooses repositories by their familiar name: images with a name
	// in another one stay, and so do those without any name. nil chooses all.
	Repository func(name string) bool
	// Protect keeps what it reports true for; nil nothing.
	Protect func(Info) bool
	// Match must hold for an image to go; nil: it does.
	Match func(Info) bool
	// DryRun only tells what would go.
	DryRun bool
	// Follows is what others will do after the removal: a dry run counts it in.
	Follows Follow
}

// Follow is what goes because images or their names do.
type Follow struct {
	LetGo  []digest.Digest // blobs that others need (see Keep), each as often as they let go of it
	Unname []string        // names, each once, as for Images.Unname
}

// pruneChunk is how many images go with one record: as a batch of the journal
// is limited, and each takes a sync of the disk.
const pruneChunk = 500

// Prune deletes the images that the rules choose, or tells which these are.
func (m *Images) Prune(r Rules) (Removal, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	chosen := m.choose(r)
	if r.DryRun {
		return m.preview(chosen, r.Follows), nil
	}
	var sum Removal
	var errs []error
	for some := range slices.Chunk(chosen, pruneChunk) {
		removed, err := m.removeWhole(some)
		errs = append(errs, err)
		sum.Add(removed)
	}
	return sum, errors.Join(errs...)
}

// Collect deletes images that no container uses and that protect does not want
// to be kept, the longest unused first, until that frees need bytes.
func (m *Images) Collect(need int64, protect func(Info) bool) (Removal, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var infos []Info
	for _, e := range m.images {
		if e.users == 0 {
			infos = append(infos, m.info(e))
		}
	}
	slices.SortFunc(infos, func(a, b Info) int {
		return cmp.Or(a.Used.Compare(b.Used), strings.Compare(string(a.ID), string(b.ID)))
	})
	var sum Removal
	for _, i := range infos {
		if sum.Bytes >= need {
			break
		}
		if protect(i) {
			continue
		}
		r, err := m.removeWhole([]*entry{m.images[i.ID]})
		if err != nil {
			return sum, err
		}
		sum.Add(r)
	}
	return sum, nil
}

// choose gives the images that the rules delete, oldest first.
func (m *Images) choose(r Rules) []*entry {
	var infos []Info
	for _, e := range m.images {
		infos = append(infos, m.info(e))
	}
	slices.SortFunc(infos, func(a, b Info) int {
		return cmp.Or(a.Created.Compare(b.Created), a.Stored.Compare(b.Stored), strings.Compare(string(a.ID), string(b.ID)))
	})
	kept := lastOf(infos, r.KeepLast)
	var chosen []*entry
	for _, i := range infos {
		switch {
		case i.Users > 0, len(i.Tags) > 0 && !r.All, kept[i.ID]:
		case r.Repository != nil && !i.onlyIn(r.Repository):
		case r.Protect != nil && r.Protect(i):
		case r.Match != nil && !r.Match(i):
		default:
			chosen = append(chosen, m.images[i.ID])
		}
	}
	return chosen
}

// lastOf are the n newest images of each repository; infos are oldest first.
func lastOf(infos []Info, n int) map[digest.Digest]bool {
	kept := map[digest.Digest]bool{}
	seen := map[string]int{}
	for _, i := range slices.Backward(infos) {
		for repo := range repositoriesOf(i.Tags) {
			if seen[repo]++; seen[repo] <= n {
				kept[i.ID] = true
			}
		}
	}
	return kept
}

func repositoriesOf(names []string) map[string]bool {
	repos := map[string]bool{}
	for _, n := range names {
		repos[repository(n)] = true
	}
	return repos
}

// Is reports whether text means the image: the beginning of its id, of at least
// four digits, or what matches one of its names.
func (i Info) Is(text string, matches func(text, name string) bool) bool {
	if part, ok := partOfID(text); ok {
		return strings.HasPrefix(i.ID.String(), text) || part == text && strings.HasPrefix(i.ID.Encoded(), part)
	}
	return slices.ContainsFunc(slices.Concat(i.Tags, i.Digests), func(n string) bool { return matches(text, n) })
}

// onlyIn reports whether the image has names, all of them in repositories that
// want chooses.
func (i Info) onlyIn(want func(string) bool) bool {
	repos := repositoriesOf(slices.Concat(i.Tags, i.Digests))
	for repo := range repos {
		if !want(repo) {
			return false
		}
	}
	return len(repos) > 0
}

// preview tells what removing the images would come to, with what follows.
func (m *Images) preview(chosen []*entry, after Follow) (r Removal) {
	chosen, names := m.following(chosen, after.Unname)
	blobs, layers := map[digest.Digest]int{}, map[digest.Digest]int{}
	count := func(all []digest.Digest, of map[digest.Digest]int) {
		for _, d := range all {
			of[d]++
		}
	}
	count(after.LetGo, blobs)
	for _, e := range chosen {
		names = append(names, slices.Sorted(maps.Keys(e.names))...)
		r.Deleted = append(r.Deleted, e.ID)
		count(e.Blobs(), blobs)
		count(e.diffIDs(), layers)
	}
	for _, n := range names {
		count(m.refs[n].pins(), blobs)
	}
	r.Untagged = names
	for d, n := range blobs {
		if b := m.blobs[d]; b != nil && b.count == n {
			r.Bytes += b.Size
		}
	}
	for _, d := range slices.Sorted(maps.Keys(layers)) {
		if l := m.layers[d]; l != nil && l.count == layers[d] {
			r.Bytes += l.Bytes
			r.Deleted = append(r.Deleted, d)
		}
	}
	return r
}

// following are the chosen images with those that go when names are taken away as well, and the names among these of
// images that stay.
func (m *Images) following(chosen []*entry, unname []string) (goes []*entry, names []string) {
	lost := map[*entry][]string{}
	for _, n := range unname {
		if r, ok := m.refs[n]; ok {
			e := m.images[r.Image]
			lost[e] = append(lost[e], n)
		}
	}
	for _, e := range chosen {
		delete(lost, e)
	}
	for e, some := range lost {
		if len(some) == len(e.names) && e.users == 0 {
			chosen = append(chosen, e)
		} else {
			names = append(names, some...)
		}
	}
	return chosen, names
}
