package images

import (
	"maps"
	"slices"
	"strings"
	"time"

	"berth/internal/fault"
	"berth/internal/journal"
	"berth/internal/names"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// ParseName gives the canonical form of a name: with registry, and with the tag
// "latest" if it has neither tag nor digest.
func ParseName(text string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return nil, fault.InvalidArgument.Errorf("BAD_REFERENCE", "%q is not an image name: %w", text, err).With("image", text)
	}
	return reference.TagNameOnly(named), nil
}

// Key is the name under which a reference is recorded. One with tag and digest
// goes by the digest: the tag may have moved on.
func Key(named reference.Named) string {
	if c, ok := named.(reference.Canonical); ok {
		return reference.TrimNamed(named).Name() + "@" + c.Digest().String()
	}
	return named.String()
}

// Names are the records a pull of named makes, target being what the registry
// had under the name: the name itself, and the repository with the digest.
func Names(named reference.Named, image, target digest.Digest) map[string]Ref {
	r := Ref{Image: image, Target: target, Since: time.Now()}
	return map[string]Ref{
		Key(named): r,
		reference.TrimNamed(named).Name() + "@" + target.String(): r,
	}
}

// name commits batch together with refs. When nothing was written it calls
// undo. The caller holds mu.
func (m *Images) name(batch *journal.Batch, refs map[string]Ref, undo func()) error {
	for name, r := range refs {
		if old, ok := m.refs[name]; ok {
			if err := m.remember(batch, name, old, r.Image); err != nil {
				undo()
				return err
			}
		}
	}
	return m.point(batch, refs, undo)
}

// point is name without a memory of what was before.
func (m *Images) point(batch *journal.Batch, refs map[string]Ref, undo func()) error {
	for name, r := range refs {
		if err := put(batch, refPrefix+name, r); err != nil {
			undo()
			return err
		}
	}
	if err := m.journal.Commit(batch, true); err != nil {
		undo()
		return err
	}
	var pins []digest.Digest // that may not be needed any more
	for name, r := range refs {
		m.pin(r, 1)
		if old, ok := m.refs[name]; ok {
			delete(m.images[old.Image].names, name)
			m.pin(old, -1)
			pins = append(pins, old.pins()...)
		}
		m.refs[name] = r
		m.images[r.Image].names[name] = true
	}
	if err := m.drop(&journal.Batch{}, m.unused(slices.Values(pins), none), false); err != nil {
		m.log.Error("delete indexes", "error", err)
	}
	return nil
}

// none is no layers.
func none(func(digest.Digest) bool) {}

// pin counts the index of a name, and what is here with it. The caller holds mu.
func (m *Images) pin(r Ref, n int) { m.keep(r.pins(), n) }

// pinAll is pin for names, and gives what they pin, each as often as they do.
func (m *Images) pinAll(names []string, n int) (pins []digest.Digest) {
	for _, name := range names {
		pins = append(pins, m.refs[name].pins()...)
	}
	m.keep(pins, n)
	return pins
}

// Whole is the name by whose index the image found has others beside it: the one it was found by, or any if that was its
// id. Without Index if there is none.
func (m *Images) Whole(found Found) Ref {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if r, ok := m.refs[found.Name]; ok {
		return r
	}
	if e := m.images[found.ID]; e != nil {
		return m.whole(e)
	}
	return Ref{}
}

func (m *Images) whole(e *entry) Ref {
	for _, name := range slices.Sorted(maps.Keys(e.names)) {
		if r := m.refs[name]; r.Index != "" {
			return r
		}
	}
	return Ref{}
}

// WithManifest is the image that came with manifest d, if it is here.
func (m *Images) WithManifest(d digest.Digest) (Image, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, e := range m.images {
		if e.Manifest == d {
			return e.Image, true
		}
	}
	return Image{}, false
}

