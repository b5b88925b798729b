// Package records keeps what execd knows of containers over its own end.
//
// A container that is removed with its exit needs no disk: its record lives in
// the run folder, on a tmpfs. All others are in the state folder; that one
// exists is on the disk before anybody is told so, while its states need only
// survive this process, for a machine that goes down takes them along. Until
// somebody is told a container may be pending: its record may or may not be on the
// disk, and says which life of the run folder it belongs to, for what else there
// is of the container may be lost. So does one of a container that is starting, whose
// later states the disk may not have.
package records

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"

	"berth/internal/journal"
	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/execd/container"
)

// Store has the records.
type Store struct {
	lasting, fleeting *journal.Journal
	era               string // of the run folder, which ends with the machine
}

// Open reads the records in the state and the run folder.
func Open(stateDir, runDir string) (*Store, error) {
	lasting, err := journal.Open(filepath.Join(stateDir, "records"), journal.Options{})
	if err != nil {
		return nil, fmt.Errorf("open container records: %w", err)
	}
	fleeting, err := journal.Open(filepath.Join(runDir, "records"), journal.Options{})
	if err != nil {
		lasting.Close()
		return nil, fmt.Errorf("open container records: %w", err)
	}
	era, err := eraOf(runDir)
	if err != nil {
		lasting.Close()
		fleeting.Close()
		return nil, fmt.Errorf("open container records: %w", err)
	}
	return &Store{lasting, fleeting, era}, nil
}

// eraOf is the name that the run folder was given when it was first used.
func eraOf(runDir string) (string, error) {
	path := filepath.Join(runDir, "era")
	b, err := os.ReadFile(path)
	if err == nil && len(b) > 0 {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	era := rand.Text()
	temp := path + ".new"
	if err := os.WriteFile(temp, []byte(era), 0o600); err != nil {
		return "", err
	}
	return era, os.Rename(temp, path)
}

// Close syncs.
func (s *Store) Close() error { return errors.Join(s.lasting.Close(), s.fleeting.Close()) }

func (s *Store) of(i *container.Info) *journal.Journal {
	if i.AutoRemove() {
		return s.fleeting
	}
	return s.lasting
}

// Put writes a container's record. durable waits for the disk, if there is one
// under it.
func (s *Store) Put(i *container.Info, durable bool) error {
	b, err := s.encode(i)
	if err != nil {
		return fmt.Errorf("write container record: %w", err)
	}
	if err := s.of(i).Put(i.ID, b, durable && !i.AutoRemove()); err != nil {
		return fmt.Errorf("write container record: %w", err)
	}
	return nil
}

// Sync waits until what was put of a container is on the disk, if there is one under it.
func (s *Store) Sync(i *container.Info) error {
	if i.AutoRemove() {
		return nil
	}
	if err := s.lasting.Sync(); err != nil {
		return fmt.Errorf("write container record: %w", err)
	}
	return nil
}

// Delete removes a record. It waits for the disk, so that what is removed does
// not come back, unless the container was one that lives in the run folder.
func (s *Store) Delete(i *container.Info) error {
	if err := s.of(i).Delete(i.ID, !i.AutoRemove()); err != nil {
		return fmt.Errorf("delete container record: %w", err)
	}
	return nil
}

// Load reads all records. One that cannot be read is a container that is dead;
// err then names them all, and the others are there.
func (s *Store) Load() ([]*container.Info, error) {
	var all []*container.Info
	var errs []error
	for _, j := range []*journal.Journal{s.lasting, s.fleeting} {
		for id, b := range j.Range("") {
			i, r, err := decode(b)
			if err == nil && i.Pending && r.Pending != s.era {
				// The machine went down before anybody was told of it.
				errs = append(errs, j.Delete(id, false))
				continue
			}
			if err == nil {
				i.Cut = r.Starting != "" && r.Starting != s.era
			}
			if err == nil && i.ID != id {
				err = fmt.Errorf("it is of %.64q", i.ID)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("record of container %.12s: %w", id, err))
				i = &container.Info{ID: id, Name: "damaged_" + id[:min(12, len(id))], State: container.Dead,
					Spec: &apiv1.ContainerSpec{AutoRemove: j == s.fleeting}}
			}
			all = append(all, i)
		}
	}
	return all, errors.Join(errs...)
}

// version of the format; a newer one is refused.
const version = 1

