package libcontainer

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/libcontainer/initproc"
	"berth/libcontainer/mount"
	"berth/libcontainer/ns"
	"berth/libcontainer/safepath"
)

// A process born into a user namespace has no rights over what belongs to the
// host: it may neither mount with other owners, nor reach directories that only
// root may enter, nor mount the sysfs of a network namespace it was not born
// with. So the launcher prepares those mounts, detached, and hands their
// descriptors over. It does this on the thread that was used for the clone and
// that has entered the same network namespace.

// prepareUserNS makes the mounts that init cannot make.
func (p *plan) prepareUserNS(pid int) error {
	userns, err := ns.Open(pid, ns.User)
	if err != nil {
		return &StepError{"open user namespace", err}
	}
	defer unix.Close(userns)
	uid, _ := hostID(p.userns.UIDMappings)
	gid, _ := hostID(p.userns.GIDMappings)
	if err := p.giveStdio(uid, gid); err != nil {
		return &StepError{"give stdio to the container", err}
	}
	for _, v := range p.sysctls {
		if err := writeSysctl(v.Path, v.Value); err != nil {
			return &StepError{"set sysctl " + v.Path, err}
		}
	}
	if err := p.prepareRoot(userns); err != nil {
		return err
	}
	for i := range p.setup.Mounts {
		m := &p.setup.Mounts[i]
		var tree int
		switch {
		case m.Type == "bind":
			tree, err = copyTree(m.Source, m.Recursive, m.IDMap, userns, m.Propagation)
		case m.Type == "sysfs" && !p.netOwned:
			tree, err = sysfsTree(m)
		default:
			continue
		}
		if err != nil {
			return err
		}
		p.setup.MountFDs[i] = p.own(tree)
	}
	return nil
}

// giveStdio gives pipes to the root of the container, by its ids on the host: its
// processes will want to open /dev/stdout again, and init to pass it on to another
// user, for which it has to know the group as well.
func (p *plan) giveStdio(uid, gid uint32) error {
	for _, fd := range p.send[:3] {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
			err = unix.Fchown(fd, int(uid), int(gid))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeSysctl writes a value of the thread's own namespaces.
func writeSysctl(path, value string) error {
	proc, err := safepath.OpenProc()
	if err != nil {
		return err
	}
	defer unix.Close(proc)
	fd, err := safepath.OpenBeneath(proc, "sys/"+path, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if fs.Type != unix.PROC_SUPER_MAGIC {
		return unix.EXDEV
	}
	_, err = unix.Write(fd, []byte(value))
	return err
}

func (p *plan) prepareRoot(userns int) error {
	root := &p.setup.Root
	if root.Images {
		return p.mappedImages(root, userns)
	}
	var tree int
	var err error
	switch {
	case len(root.Lower) == 0:
		tree, err = copyTree(root.Bind, !root.IDMap, root.IDMap, userns, mount.Private)
	case root.IDMap:
		tree, err = p.mappedOverlay(root, userns)
	default:
		return nil // init mounts it itself, with what Options say ("userxattr")
	}
	if err != nil {
		return err
	}
	p.setup.RootFD = p.own(tree)
	if attr := root.Attr &^ mount.ReadOnly; attr != 0 {
		if err := mount.TreeFromFD(tree).SetAttr(attr, false); err != nil {
			return &StepError{"set flags of root", err}
		}
	}
	return nil
}

// copyTree is a detached copy of what is mounted at a path, with the propagation
// given (a copy of a shared mount is shared), and with owners mapped if asked
// for.
func copyTree(path string, recursive, idmap bool, userns int, p mount.Propagation) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &StepError{"open", &os.PathError{Op: "open", Path: path, Err: err}}
	}
	defer unix.Close(fd)
	tree, err := mount.CopyFD(fd, recursive)
	if err != nil {
		return -1, &StepError{fmt.Sprintf("copy mount %q", path), unsupported(err)}
	}
	if p == mount.Private {
		p = mount.RPrivate
	}
	if err := mount.TreeFromFD(tree).SetPropagation(p); err != nil {
		unix.Close(tree)
		return -1, &StepError{fmt.Sprintf("set propagation of %q", path), err}
	}
	if !idmap {
		return tree, nil
	}
	if err := mount.IDMapFD(tree, userns, recursive); err != nil {
		unix.Close(tree)
		return -1, &StepError{fmt.Sprintf("map owners of %q", path), unsupported(err)}
	}
	return tree, nil
}

// unsupported marks the answers of a kernel or file system that cannot map
// owners.
func unsupported(err error) error {
	if err == unix.EINVAL || err == unix.ENOSYS || err == unix.EOPNOTSUPP {
		return errors.Join(ErrUnsupported, err)
	}
	return err
}

// sysfsTree mounts the sysfs of the network namespace the thread is in.
func sysfsTree(m *Mount) (int, error) {
	b := mount.NewBuilder(false)
	tree, err := b.New("sysfs", "sysfs", m.Options, m.Attr)
	if err != nil {
		return -1, &StepError{"mount sysfs", err}
	}
	return tree.FD(), nil
}

// mappedOverlay makes an overlay whose layers show their owners mapped; overlay
// itself cannot (Linux 6.18). It wants paths, and mapped copies have none; so
// the copies are attached in a mount namespace of this thread's own, which is
// gone with the thread. The overlay keeps its layers.
func (p *plan) mappedOverlay(root *Root, userns int) (int, error) {
	if err := privateMounts(); err != nil {
		return -1, err
	}
	if err := actAs(p.userns); err != nil {
		return -1, &StepError{"act as root of the container", err}
	}
	b := mount.NewBuilder(p.setup.Force&initproc.ForceMount != 0)
	defer b.Close()
	tree, err := b.MappedOverlay(root, userns)
	if err != nil {
		return -1, &StepError{"mount overlay with mapped owners", unsupported(err)}
	}
	return tree.FD(), nil
}

// privateMounts gives the calling thread a mount namespace of its own.
func privateMounts() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return &StepError{"unshare mount namespace", err}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return &StepError{"make mounts private", err}
	}
	return nil
}

// mappedImages makes an overlay of images; see actAs.
func (p *plan) mappedImages(root *Root, userns int) error {
	if !root.IDMap {
		return p.imageRoot(nil, -1)
	}
	if err := actAs(p.userns); err != nil {
		return &StepError{"act as root of the container", err}
	}
	return p.imageRoot(nil, userns)
}

// actAs makes the thread's files belong to root of the container, with all
// capabilities kept. An overlay works in its upper directory as whoever mounted
// it, and an owner that the mapping does not know cannot own files there: the
// kernel would fall back to a read-only overlay.
func actAs(c *Config) error {
	uid, _ := hostID(c.UIDMappings)
	gid, _ := hostID(c.GIDMappings)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	// These calls return the old id and never an error.
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	return unix.Capset(&header, &data[0])
}

// hostID is the id on the host that id 0 of the container stands for.
func hostID(maps []IDMap) (uint32, bool) {
	for _, m := range maps {
		if m.Container == 0 && m.Size > 0 {
			return m.Host, true
		}
	}
	return 0, false
}

// mappedRoot is what id 0 stands for on the host in the user namespace of a process,
// by the file "uid_map" or "gid_map".
func mappedRoot(pid int, file string) (uint32, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/" + file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var m IDMap
		if _, err := fmt.Sscan(line, &m.Container, &m.Host, &m.Size); err == nil && m.Container == 0 {
			return m.Host, nil
		}
	}
	return 0, errors.New("id 0 is not mapped")
}