// Tag gives the image a further name, taking it from another image if need be.
func (m *Images) Tag(id digest.Digest, named reference.Named) error {
	if _, ok := named.(reference.Canonical); ok {
		return fault.InvalidArgument.Errorf("BAD_REFERENCE", "%s: a tag cannot have a digest", named)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.images[id] == nil {
		return notFound(id.String())
	}
	whole := m.whole(m.images[id])
	ref := Ref{Image: id, Index: whole.Index, Tree: whole.Tree, Since: time.Now()}
	if err := m.name(&journal.Batch{}, map[string]Ref{Key(named): ref}, func() {}); err != nil {
		return err
	}
	return imageNamed.Hit()
}

// Pushed notes that the registry has the image under named as target.
func (m *Images) Pushed(id digest.Digest, named reference.Named, target digest.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.images[id] == nil {
		return notFound(id.String())
	}
	name := reference.TrimNamed(named).Name() + "@" + target.String()
	r := Ref{Image: id, Target: target, Since: time.Now()}
	if whole := m.whole(m.images[id]); whole.Index == target {
		r.Index, r.Tree = whole.Index, whole.Tree
	}
	return m.name(&journal.Batch{}, map[string]Ref{name: r}, func() {})
}

func notFound(text string) error {
	return fault.NotFound.Errorf("IMAGE_NOT_FOUND", "no such image: %s", text).With("image", text)
}

// Found is an image and how it was asked for.
type Found struct {
	Image
	// Name is the canonical name it was found by; empty if by its id.
	Name string
}

// Find looks text up: a whole id, else a name, else the beginning of an id.
// NotFound if there is none, InvalidArgument if text fits several or nothing.
func (m *Images) Find(text string) (Found, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.find(text)
}

func (m *Images) find(text string) (Found, error) {
	id := digest.Digest(text)
	if names.ID(text) {
		id = digest.NewDigestFromEncoded(digest.SHA256, text)
	}
	if e := m.images[id]; e != nil {
		return Found{Image: e.Image}, nil
	}
	named, err := ParseName(text)
	if err == nil {
		if r, ok := m.refs[Key(named)]; ok {
			return Found{Image: m.images[r.Image].Image, Name: Key(named)}, nil
		}
	}
	if part, ok := partOfID(text); ok {
		return m.findPart(text, part)
	}
	if err != nil {
		return Found{}, err
	}
	return Found{}, notFound(text)
}

// partOfID is what text has of an id, with or without the algorithm: of one by sha512 too, half of which is as long as a
// whole one by sha256.
func partOfID(text string) (part string, ok bool) {
	part = text
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		if cut, is := strings.CutPrefix(text, a.String()+":"); is {
			part = cut
		}
	}
	return part, names.PartOfID(part) || names.ID(part) || digest.SHA512.Validate(part) == nil
}

func (m *Images) findPart(text, part string) (Found, error) {
	var found *entry
	for id, e := range m.images {
		if strings.HasPrefix(id.String(), text) || part == text && strings.HasPrefix(id.Encoded(), part) {
			if found != nil {
				return Found{}, fault.InvalidArgument.Errorf("AMBIGUOUS_ID", "%s is the beginning of several images' ids", text).With("image", text)
			}
			found = e
		}
	}
	if found == nil {
		return Found{}, notFound(text)
	}
	return Found{Image: found.Image}, nil
}

// Removal is what Remove did.
type Removal struct {
	Untagged []string        // canonical names
	Deleted  []digest.Digest // ids of images, diff ids of layers
	Bytes    int64           // of blobs and layers that went
}

// Add adds what another one did.
func (r *Removal) Add(o Removal) {
	r.Untagged, r.Deleted, r.Bytes = append(r.Untagged, o.Untagged...), append(r.Deleted, o.Deleted...), r.Bytes+o.Bytes
}

// Remove takes away the name that text is, and with the last tag the image. If
// text is an id all names go, which takes force when there are several. An
// image that containers use keeps its data: FailedPrecondition, or with force
// only its names go.
func (m *Images) Remove(text string, force bool) (Removal, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found, err := m.find(text)
	if err != nil {
		return Removal{}, err
	}
	e := m.images[found.ID]
	goes := m.namesToRemove(e, found.Name)
	last := len(goes) == len(e.names)
	if found.Name == "" && repositories(goes) > 1 && !force {
		return Removal{}, fault.FailedPrecondition.Errorf("IMAGE_HAS_NAMES", "image %s has several names", short(e.ID)).
			With("image", text).Hint("remove it by name, or with --force")
	}
	if last && e.users > 0 && !force {
		return Removal{}, fault.FailedPrecondition.Errorf("IMAGE_IN_USE", "image %s is used by %d containers", text, e.users).
			With("image", text).Hint("remove the containers first, or with --force the name only")
	}
	if last && e.users > 0 && len(goes) == 0 {
		return Removal{}, fault.FailedPrecondition.Errorf("IMAGE_IN_USE", "image %s is used by %d containers", text, e.users).With("image", text)
	}
	return m.remove(e, goes, last && e.users == 0)
}

