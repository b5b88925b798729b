// Package rootfs makes the writable root file systems of containers and gives
// them back.
//
//	DIR/ID/record   what it was made of; written last, so that a directory
//	                without it is garbage from a crash
//	DIR/ID/…        what the graph driver needs
//
// The directory is the reference that keeps the image: there is no other record
// of it. It is on the disk before anybody is told of it, for the container's own
// record will be; unless it goes with the container's first exit: what a power
// cut leaves of that, the engine releases.
package rootfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/fault"
	"berth/internal/faultpoint"
	"berth/internal/names"
	"berth/services/imaged/diskuse"
	"berth/services/imaged/graph"
	"berth/services/imaged/graph/merge"
	"berth/services/imaged/images"
	"berth/services/imaged/manifest"
	"berth/services/imaged/trash"
	"berth/services/imaged/volumes"

	"github.com/hashicorp/go-hclog"
	"github.com/opencontainers/go-digest"
)

var (
	rootfsPrepared = faultpoint.Declare("imaged.rootfs-prepared", "a container's writable layer is made, the answer not yet sent")
	rootfsReleased = faultpoint.Declare("imaged.rootfs-released", "a container's writable layer is in the trash, the answer not yet sent")
)

// Rootfs is the root file system of one container.
type Rootfs struct {
	Container string          `json:"container"` // 64 hex digits
	Image     digest.Digest   `json:"image"`
	Name      string          `json:"name,omitempty"` // canonical name the image was asked for by
	Volumes   []Mount         `json:"volumes,omitempty"`
	Created   time.Time       `json:"created"`
	Config    manifest.Config `json:"-"`
	Recipe    graph.Recipe    `json:"-"`
}

// Mount is a volume in a container.
type Mount struct {
	Volume    string `json:"volume"`
	Target    string `json:"target"`
	Source    string `json:"-"`
	Anonymous bool   `json:"anonymous,omitempty"`
	Created   bool   `json:"-"` // for this container just now
}

// Request says what to prepare.
type Request struct {
	Container string
	Image     string // name or id
	Volumes   []VolumeRequest
	// ImageVolumes makes anonymous volumes for the paths that the image
	// declares as such and that neither Volumes nor Covered have.
	ImageVolumes bool
	Covered      []string
	// Ephemeral: it goes with the container's first exit, and nothing is synced.
	Ephemeral bool
	// SyncLater: Prepare does not wait for the disk, Sync does.
	SyncLater bool
}

// VolumeRequest asks for a volume at a path.
type VolumeRequest struct {
	Name   string // empty: a new anonymous one
	Target string
	NoCopy bool // leave a new volume empty, rather than filled with what the image has there
}

// Manager keeps the root file systems below one directory. Its methods may be
// called from any goroutine; those for different containers do not wait for one
// another.
type Manager struct {
	dir     string
	driver  graph.Driver
	images  *images.Images
	volumes *volumes.Volumes
	trash   *trash.Can
	log     hclog.Logger

	mu  sync.Mutex
	all map[string]*Rootfs // nil while being made

	later laters
}

