package starter

import (
	"maps"
	"os"
	"sync"

	"berth/libcontainer"
	"berth/libcontainer/netns"
)

// spareNet keeps a network namespace ready for a container without network: making
// one takes the kernel longer than all the other namespaces together.
type spareNet struct {
	mu    sync.Mutex
	spare *os.File
	off   bool
}

// fill makes the spare namespace, if it is missing. It is a courtesy: without it one
// is made when needed.
func (s *spareNet) fill() {
	s.mu.Lock()
	missing := s.spare == nil && !s.off
	s.mu.Unlock()
	if !missing {
		return
	}
	ns, err := netns.New(netns.Defaults)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off || s.spare != nil {
		ns.Close()
		return
	}
	s.spare = ns
}

// take gives the spare namespace, or makes one. It is the caller's.
func (s *spareNet) take() (*os.File, error) {
	s.mu.Lock()
	ns := s.spare
	s.spare = nil
	s.mu.Unlock()
	if ns != nil {
		return ns, nil
	}
	return netns.New(netns.Defaults)
}

// close ends the filling.
func (s *spareNet) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off = true
	if s.spare != nil {
		s.spare.Close()
		s.spare = nil
	}
}

// ownNet opens the network namespace of a container that is to have one of its own, or
// another container's, so that it fits an init that waits: that enters any. nil: it is
// not to have one. In a user namespace of its own the container has to own the other too.
func (s *Starter) ownNet(c *libcontainer.Config) (*os.File, error) {
	net := &c.Namespaces.Net
	if c.Namespaces.User.Private || *net == (libcontainer.Namespace{}) {
		return nil, nil
	}
	var ns *os.File
	var err error
	if net.Path != "" {
		ns, err = os.Open(net.Path)
	} else if ns, err = s.net.take(); err == nil {
		maps.DeleteFunc(c.Sysctls, isSet)
	}
	if err != nil {
		return nil, err
	}
	*net = libcontainer.Namespace{}
	return ns, nil
}

// isSet reports whether namespaces are born with a parameter of this value.
func isSet(name, value string) bool {
	for _, s := range netns.Defaults {
		if s.Name == name {
			return s.Value == value
		}
	}
	return false
}
