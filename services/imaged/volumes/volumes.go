// Package volumes keeps named directories that outlive containers.
//
//	DIR/NAME/data       what containers see
//	journal volume/NAME the record; a directory without one is garbage
package volumes

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/fault"
	"berth/internal/journal"
	"berth/internal/names"
	"berth/services/imaged/diskuse"
	"berth/services/imaged/trash"
)

// Volume is one volume.
type Volume struct {
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Created   time.Time         `json:"created"`
	Anonymous bool              `json:"anonymous,omitempty"`
}

// Volumes is the set of volumes. Its methods may be called from any goroutine.
type Volumes struct {
	dir     string
	journal *journal.Journal
	trash   *trash.Can

	mu    sync.Mutex
	all   map[string]Volume
	users map[string]map[string]bool // containers by volume
}

const prefix = "volume/"

// Open reads the records and deletes directories that have none. A volume whose
// directory is gone gets an empty one: its data was not lost by us.
func Open(dir string, j *journal.Journal, can *trash.Can) (*Volumes, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	v := &Volumes{dir: dir, journal: j, trash: can, all: map[string]Volume{}, users: map[string]map[string]bool{}}
	for key, raw := range j.Range(prefix) {
		var vol Volume
		if err := json.Unmarshal(raw, &vol); err != nil {
			return nil, fault.DataLoss.Errorf("BAD_RECORD", "record %s is damaged: %w", key, err)
		}
		v.all[vol.Name] = vol
		if err := v.makeDir(vol.Name); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if _, ok := v.all[e.Name()]; !ok {
			err = errors.Join(err, can.Throw(filepath.Join(dir, e.Name())))
		}
	}
	return v, err
}

// Path is where the data of the volume called name is.
func (v *Volumes) Path(name string) string { return filepath.Join(v.dir, name, "data") }

func (v *Volumes) makeDir(name string) error {
	if err := os.Mkdir(filepath.Join(v.dir, name), 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	data := v.Path(name)
	err := os.Mkdir(data, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chown(data, 0, 0)
}

// Create makes a volume; an empty name stands for a new anonymous one. One that
// exists with the same labels is given back; created tells the difference.
func (v *Volumes) Create(want Volume) (vol Volume, created bool, err error) {
	if want.Name == "" {
		want.Name, want.Anonymous = randomName(), true
	}
	if !names.Valid(want.Name) {
		return Volume{}, false, fault.InvalidArgument.Errorf("BAD_VOLUME_NAME",
			"volume name %q must begin with a letter or digit and hold only letters, digits, '_', '.' and '-', at most 128", want.Name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if have, ok := v.all[want.Name]; ok {
		if len(want.Labels) > 0 && !maps.Equal(have.Labels, want.Labels) {
			return Volume{}, false, fault.AlreadyExists.Errorf("VOLUME_EXISTS", "volume %s exists with other labels", want.Name).With("volume", want.Name)
		}
		return have, false, nil
	}
	want.Created = time.Now()
	if err := v.makeDir(want.Name); err != nil {
		return Volume{}, false, err
	}
	raw, err := json.Marshal(want)
	if err == nil {
		err = v.journal.Put(prefix+want.Name, raw, !want.Anonymous)
	}
	if err != nil {
		v.trash.Throw(filepath.Join(v.dir, want.Name))
		return Volume{}, false, err
	}
	v.all[want.Name] = want
	return want, true, nil
}

func randomName() string {
	b := make([]byte, 32)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// Get is the volume called name.
func (v *Volumes) Get(name string) (Volume, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	vol, ok := v.all[name]
	if !ok {
		return Volume{}, notFound(name)
	}
	return vol, nil
}

func notFound(name string) error {
	return fault.NotFound.Errorf("VOLUME_NOT_FOUND", "no such volume: %s", name).With("volume", name)
}

// List is all volumes by name.
func (v *Volumes) List() []Volume {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.SortedFunc(maps.Values(v.all), func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
}

// Use notes that a container uses a volume.
func (v *Volumes) Use(name, container string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.all[name]; !ok {
		return notFound(name)
	}
	if v.users[name] == nil {
		v.users[name] = map[string]bool{}
	}
	v.users[name][container] = true
	return nil
}

// Unuse takes a note of Use back.
func (v *Volumes) Unuse(name, container string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.users[name], container)
	if len(v.users[name]) == 0 {
		delete(v.users, name)
	}
}

// Users are the containers that use the volume, sorted.
func (v *Volumes) Users(name string) []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Keys(v.users[name]))
}

// Remove deletes a volume and its data. FailedPrecondition while a container
// uses it.
func (v *Volumes) Remove(name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.all[name]; !ok {
		return notFound(name)
	}
	if n := len(v.users[name]); n > 0 {
		return fault.FailedPrecondition.Errorf("VOLUME_IN_USE", "volume %s is used by %d containers", name, n).
			With("volume", name).Hint("remove the containers first")
	}
	return v.remove(name)
}

func (v *Volumes) remove(name string) error {
	if err := v.journal.Delete(prefix+name, true); err != nil {
		return err
	}
	delete(v.all, name)
	return v.trash.Throw(filepath.Join(v.dir, name))
}

// Prune deletes the volumes no container uses: anonymous ones, or with all also
// those with a name, if match wants them. It gives the names of those it
// deleted and how many bytes their files had.
func (v *Volumes) Prune(all bool, match func(Volume) bool) (names []string, bytes int64, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, n := range slices.Sorted(maps.Keys(v.all)) {
		vol := v.all[n]
		if len(v.users[n]) > 0 || !all && !vol.Anonymous || !match(vol) {
			continue
		}
		size := diskuse.Bytes(v.Path(n))
		if e := v.remove(n); e != nil {
			err = errors.Join(err, e)
			continue
		}
		names, bytes = append(names, n), bytes+size
	}
	return names, bytes, err
}

// Bytes adds up the sizes of the files in a volume, as far as they can be read.
func (v *Volumes) Bytes(name string) int64 { return diskuse.Bytes(v.Path(name)) }