// record is a container.Info as it is written. Messages are in their wire form,
// which knows how to meet older and newer versions of themselves.
type record struct {
	Version   int             `json:"v"`
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	State     container.State `json:"state"`
	CreatedAt time.Time       `json:"created"`
	CreatedBy string          `json:"by,omitempty"`
	ImageID   string          `json:"image_id,omitempty"`
	IDBase    uint32          `json:"id_base,omitempty"`
	// Message is an api.v1.Container with what is the same there.
	Message   []byte                `json:"message"`
	Image     []byte                `json:"image,omitempty"`
	Volumes   []byte                `json:"volumes,omitempty"`
	Namespace []byte                `json:"namespace,omitempty"`
	Pid       int                   `json:"pid,omitempty"`
	StartedAt time.Time             `json:"started"`
	Cgroup    string                `json:"cgroup,omitempty"`
	Cgroups   []string              `json:"cgroups,omitempty"`
	Exit      *container.ExitStatus `json:"exit,omitempty"`
	Runs      uint64                `json:"runs,omitempty"`
	Stopped   bool                  `json:"stopped,omitempty"`
	Pending   string                `json:"pending,omitempty"`  // era, while it is
	Starting  string                `json:"starting,omitempty"` // era, while it is
}

func (s *Store) encode(i *container.Info) ([]byte, error) {
	r := record{
		Version: version, ID: i.ID, Name: i.Name, State: i.State, CreatedAt: i.CreatedAt, CreatedBy: i.CreatedBy,
		ImageID: i.ImageID, IDBase: i.IDBase, Pid: i.Pid, StartedAt: i.StartedAt, Cgroup: i.Cgroup, Cgroups: i.Cgroups, Exit: i.Exit, Runs: i.Runs,
		Stopped: i.Stopped,
	}
	if i.Pending {
		r.Pending = s.era
	}
	if i.State == container.Starting {
		r.Starting = s.era
	}
	var errs [4]error
	message := &apiv1.Container{
		Spec: i.Spec, Endpoints: i.Endpoints, Hostname: i.Hostname, Command: i.Command, Env: i.Env, WorkingDir: i.Cwd,
		Mounts: i.Mounts, Warnings: i.Warnings, RestartCount: i.RestartCount,
	}
	if !i.AutoRemove() {
		// How long each stage took is most of a record, and nobody looks it up
		// in a container that goes with its exit once execd was restarted.
		message.Trace = i.Trace
	}
	r.Message, errs[0] = proto.Marshal(message)
	r.Volumes, errs[1] = proto.Marshal(&apiv1.Container{Mounts: i.Volumes})
	if i.Image != nil {
		r.Image, errs[2] = proto.Marshal(i.Image)
	}
	if i.Namespace != nil {
		r.Namespace, errs[3] = proto.Marshal(i.Namespace)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return json.Marshal(&r)
}

func decode(b []byte) (i *container.Info, r record, err error) {
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, r, err
	}
	if r.Version > version {
		return nil, r, fmt.Errorf("format %d is newer than this execd", r.Version)
	}
	var c, volumes apiv1.Container
	i = &container.Info{
		ID: r.ID, Name: r.Name, State: r.State, CreatedAt: r.CreatedAt, CreatedBy: r.CreatedBy, ImageID: r.ImageID,
		IDBase: r.IDBase, Pid: r.Pid, StartedAt: r.StartedAt, Cgroup: r.Cgroup, Cgroups: r.Cgroups, Exit: r.Exit, Runs: r.Runs, Stopped: r.Stopped,
		Pending: r.Pending != "",
	}
	err = errors.Join(proto.Unmarshal(r.Message, &c), proto.Unmarshal(r.Volumes, &volumes))
	if r.Image != nil {
		i.Image = new(apiv1.ImageConfig)
		err = errors.Join(err, proto.Unmarshal(r.Image, i.Image))
	}
	if r.Namespace != nil {
		i.Namespace = new(networkv1.Namespace)
		err = errors.Join(err, proto.Unmarshal(r.Namespace, i.Namespace))
	}
	if err != nil {
		return nil, r, err
	}
	if i.Spec = c.Spec; i.Spec == nil {
		i.Spec = new(apiv1.ContainerSpec)
	}
	i.Volumes, i.Endpoints, i.Hostname, i.Command, i.Env, i.Cwd = volumes.Mounts, c.Endpoints, c.Hostname, c.Command, c.Env, c.WorkingDir
	i.Mounts, i.Warnings, i.Trace, i.RestartCount = c.Mounts, c.Warnings, c.Trace, c.RestartCount
	return i, r, nil
}
