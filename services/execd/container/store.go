package container

import (
	"slices"
	"strings"
	"sync"

	"berth/internal/fault"
	"berth/internal/names"
)

// Store finds containers by id, prefix of an id, or name.
type Store struct {
	mu    sync.RWMutex
	byID  map[string]*Container
	names map[string]string // name to id
	bases map[uint32]string // first host id of a user namespace to id
}

// NewStore makes an empty one.
func NewStore() *Store {
	return &Store{byID: make(map[string]*Container), names: make(map[string]string), bases: make(map[uint32]string)}
}

// CheckID refuses what is not a full id: it becomes a path.
func CheckID(id string) error {
	if !names.ID(id) {
		return fault.InvalidArgument.Errorf("CONTAINER_ID", "container id %.80q is not 64 hex digits", id)
	}
	return nil
}

// CheckName refuses what cannot be a name.
func CheckName(name string) error {
	if !names.Valid(name) {
		return fault.InvalidArgument.Errorf("CONTAINER_NAME",
			"container name %.140q: only letters, digits and _.- are allowed, the first a letter or digit, at most 128", name).
			With("name", name)
	}
	return nil
}

// Reserve takes a name for id, one made up if it is empty, and gives it. The
// caller follows with Add or gives it back with Free.
func (s *Store) Reserve(id, name string) (string, error) {
	if err := CheckID(id); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.byID[id]; ok {
		return "", fault.AlreadyExists.Errorf("CONTAINER_EXISTS", "container %.12s exists already", id)
	}
	if name == "" {
		name = s.inventName()
	} else if err := CheckName(name); err != nil {
		return "", err
	} else if err := s.taken(name); err != nil {
		return "", err
	}
	s.names[name] = id
	return name, nil
}

// taken is called with the lock.
func (s *Store) taken(name string) error {
	owner, ok := s.names[name]
	if !ok {
		return nil
	}
	return fault.AlreadyExists.Errorf("NAME_IN_USE", "the name %q is in use by container %.12s", name, owner).
		With("name", name).With("container", owner).
		Hint("remove or rename that container, or choose another name")
}

// inventName is called with the lock.
func (s *Store) inventName() string {
	for {
		if name := randomName(); s.names[name] == "" {
			return name
		}
	}
}

// Add makes c, whose name is reserved, findable.
func (s *Store) Add(c *Container) {
	i := c.Info()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[i.ID] = c
	s.names[i.Name] = i.ID
	if i.IDBase != 0 {
		s.bases[i.IDBase] = i.ID
	}
}

// Rename moves c from its name to another, which commit records. The lock is
// not held meanwhile: both names are c's.
func (s *Store) Rename(c *Container, name string, commit func() error) error {
	if err := CheckName(name); err != nil {
		return err
	}
	i := c.Info()
	s.mu.Lock()
	err := s.taken(name)
	if err == nil {
		s.names[name] = i.ID
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := commit(); err != nil {
		s.Free(i.ID, name)
		return err
	}
	s.Free(i.ID, i.Name)
	return nil
}

// Free gives a name back, if it is id's.
func (s *Store) Free(id, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names[name] == id {
		delete(s.names, name)
	}
}

// Drop forgets a container and frees its name.
func (s *Store) Drop(c *Container) {
	i := c.Info()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, i.ID)
	if s.names[i.Name] == i.ID {
		delete(s.names, i.Name)
	}
	if s.bases[i.IDBase] == i.ID {
		delete(s.bases, i.IDBase)
	}
}

// The host ids that user namespaces get: IDCount each, from firstID up to the
// highest that all of the kernel's interfaces take (31 bits), above what
// /etc/login.defs hands to people and subuid(5) to theirs.
const (
	IDCount = 1 << 16
	firstID = 1 << 30
	lastID  = 1<<31 - 1
)

// ReserveIDs takes IDCount host ids for a container that nobody else has; Drop
// or FreeIDs gives them back.
func (s *Store) ReserveIDs(id string) (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for base := uint32(firstID); base <= lastID-IDCount+1; base += IDCount {
		if s.bases[base] == "" {
			s.bases[base] = id
			return base, nil
		}
	}
	return 0, fault.ResourceExhausted.Errorf("IDS_EXHAUSTED", "no user ids are left for another user namespace")
}

// FreeIDs gives ids back.
func (s *Store) FreeIDs(id string, base uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bases[base] == id {
		delete(s.bases, base)
	}
}

// Find resolves a full id, a name, or an unambiguous prefix of an id, in this
// order.
func (s *Store) Find(ref string) (*Container, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c := s.byID[ref]; c != nil {
		return c, nil
	}
	if c := s.byID[s.names[ref]]; c != nil {
		return c, nil
	}
	var found *Container
	for id, c := range s.byID {
		if ref == "" || !strings.HasPrefix(id, ref) {
			continue
		}
		if found != nil {
			return nil, fault.FailedPrecondition.Errorf("AMBIGUOUS_ID", "%q is the beginning of several container ids", ref).
				With("container", ref).Hint("give more digits")
		}
		found = c
	}
	if found == nil {
		return nil, fault.NotFound.Errorf("CONTAINER_NOT_FOUND", "no such container: %.140s", ref).With("container", ref)
	}
	return found, nil
}

// All is every container, newest first.
func (s *Store) All() []*Container {
	s.mu.RLock()
	all := make([]*Container, 0, len(s.byID))
	for _, c := range s.byID {
		all = append(all, c)
	}
	s.mu.RUnlock()
	slices.SortFunc(all, func(a, b *Container) int {
		x, y := a.Info(), b.Info()
		if d := y.CreatedAt.Compare(x.CreatedAt); d != 0 {
			return d
		}
		return strings.Compare(x.ID, y.ID)
	})
	return all
}

// Len counts.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.byID)
}
