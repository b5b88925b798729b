package starter

import (
	"fmt"
	"os"
	"strings"

	"berth/libcontainer"
	"berth/libcontainer/cgroup"
)

// Ready says what to keep ready.
type Ready struct {
	Parent string // cgroup
	Size   int    // number of inits; 0: none
	Pids   int64  // limit of processes that a container usually has
}

// KeepReady begins to fill a pool of inits for the usual container: every namespace its own but the network's, which is
// joined or the host's, and the usual limits. What is unusual starts cold.
func (s *Starter) KeepReady(r Ready) error {
	if r.Size <= 0 {
		return nil
	}
	parent, err := s.parent(r.Parent)
	if err != nil {
		return err
	}
	usual := libcontainer.Config{
		Namespaces: libcontainer.PrivateNamespaces(),
		Mounts:     libcontainer.DefaultMounts(libcontainer.DefaultShm),
		Masked:     libcontainer.DefaultMasked(),
		ReadOnly:   libcontainer.DefaultReadOnly(),
		Devices:    libcontainer.DefaultDevices(),
	}
	usual.Namespaces.Net = libcontainer.Namespace{}
	s.pooled = r.Parent
	s.pool = s.launcher.NewPool(libcontainer.PoolConfig{
		Usual: usual, Resources: cgroup.Resources{Pids: r.Pids}, Size: r.Size,
		Parent: parent, Prefix: fmt.Sprintf("%s%d-", groupPrefix, os.Getpid()),
		Filled: s.net.fill,
	})
	return nil
}

// take gives a waiting init of the plan's shape, or nil.
func (s *Starter) take(plan *Plan) *libcontainer.Ready {
	if s.pool == nil || plan.Parent != s.pooled || !s.pool.Fits(&plan.Container) {
		return nil
	}
	return s.pool.Take()
}

// Close ends the inits that wait, and removes what of cgroups is empty then.
func (s *Starter) Close() {
	s.net.close()
	if s.pool != nil {
		s.pool.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.parents {
		removeEmpty(p)         // of launches that were cut short
		if p.Delete() != nil { // there are groups left: somebody else's affair
			p.Close()
		}
	}
	s.launcher.Close()
}

// removeEmpty removes the pool's groups that nothing is in.
func removeEmpty(p *cgroup.Parent) {
	names, _ := p.List()
	for _, name := range names {
		if !Pooled(name) {
			continue
		}
		g, err := p.Open(name)
		if err != nil {
			continue
		}
		if procs, err := g.Procs(); err == nil && len(procs) == 0 {
			g.Delete()
		}
		g.Close()
	}
}

// groupPrefix and the monitor's pid begin the names of the pool's cgroups, so
// that those of a dead monitor can be told.
const groupPrefix = "ready-"

// Pooled reports whether a cgroup's name is one that a pool gives.
func Pooled(name string) bool { return strings.HasPrefix(name, groupPrefix) }

// PooledBy reports whether it is one of the pool of the monitor pid.
func PooledBy(name string, pid int) bool {
	return strings.HasPrefix(name, fmt.Sprintf("%s%d-", groupPrefix, pid))
}
