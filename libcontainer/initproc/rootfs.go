package initproc

import (
	"errors"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/libcontainer/mount"
	"berth/libcontainer/safepath"
)

// mounts builds the container's file systems. Until pivot the process still
// sees the host under absolute paths; the container is reached through rootFD.
func (r *runner) mounts() error {
	if r.stock == nil {
		if err := r.step("make mounts private", r.isolate); err != nil {
			return err
		}
		if err := r.step("open null device", r.openNull); err != nil {
			return err
		}
	}
	ready := r.usable()
	if err := r.step(r.rootName(), r.mountRoot); err != nil {
		return err
	}
	for i := range r.setup.Mounts {
		m := &r.setup.Mounts[i]
		if tree := ready[m.Destination]; tree != nil {
			if err := r.step("move "+m.Destination, func() error { return r.useStock(m, tree) }); err != nil {
				return err
			}
			continue
		}
		if ready.covers(m.Destination) {
			continue
		}
		if err := r.step(mountName(m), func() error { return r.mount(i, m) }); err != nil {
			return err
		}
	}
	if err := r.devicesOutside(); err != nil {
		return err
	}
	if r.setup.Command.Terminal != nil {
		if err := r.step("make console", r.console); err != nil {
			return err
		}
	}
	if err := r.step("make paths read-only", func() error { return r.readOnlyPaths(ready) }); err != nil {
		return err
	}
	return r.step("mask paths", func() error { return r.mask(ready) })
}

// isolate ends the propagation of mounts to the host, and from it unless a
// volume is to receive the mounts made there later.
func (r *runner) isolate() error {
	r.early = make(map[int]*mount.Tree)
	flag := uintptr(unix.MS_PRIVATE)
	for i := range r.setup.Mounts {
		m := &r.setup.Mounts[i]
		switch m.Propagation {
		case mount.Slave, mount.RSlave:
			r.slave, flag = true, unix.MS_SLAVE
		case mount.Shared, mount.RShared:
			// What is copied now is a peer of the host's mount; after the
			// next call it could not be.
			tree, err := r.copyEarly(m)
			if err != nil {
				return named(mountName(m), err)
			}
			r.early[i] = tree
		}
	}
	return unix.Mount("", "/", "", flag|unix.MS_REC, "")
}

func (r *runner) copyEarly(m *mount.Mount) (*mount.Tree, error) {
	if r.setup.Force&ForceMount != 0 || !mount.Modern() {
		return nil, errors.New("shared propagation needs Linux 5.12")
	}
	fd, err := unix.Open(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return r.builder.Copy(fd, m.Recursive)
}

// openNull opens the null device that masks files: the host's, before the
// container had a chance to offer one of its own (CVE-2025-31133).
func (r *runner) openNull() error {
	fd, err := unix.Open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return errors.New("/dev/null of the host is not the null device")
	}
	r.null = fd
	return nil
}

func (r *runner) rootName() string {
	if len(r.setup.Root.Lower) > 0 {
		return "mount overlay"
	}
	return "mount root " + strconv.Quote(r.setup.Root.Bind)
}

func (r *runner) mountRoot() error {
	root, err := r.makeRoot()
	if err != nil {
		return err
	}
	r.root, r.rootFD = root, root.FD()
	return root.AttachRoot()
}

