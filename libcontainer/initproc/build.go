package initproc

import (
	"golang.org/x/sys/unix"

	"berth/libcontainer/internal/wire"
	"berth/libcontainer/ns"
	"berth/libcontainer/safepath"
)

// build makes the container: namespaces, file systems, identity of the machine.
func (r *runner) build() error {
	s := r.setup
	if err := r.namespaces(); err != nil {
		return err
	}
	if err := r.mounts(); err != nil {
		return err
	}
	if err := r.names(); err != nil {
		return err
	}
	// The working directory is made before the root becomes read-only.
	if s.Command.Cwd != "" && s.Command.Cwd != "/" {
		err := r.step("make working directory", func() error {
			dir, err := safepath.MkdirAll(r.rootFD, s.Command.Cwd, 0o755)
			if err == nil {
				unix.Close(dir)
			}
			return bare(err)
		})
		if err != nil {
			return err
		}
	}
	return r.step("pivot root", r.pivot)
}

// namespaces enters those of others, and makes those that the clone of this
// process could not.
func (r *runner) namespaces() error {
	s := r.setup
	for _, j := range s.Joins {
		err := r.step("join "+string(j.Kind)+" namespace", func() error { return ns.Enter(r.fd(j.FD), j.Kind) })
		if err != nil {
			return err
		}
	}
	if s.LateNet {
		if err := r.step("join net namespace", r.joinLate); err != nil {
			return err
		}
	}
	// A cgroup namespace shows the groups its maker is in as the root. A clone
	// into another group would still take those of the parent (copy_cgroup_ns
	// in kernel/cgroup/namespace.c), so it is made here, or was made ahead.
	if s.Unshare != 0 && r.stock == nil {
		return r.step("unshare", func() error { return unix.Unshare(int(s.Unshare)) })
	}
	return nil
}

// joinLate waits for the network namespace that was made meanwhile, and enters it.
func (r *runner) joinLate() error {
	message, fds, err := Receive(Socket)
	if err != nil {
		return err
	}
	if message == nil {
		unix.Exit(exitFailed) // there is none, and the launcher knows why
	}
	if len(fds) != 1 {
		return wire.ErrMalformed
	}
	defer unix.Close(fds[0])
	return ns.Enter(fds[0], ns.Net)
}

// names gives the machine its names and the namespaces their settings.
func (r *runner) names() error {
	s := r.setup
	if s.Loopback {
		if err := r.step("bring loopback up", loopbackUp); err != nil {
			return err
		}
	}
	if s.Hostname != "" {
		if err := r.step("set hostname", func() error { return unix.Sethostname([]byte(s.Hostname)) }); err != nil {
			return err
		}
	}
	if s.Domain != "" {
		if err := r.step("set domain name", func() error { return unix.Setdomainname([]byte(s.Domain)) }); err != nil {
			return err
		}
	}
	for _, c := range s.Sysctls {
		if err := r.step("set sysctl "+c.Path, func() error { return r.proc.write("sys/"+c.Path, c.Value) }); err != nil {
			return err
		}
	}
	return nil
}

// pivot makes the container's root the root of the process and lets go of the
// host's tree. Both arguments of pivot_root(2) are ".": the old root ends on top
// of the new one and no directory is needed to put it (see its NOTES).
func (r *runner) pivot() error {
	r.builder.Close()
	if err := unix.Fchdir(r.rootFD); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// enter goes into an existing container.
func (r *runner) enter() error {
	if err := r.namespaces(); err != nil {
		return err
	}
	return r.openRoot()
}

func (r *runner) openRoot() error {
	return r.step("open root", func() (err error) {
		r.rootFD, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
}