// Open finds the root file systems below dir and deletes half-made ones.
func Open(dir string, d graph.Driver, i *images.Images, v *volumes.Volumes, can *trash.Can, log hclog.Logger) (*Manager, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	m := &Manager{dir: dir, driver: d, images: i, volumes: v, trash: can, log: log, all: map[string]*Rootfs{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if err := m.load(e.Name()); err != nil {
			return nil, err
		}
	}
	return m, nil
}

const recordFile = "record"

func (m *Manager) load(id string) error {
	var r Rootfs
	raw, err := os.ReadFile(filepath.Join(m.dir, id, recordFile))
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil || r.Container != id {
		m.log.Info("remove unfinished root file system", "container", id)
		return m.trash.Throw(filepath.Join(m.dir, id))
	}
	use, err := m.images.Use(r.Image)
	if err != nil {
		// Kept, as it holds the container's data; Get reports what is wrong.
		m.log.Error("root file system without its image", "container", id, "error", err)
	} else {
		m.complete(&r, use)
	}
	for _, v := range r.Volumes {
		if err := m.volumes.Use(v.Volume, id); err != nil {
			m.log.Error("root file system without its volume", "container", id, "error", err)
		}
	}
	m.all[id] = &r
	return nil
}

// complete fills in what the record does not hold.
func (m *Manager) complete(r *Rootfs, use images.Use) {
	r.Config = use.Config
	r.Recipe = m.driver.Recipe(filepath.Join(m.dir, r.Container), use.Layers)
	for i := range r.Volumes {
		r.Volumes[i].Source = m.volumes.Path(r.Volumes[i].Volume)
	}
}

func checkID(id string) error {
	if !names.ID(id) {
		return fault.InvalidArgument.Errorf("BAD_CONTAINER_ID", "%q is not a container id of 64 hex digits", id)
	}
	return nil
}

// Prepare makes the root file system of a container and its volumes.
// AlreadyExists when it has one; NotFound when the image is not here.
func (m *Manager) Prepare(ctx context.Context, req Request) (Rootfs, error) {
	if err := checkID(req.Container); err != nil {
		return Rootfs{}, err
	}
	found, err := m.images.Find(req.Image)
	if err != nil {
		return Rootfs{}, err
	}
	if err := m.reserve(req.Container); err != nil {
		return Rootfs{}, err
	}
	r, err := m.prepare(ctx, req, found)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		delete(m.all, req.Container)
		return Rootfs{}, err
	}
	m.all[req.Container] = r
	return *r, rootfsPrepared.Hit()
}

// reserve keeps others from making the same one.
func (m *Manager) reserve(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.all[id]; ok {
		return fault.AlreadyExists.Errorf("ROOTFS_EXISTS", "container %s has a root file system", id).With("container", id)
	}
	m.all[id] = nil
	return nil
}

func (m *Manager) prepare(ctx context.Context, req Request, found images.Found) (_ *Rootfs, err error) {
	use, err := m.images.Use(found.ID)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(m.dir, req.Container)
	r := &Rootfs{Container: req.Container, Image: found.ID, Name: found.Name, Created: time.Now()}
	defer func() {
		if err != nil {
			m.undo(r, dir)
		}
	}()
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, err
	}
	recipe, err := m.driver.Prepare(ctx, dir, use.Layers)
	if err != nil {
		return nil, fmt.Errorf("make root file system: %w", err)
	}
	if err := m.addVolumes(ctx, r, req, use); err != nil {
		return nil, err
	}
	m.complete(r, use)
	r.Recipe = recipe
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, recordFile), raw, 0o600); err != nil || req.Ephemeral {
		return r, err
	}
	if req.SyncLater {
		m.later.start(r.Container, func() error { return m.sync(dir, recipe) })
		return r, nil
	}
	return r, m.sync(dir, recipe)
}

// sync waits until what was made in dir is on the disk.
func (m *Manager) sync(dir string, recipe graph.Recipe) error {
	if recipe.Source != "" { // a copy of the image: thousands of files
		return graph.SyncAll(dir)
	}
	for _, path := range []string{filepath.Join(dir, recordFile), dir, m.dir} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) undo(r *Rootfs, dir string) {
	m.images.Unuse(r.Image)
	m.releaseVolumes(r, func(v Mount) bool { return v.Created })
	if err := m.trash.Throw(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Error("remove unfinished root file system", "container", r.Container, "error", err)
	}
}

// releaseVolumes ends the container's use of its volumes and removes those that
// remove wants.
func (m *Manager) releaseVolumes(r *Rootfs, remove func(Mount) bool) {
	for _, v := range r.Volumes {
		m.volumes.Unuse(v.Volume, r.Container)
		if !remove(v) {
			continue
		}
		if err := m.volumes.Remove(v.Volume); err != nil && !errors.Is(err, fault.NotFound) {
			m.log.Error("remove volume", "volume", v.Volume, "error", err)
		}
	}
}

