// Package hosted knows what clients pushed to this engine's registry, as far as images do not say it already.
//
// An image that is pushed, for whatever platform, becomes one here (package images), whose name begins with the registry's
// own, such as "localhost:5000/team/app:v1". Registries hold more than that: indexes, signatures and other artifacts, images
// whose layers cannot be unpacked, and the exact manifest of each image even where several have the same configuration. That
// is what the records of this package are:
//
//	hosted/manifest/REPO@DIGEST  a manifest or index that was pushed; it keeps itself, its configuration and its layers
//	hosted/tag/REPO:TAG          a tag of something that is no image; tags of images are names in package images
//	hosted/blob/REPO@DIGEST      a blob that was pushed or mounted, for a day, until a manifest needs it
//	hosted/name                  the registry's own name
//
// REPO is the path in a request, without the registry's own name. Each tag has one owner: pushing an image under the tag
// of an artifact, or the other way about, takes it from there.
package hosted

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/fault"
	"berth/internal/journal"
	"berth/services/imaged/gate"
	"berth/services/imaged/graph"
	"berth/services/imaged/images"
	"berth/services/imaged/store"
	"berth/services/imaged/worker"

	"github.com/hashicorp/go-hclog"
	"github.com/opencontainers/go-digest"
)

const (
	manifestPrefix = "hosted/manifest/"
	tagPrefix      = "hosted/tag/"
	blobPrefix     = "hosted/blob/"
	nameKey        = "hosted/name"

	// LooseAge is how long a blob waits for its manifest: pushing the rest of an image over a slow line takes hours.
	LooseAge = 24 * time.Hour
)

// Manifest is the record of a manifest or index.
type Manifest struct {
	MediaType string          `json:"media_type"`
	Size      int64           `json:"size"`               // bytes
	Blobs     []digest.Digest `json:"blobs"`              // itself, configuration and layers, each once
	Children  []digest.Digest `json:"children,omitempty"` // manifests of an index
	Subject   digest.Digest   `json:"subject,omitempty"`  // what it is about
	Type      string          `json:"type,omitempty"`     // artifact type, as referrers are listed with it
	Since     time.Time       `json:"since"`
}

// Tag is the record of a tag of something that is no image.
type Tag struct {
	Digest digest.Digest `json:"digest"`
	Since  time.Time     `json:"since"`
}

// Config are the parts it works with.
type Config struct {
	// Name is what names of pushed images begin with, "localhost:5000"; empty: what it was before.
	Name    string
	Store   *store.Store
	Driver  graph.Driver
	Images  *images.Images
	Unpacks int // layers unpacked at once
	Workers *worker.Workers
	Log     hclog.Logger
}

// Hosted is what was pushed. Its methods may be called from any goroutine.
type Hosted struct {
	Config
	journal *journal.Journal
	unpacks *gate.Gate

	mu    sync.RWMutex
	repos map[string]*repo
}

// repo is a repository.
type repo struct {
	manifests map[digest.Digest]*Manifest
	tags      map[string]Tag
	loose     map[digest.Digest]time.Time
	uses      map[digest.Digest]int // of blobs by manifests
}

// Open reads the records. Connect has to follow before anything but Kept is called: images have to know before they open
// what is kept, and are needed thereafter.
func Open(j *journal.Journal) (*Hosted, error) {
	h := &Hosted{journal: j, repos: map[string]*repo{}}
	err := each(j, manifestPrefix, "@", func(name, d string, m Manifest) {
		h.repo(name).add(digest.Digest(d), &m)
	})
	if err != nil {
		return nil, err
	}
	if err := each(j, tagPrefix, ":", func(name, tag string, t Tag) { h.repo(name).tags[tag] = t }); err != nil {
		return nil, err
	}
	err = each(j, blobPrefix, "@", func(name, d string, since time.Time) { h.repo(name).loose[digest.Digest(d)] = since })
	return h, err
}

// each decodes the records below prefix, whose keys are a repository and something else.
func each[T any](j *journal.Journal, prefix string, separator string, f func(name, rest string, value T)) error {
	for key, raw := range j.Range(prefix) {
		name, rest, ok := strings.Cut(key[len(prefix):], separator) // no repository's path has one
		var v T
		if err := json.Unmarshal(raw, &v); err != nil || !ok {
			return fault.DataLoss.Errorf("BAD_RECORD", "record %s is damaged", key)
		}
		f(name, rest, v)
	}
	return nil
}

// Connect gives it what it works with, and lets go of blobs that waited too long.
func (h *Hosted) Connect(c Config) error {
	h.Config = c
	h.unpacks = gate.New(c.Unpacks)
	// While nothing is served, what was pushed keeps its names.
	last, _ := h.journal.Get(nameKey)
	if h.Name == "" {
		h.Name = string(last)
	}
	if h.Name != string(last) {
		if err := h.journal.Put(nameKey, []byte(h.Name), true); err != nil {
			return err
		}
	}
	_, err := h.DropLoose(LooseAge)
	return err
}

// Kept are the blobs that records need, each as often as it is needed.
func (h *Hosted) Kept() (all []digest.Digest) {
	for _, r := range h.repos {
		for _, m := range r.manifests {
			all = append(all, m.Blobs...)
		}
		all = slices.AppendSeq(all, maps.Keys(r.loose))
	}
	return all
}

// repo gives a repository, new if need be. The caller holds mu.
func (h *Hosted) repo(name string) *repo {
	r := h.repos[name]
	if r == nil {
		r = &repo{
			manifests: map[digest.Digest]*Manifest{}, tags: map[string]Tag{},
			loose: map[digest.Digest]time.Time{}, uses: map[digest.Digest]int{},
		}
		h.repos[name] = r
	}
	return r
}

func (r *repo) add(d digest.Digest, m *Manifest) {
	r.manifests[d] = m
	for _, b := range m.Blobs {
		r.uses[b]++
	}
}

func (r *repo) remove(d digest.Digest) {
	for _, b := range r.manifests[d].Blobs {
		if r.uses[b]--; r.uses[b] == 0 {
			delete(r.uses, b)
		}
	}
	delete(r.manifests, d)
}

// tidy forgets a repository that is empty. The caller holds mu.
func (h *Hosted) tidy(name string) {
	if r := h.repos[name]; r != nil && len(r.manifests)+len(r.tags)+len(r.loose) == 0 {
		delete(h.repos, name)
	}
}

// Canonical is the name of repository name in package images.
func (h *Hosted) Canonical(name string) string { return h.Name + "/" + name }

func manifestKey(name string, d digest.Digest) string {
	return manifestPrefix + name + "@" + d.String()
}
func tagKey(name, tag string) string              { return tagPrefix + name + ":" + tag }
func blobKey(name string, d digest.Digest) string { return blobPrefix + name + "@" + d.String() }

func put(b *journal.Batch, key string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", key, err)
	}
	b.Put(key, raw)
	return nil
}
