package starter

import (
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"berth/libcontainer"
	"berth/libcontainer/cgroup"
)

// maxEntries is how many containers entries remembers.
const maxEntries = 8

// entries are containers in which a command was executed lately: whoever executes one in a container often executes
// the next one there, as health checks do. What entering takes is kept ready for it.
type entries struct {
	mu   sync.Mutex
	kept []*entry // the oldest first
}

// entry is kept until its container ends, or eight others are.
type entry struct {
	name  string
	pid   int // of the container's first process
	group *cgroup.Group
	known libcontainer.Known
}

// take gives an entry away, to one command at a time; nil: there is none.
func (s *entries) take(name string, pid int) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.kept, func(e *entry) bool { return e.name == name && e.pid == pid })
	if i < 0 {
		return nil
	}
	e := s.kept[i]
	s.kept = slices.Delete(s.kept, i, i+1)
	return e
}

// put keeps e, unless the container's first process, of that pidfd, has been reaped: forget has been called or is going
// to be, and after it nobody would take e away. Nor is it kept without a pidfd.
func (s *entries) put(name string, e *entry, pidfd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := func(k *entry) bool { return k.name == name }
	if e.name == "" && e.group.Keep() != nil || slices.ContainsFunc(s.kept, same) || pidfd <= 0 || unix.PidfdSendSignal(pidfd, 0, nil, 0) != nil {
		e.group.Close()
		return
	}
	e.name = name
	if len(s.kept) == maxEntries {
		s.kept[0].group.Close()
		s.kept = slices.Delete(s.kept, 0, 1)
	}
	s.kept = append(s.kept, e)
}

// forget lets go of a container that has ended.
func (s *entries) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = slices.DeleteFunc(s.kept, func(e *entry) bool {
		if e.name == name {
			e.group.Close()
		}
		return e.name == name
	})
}
