//go:build !amd64

package spawn

import "golang.org/x/sys/unix"

// Supported reports whether this package works on this architecture.
const Supported = false

// Child cannot be started here.
type Child struct {
	List
	Cgroup int
}

// Prepare does nothing.
func (c *Child) Prepare() {}

// Start fails with ENOSYS.
func (c *Child) Start() (pid, pidfd int, err error) { return 0, -1, unix.ENOSYS }

// Kill does nothing.
func (c *Child) Kill() {}
