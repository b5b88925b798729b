package images

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"berth/internal/fault"
	"berth/services/imaged/graph"
	"berth/services/imaged/manifest"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Info is an image with all that is known of it.
type Info struct {
	Image
	Labels  map[string]string
	Tags    []string // familiar form: "nginx:latest"
	Digests []string // familiar form: "nginx@sha256:…"
	Size    int64    // bytes of the files in all layers
	Users   int      // containers
	Created time.Time
	Used    time.Time // when it was last used, stored or named, as far as is known
}

// info describes e. The caller holds mu.
func (m *Images) info(e *entry) Info {
	i := Info{Image: e.Image, Labels: e.Summary.Labels, Users: e.users, Created: e.Stored}
	if c := e.Summary.Created; c != nil {
		i.Created = *c
	}
	for _, l := range e.Layers {
		if have := m.layers[l.DiffID]; have != nil {
			i.Size += have.Bytes
		}
	}
	i.Used = latest(e.Stored, e.used)
	for name := range e.names {
		i.Used = latest(i.Used, m.refs[name].Since)
		if strings.Contains(name, "@") {
			i.Digests = append(i.Digests, Familiar(name))
		} else {
			i.Tags = append(i.Tags, Familiar(name))
		}
	}
	slices.Sort(i.Tags)
	slices.Sort(i.Digests)
	return i
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Familiar is the form of a canonical name that people write: without the
// default registry and its folder for official images.
func Familiar(name string) string {
	hub, ok := strings.CutPrefix(name, "docker.io/")
	if !ok {
		return name
	}
	if official, ok := strings.CutPrefix(hub, "library/"); ok && !strings.Contains(official, "/") {
		return official
	}
	return hub
}

// List is all images, newest first.
func (m *Images) List() []Info {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]Info, 0, len(m.images))
	for _, e := range m.images {
		all = append(all, m.info(e))
	}
	slices.SortFunc(all, func(a, b Info) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	return all
}

// Inspected is an image with its configuration.
type Inspected struct {
	Info
	Config manifest.Config // empty if it is damaged
}

// Inspect describes the image id.
func (m *Images) Inspect(id digest.Digest) (Inspected, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e := m.images[id]
	if e == nil {
		return Inspected{}, notFound(id.String())
	}
	c, err := m.configOf(e)
	if err != nil {
		m.log.Error("image is damaged", "image", id, "error", err)
		c = &manifest.Config{}
	}
	return Inspected{m.info(e), *c}, nil
}

// TagsOf are the canonical names of all tags of the repository that named is in.
func (m *Images) TagsOf(named reference.Named) []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []string
	for name := range m.refs {
		if tag, ok := strings.CutPrefix(name, named.Name()+":"); ok && !strings.Contains(tag, "/") {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// LayerUse is a layer of an image, as List's callers want it.
type LayerUse struct {
	DiffID digest.Digest
	Bytes  int64
	Images int // that have it, or are being made with it
}

// LayersOf describes the layers of i, bottom first.
func (m *Images) LayersOf(i Image) []LayerUse {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]LayerUse, len(i.Layers))
	for n, l := range i.Layers {
		all[n].DiffID = l.DiffID
		if have := m.layers[l.DiffID]; have != nil {
			all[n].Bytes, all[n].Images = have.Bytes, have.count
		}
	}
	return all
}

// LayerSizes are the bytes of the files in each layer of i, bottom first.
func (m *Images) LayerSizes(i Image) []int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	sizes := make([]int64, len(i.Layers))
	for n, l := range i.Layers {
		if have := m.layers[l.DiffID]; have != nil {
			sizes[n] = have.Bytes
		}
	}
	return sizes
}

// Use is a container's hold on an image.
type Use struct {
	Image  Image
	Config manifest.Config
	Layers []graph.Layer // bottom first
}

// Use takes hold of the image id for a container; Unuse gives it back. DataLoss
// if part of the image is missing.
func (m *Images) Use(id digest.Digest) (Use, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.images[id]
	if e == nil {
		return Use{}, notFound(id.String())
	}
	u := Use{Image: e.Image}
	for _, l := range e.Layers {
		have := m.layers[l.DiffID]
		if have == nil {
			return Use{}, damaged(id, l.DiffID)
		}
		u.Layers = append(u.Layers, have.Layer)
	}
	if m.blobs[id] == nil {
		return Use{}, damaged(id, id)
	}
	c, err := m.configOf(e)
	if err != nil {
		return Use{}, err
	}
	u.Config = *c
	e.users++
	e.used = time.Now()
	return u, nil
}

func damaged(id, part digest.Digest) error {
	return fault.DataLoss.Errorf("IMAGE_DAMAGED", "image %s is damaged: %s is missing", short(id), part).
		With("image", id.String()).Hint("pull it again")
}

// Unuse ends a container's hold.
func (m *Images) Unuse(id digest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.images[id]; e != nil && e.users > 0 {
		e.users--
		e.used = time.Now()
	}
}

// Usage is the disk space of blobs and of layers' files, in bytes.
type Usage struct {
	Blobs, LayerBytes int64
	Images, Layers    int
}

// Usage adds up what all images take.
func (m *Images) Usage() Usage {
	m.mu.RLock()
	defer m.mu.RUnlock()
	u := Usage{Images: len(m.images), Layers: len(m.layers)}
	for _, b := range m.blobs {
		u.Blobs += b.Size
	}
	for _, l := range m.layers {
		u.LayerBytes += l.Bytes
	}
	return u
}

// Verify reads everything image id consists of and compares it with its
// digests; blobs only, as unpacked layers have none.
func (m *Images) Verify(id digest.Digest) error {
	info, err := m.Inspect(id)
	if err != nil {
		return err
	}
	for _, d := range info.Blobs() {
		if err := m.store.Verify(d); err != nil {
			return fmt.Errorf("image %s: %w", short(id), err)
		}
	}
	return nil
}

// names is for tests: all recorded names.
func (m *Images) names() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Sorted(maps.Keys(m.refs))
}