// Get is the root file system of a container.
func (m *Manager) Get(id string) (Rootfs, error) {
	if err := checkID(id); err != nil {
		return Rootfs{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.all[id]
	if r == nil {
		return Rootfs{}, fault.NotFound.Errorf("ROOTFS_NOT_FOUND", "container %s has no root file system", id).With("container", id)
	}
	if r.Recipe.Type == "" { // its image was damaged at start; it may be whole again
		use, err := m.images.Use(r.Image)
		if err != nil {
			return Rootfs{}, err
		}
		m.complete(r, use)
	}
	return *r, nil
}

// Release gives a root file system back, deleting its files in the background,
// and with anonymous its anonymous volumes. Releasing what is not there
// succeeds.
func (m *Manager) Release(id string, anonymous bool) error {
	if err := checkID(id); err != nil {
		return err
	}
	m.mu.Lock()
	r := m.all[id]
	if r == nil {
		m.mu.Unlock()
		return nil
	}
	if err := m.trash.Throw(filepath.Join(m.dir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.mu.Unlock()
		return err
	}
	delete(m.all, id)
	m.mu.Unlock()
	m.later.take(id)
	if r.Recipe.Type != "" {
		m.images.Unuse(r.Image)
	}
	m.releaseVolumes(r, func(v Mount) bool { return anonymous && v.Anonymous })
	return rootfsReleased.Hit()
}

// List is all root file systems by container.
func (m *Manager) List() []Rootfs {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Rootfs, 0, len(m.all))
	for _, r := range m.all {
		if r != nil {
			all = append(all, *r)
		}
	}
	slices.SortFunc(all, func(a, b Rootfs) int { return strings.Compare(a.Container, b.Container) })
	return all
}

// Changes lists what a container changed in its image. Unimplemented with a
// graph driver that cannot tell.
func (m *Manager) Changes(id string) (all []merge.Change, err error) {
	err = m.using(id, func(dir string, use images.Use) (err error) {
		d, ok := m.driver.(graph.Differ)
		if !ok {
			return m.cannotTell()
		}
		all, err = d.Changes(dir, use.Layers)
		return err
	})
	return all, err
}

// WriteLayer writes what a container changed in its image as the archive of a
// layer. Unimplemented with a graph driver that cannot tell.
func (m *Manager) WriteLayer(ctx context.Context, id string, w io.Writer) error {
	return m.using(id, func(dir string, use images.Use) error {
		d, ok := m.driver.(graph.Differ)
		if !ok {
			return m.cannotTell()
		}
		return d.WriteLayer(ctx, w, dir, use.Layers)
	})
}

// WriteTree writes the archive of a container's root file system.
func (m *Manager) WriteTree(ctx context.Context, id string, w io.Writer) error {
	return m.using(id, func(dir string, use images.Use) error {
		return m.driver.WriteTree(ctx, w, dir, use.Layers)
	})
}

// using runs f with the directory of a container's root file system and a hold
// on its image.
func (m *Manager) using(id string, f func(dir string, use images.Use) error) error {
	r, err := m.Get(id)
	if err != nil {
		return err
	}
	use, err := m.images.Use(r.Image)
	if err != nil {
		return err
	}
	defer m.images.Unuse(r.Image)
	return f(filepath.Join(m.dir, id), use)
}

func (m *Manager) cannotTell() error {
	return fault.Unimplemented.Errorf("NO_CHANGES", "graph driver %s does not know what a container changed", m.driver.Name())
}

// Bytes adds up the sizes of the files in r's writable part.
func (m *Manager) Bytes(r Rootfs) int64 {
	return diskuse.Bytes(filepath.Join(m.dir, r.Container))
}
