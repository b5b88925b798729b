package images

import (
	"encoding/json"
	"slices"
	"time"

	"berth/internal/fault"
	"berth/internal/journal"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// pastPrefix starts the records of what names pointed to before:
//
//	past/NAME       []Past, oldest first
const pastPrefix = "past/"

// pastLimit is how many images are remembered for a name.
const pastLimit = 10

// Past is what a name pointed to until it was moved or taken away.
type Past struct {
	Ref
	Until time.Time `json:"until"`
}

// past reads what is remembered of a name, without images and indexes that are
// gone. The caller holds mu.
func (m *Images) past(name string) (all []Past) {
	raw, ok := m.journal.Get(pastPrefix + name)
	if !ok || json.Unmarshal(raw, &all) != nil { // a memory aid: what cannot be read is forgotten
		return nil
	}
	all = slices.DeleteFunc(all, func(p Past) bool { return m.images[p.Image] == nil })
	for i := range all {
		if slices.ContainsFunc(all[i].pins(), func(d digest.Digest) bool { return m.blobs[d] == nil }) {
			all[i].Index, all[i].Tree = "", nil
		}
	}
	return all
}

// remember adds to batch that name no longer points to old, but to the image
// now, or if that is empty to none. Each image is remembered once.
func (m *Images) remember(batch *journal.Batch, name string, old Ref, now digest.Digest) error {
	if old.Image == now {
		return nil
	}
	all := slices.DeleteFunc(m.past(name), func(p Past) bool { return p.Image == old.Image || p.Image == now })
	all = append(all, Past{old, time.Now()})
	return put(batch, pastPrefix+name, all[max(0, len(all)-pastLimit):])
}

// Past is what named pointed to before, newest first, as far as it is here.
func (m *Images) Past(named reference.Named) []Past {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := m.past(Key(named))
	slices.Reverse(all)
	return all
}

// Undo gives named back to the image that it pointed to before. Undone again, it
// goes on to the one before that, and from the oldest to the one it had first:
// nothing is forgotten by it. NotFound if nothing is remembered that is here.
func (m *Images) Undo(named reference.Named) (now, was digest.Digest, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := Key(named)
	all := m.past(name)
	if len(all) == 0 {
		return "", "", fault.NotFound.Errorf("NO_HISTORY", "%s pointed to no other image that is still here", Familiar(name)).
			With("image", Familiar(name)).Hint("an image that was removed is fetched again by pull, by digest if its tag has moved on")
	}
	back := all[len(all)-1]
	all = all[:len(all)-1]
	var batch journal.Batch
	old, had := m.refs[name]
	if had {
		all = slices.Insert(slices.DeleteFunc(all, func(p Past) bool { return p.Image == old.Image }), 0, Past{old, time.Now()})
	}
	if err := put(&batch, pastPrefix+name, all); err != nil {
		return "", "", err
	}
	ref := back.Ref
	ref.Since = time.Now()
	if err := m.point(&batch, map[string]Ref{name: ref}, func() {}); err != nil {
		return "", "", err
	}
	return ref.Image, old.Image, imageNamed.Hit()
}

// dropPast deletes what is remembered of names when nothing of it is here.
func (m *Images) dropPast(batch *journal.Batch) {
	for key := range m.journal.Range(pastPrefix) {
		if len(m.past(key[len(pastPrefix):])) == 0 {
			batch.Delete(key)
		}
	}
}