func (r *runner) makeRoot() (*mount.Tree, error) {
	spec := &r.setup.Root
	if fd := r.fd(r.setup.RootFD); fd >= 0 {
		return mount.TreeFromFD(fd), nil
	}
	if len(spec.Lower) > 0 {
		return r.builder.Overlay(spec)
	}
	fd, err := unix.Open(spec.Bind, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	tree, err := r.builder.Copy(fd, true)
	if err != nil {
		return nil, err
	}
	return tree, tree.SetAttr(spec.Attr&^mount.ReadOnly, false)
}

// mountName is what a mount is called in traces and errors.
func mountName(m *mount.Mount) string {
	switch m.Type {
	case "bind":
		return "bind " + strconv.Quote(m.Source) + " on " + strconv.Quote(m.Destination)
	case "tmpfs":
		return "mount tmpfs on " + strconv.Quote(m.Destination)
	}
	return "mount " + m.Type
}

func (r *runner) mount(i int, m *mount.Mount) error {
	fd, early := r.fd(r.setup.MountFDs[i]), r.early[i]
	switch {
	case m.Type == "cgroup":
		return r.mountCgroups(m)
	case fd >= 0:
		return r.finish(mount.TreeFromFD(fd), m)
	case early != nil:
		return r.finish(early, m)
	case m.Type == "bind":
		return r.bind(m)
	}
	return r.mountFS(m)
}

func (r *runner) bind(m *mount.Mount) error {
	fd, err := unix.Open(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	tree, err := r.builder.Copy(fd, m.Recursive)
	if err != nil {
		return err
	}
	return r.finish(tree, m)
}

// finish gives a copied mount its flags and puts it at its destination.
func (r *runner) finish(tree *mount.Tree, m *mount.Mount) error {
	if m.Attr != 0 {
		if err := tree.SetAttr(m.Attr, m.Recursive); err != nil {
			return err
		}
	}
	if r.slave || m.Propagation != mount.Private {
		p := m.Propagation
		if p == mount.Private && m.Recursive {
			p = mount.RPrivate
		}
		if err := tree.SetPropagation(p); err != nil {
			return err
		}
	}
	return r.attach(tree, m)
}

func (r *runner) mountFS(m *mount.Mount) error {
	tree, err := r.builder.New(m.Type, m.Type, m.Options, m.Attr)
	if err == unix.ENODEV && m.Type == "mqueue" {
		r.warn("this kernel has no message queues: " + m.Destination + " is left out")
		return nil
	}
	if m.Type == "proc" && errors.Is(err, unix.EPERM) {
		return &covered{err}
	}
	if err != nil {
		return err
	}
	if err := r.attach(tree, m); err != nil {
		return err
	}
	switch {
	case m.Type == "devpts":
		r.devpts = tree.FD()
	case m.Type == "tmpfs" && path.Clean(m.Destination) == "/dev":
		return r.populateDev(tree.FD())
	}
	return nil
}

// covered says what makes the kernel refuse a new proc to a user namespace: one that
// would show what something mounted over a part of the host's /proc hides
// (mount_too_revealing in fs/namespace.c). Empty directories made for mounts, such as
// that of binfmt_misc, do not count.
type covered struct{ err error }

func (e *covered) Error() string {
	return e.err.Error() + "; a user namespace gets none where something is mounted over a part of the host's /proc: see findmnt -R /proc"
}
func (e *covered) Unwrap() error { return e.err }

// attach puts a tree at the destination of m. The tree's descriptor stays open:
// it is close-on-exec, and this process does not live long.
func (r *runner) attach(tree *mount.Tree, m *mount.Mount) error {
	target, err := r.mountpoint(m, tree.FD())
	if err != nil {
		return bare(err)
	}
	defer unix.Close(target)
	if err := tree.Attach(target); err != nil {
		return err
	}
	if r.stocking != nil {
		r.stocking.keep(m, tree)
	}
	return nil
}

// mountpoint opens, and if need be makes, the place for a mount.
func (r *runner) mountpoint(m *mount.Mount, tree int) (int, error) {
	if err := refuseSpecial(m); err != nil {
		return -1, err
	}
	target, err := r.place(m, tree)
	if err != nil {
		return -1, err
	}
	if err := r.checkPlace(m, target); err != nil {
		unix.Close(target)
		return -1, err
	}
	return target, nil
}

func (r *runner) place(m *mount.Mount, tree int) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return safepath.MkdirAll(r.rootFD, m.Destination, 0o755)
	}
	return safepath.CreateFile(r.rootFD, m.Destination, 0o644)
}

var (
	errOverKernelFS = errors.New("refused: the destination is inside /proc or /sys")
	errLink         = errors.New("refused: the image has a symbolic link there")
)

// procFiles are the files of /proc that may be replaced by a bind mount: what
// lxcfs makes, figures about the machine that programs read and no security
// depends on.
var procFiles = map[string]bool{
	"/proc/cpuinfo": true, "/proc/diskstats": true, "/proc/loadavg": true, "/proc/meminfo": true,
	"/proc/stat": true, "/proc/swaps": true, "/proc/uptime": true, "/proc/slabinfo": true,
}

// refuseSpecial refuses volumes at /proc, /sys and below: a fake /proc would
// decide where init's, and every later exec's, writes to it go (CVE-2019-16884,
// CVE-2025-52881).
func refuseSpecial(m *mount.Mount) error {
	dest := path.Clean("/" + m.Destination)
	if dest == "/" {
		return errors.New("refused: the destination is the root")
	}
	if m.Type != "bind" && m.Type != "tmpfs" || procFiles[dest] {
		return nil
	}
	for _, top := range []string{"/proc", "/sys"} {
		if dest == top || strings.HasPrefix(dest, top+"/") {
			return errOverKernelFS
		}
	}
	return nil
}

// checkPlace looks at what the destination turned out to be, links followed.
func (r *runner) checkPlace(m *mount.Mount, target int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(target, &fs); err != nil {
		return err
	}
	kernelFS := fs.Type == unix.PROC_SUPER_MAGIC || fs.Type == unix.SYSFS_MAGIC
	switch m.Type {
	case "bind", "tmpfs":
		if kernelFS && !procFiles[path.Clean(m.Destination)] {
			return errOverKernelFS
		}
	case "proc", "sysfs":
		// An image with /proc -> /elsewhere would get the real one where
		// nobody looks for it.
		if st, err := safepath.Lstat(r.rootFD, m.Destination); err != nil {
			return err
		} else if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return errLink
		}
	}
	return nil
}