// namesToRemove are the names that go with name, or all if that is empty. A
// repository's digests go with its last tag: nobody gave them by hand.
func (m *Images) namesToRemove(e *entry, name string) []string {
	all := slices.Sorted(maps.Keys(e.names))
	if name == "" {
		return all
	}
	repo := repository(name)
	tags := slices.DeleteFunc(slices.Clone(all), func(n string) bool {
		return n == name || repository(n) != repo || strings.Contains(n, "@")
	})
	if len(tags) > 0 || strings.Contains(name, "@") {
		return []string{name}
	}
	return slices.DeleteFunc(all, func(n string) bool { return n != name && (repository(n) != repo || !strings.Contains(n, "@")) })
}

func repository(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name
}

// repositories counts the tags, and the repositories that have none.
func repositories(names []string) int {
	tags := map[string]bool{}
	for _, n := range names {
		if !strings.Contains(n, "@") {
			tags[n] = true
		}
	}
	if len(tags) > 0 {
		return len(tags)
	}
	repos := map[string]bool{}
	for _, n := range names {
		repos[repository(n)] = true
	}
	return len(repos)
}

// remove deletes names, and the image with them if whole: then they are all.
func (m *Images) remove(e *entry, names []string, whole bool) (Removal, error) {
	if whole {
		return m.removeWhole([]*entry{e})
	}
	var batch journal.Batch
	for _, n := range names {
		batch.Delete(refPrefix + n)
		if err := m.remember(&batch, n, m.refs[n], ""); err != nil {
			return Removal{}, err
		}
	}
	unused := m.unused(slices.Values(m.pinAll(names, -1)), none)
	r := Removal{Untagged: names, Bytes: m.bytes(unused)}
	if err := m.drop(&batch, unused, false); err != nil {
		if _, ok := m.journal.Get(refPrefix + names[0]); ok { // nothing was written
			m.pinAll(names, 1)
			return Removal{}, err
		}
		m.log.Error("delete indexes", "image", e.ID, "error", err)
	}
	m.forget(e, names)
	return r, nil
}

// removeWhole deletes images with all their names, and what only they needed.
func (m *Images) removeWhole(all []*entry) (r Removal, err error) {
	var batch journal.Batch
	var blobs, layers []digest.Digest
	for _, e := range all {
		names := slices.Sorted(maps.Keys(e.names))
		for _, n := range names {
			batch.Delete(refPrefix + n)
		}
		batch.Delete(imagePrefix + e.ID.String())
		m.count(&e.Image, -1)
		delete(m.images, e.ID)
		blobs = append(blobs, m.pinAll(names, -1)...)
		blobs, layers = append(blobs, e.Blobs()...), append(layers, e.diffIDs()...)
		r.Untagged = append(r.Untagged, names...)
		r.Deleted = append(r.Deleted, e.ID)
	}
	unused := m.unused(slices.Values(blobs), slices.Values(layers))
	r.Bytes, r.Deleted = m.bytes(unused), append(r.Deleted, unused.layers...)
	if err := m.drop(&batch, unused, false); err != nil {
		if _, ok := m.journal.Get(imagePrefix + all[0].ID.String()); ok { // nothing was written
			for _, e := range all {
				m.images[e.ID] = e
				m.count(&e.Image, 1)
				m.pinAll(slices.Collect(maps.Keys(e.names)), 1)
			}
			return Removal{}, err
		}
		m.log.Error("delete images", "image", all[0].ID, "error", err)
	}
	for _, e := range all {
		m.forget(e, slices.Collect(maps.Keys(e.names)))
	}
	return r, nil
}

func (m *Images) forget(e *entry, names []string) {
	for _, n := range names {
		delete(m.refs, n)
		delete(e.names, n)
	}
}

func short(d digest.Digest) string { return d.Encoded()[:12] }
