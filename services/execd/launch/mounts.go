package launch

import (
	"errors"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/internal/fault"
	"berth/libcontainer"
	"berth/libcontainer/mount"
	imagev1 "berth/proto/berth/image/v1"

	apiv1 "berth/proto/berth/api/v1"
)

// root translates imaged's recipe.
func root(r *imagev1.MountRecipe, spec *apiv1.ContainerSpec) (libcontainer.Root, error) {
	var out libcontainer.Root
	switch r.GetType() {
	case "overlay":
		out.Lower, out.Images, out.Upper, out.Work = r.Lower, r.Images, r.Upper, r.Work
		if r.Userxattr {
			out.Options = append(out.Options, "userxattr")
		}
		if spec.AutoRemove && r.Upper != "" {
			// The files go with the container: its end need not wait for a sync.
			out.Options = append(out.Options, mount.Volatile)
		}
	case "bind":
		out.Bind = r.Source
	default:
		return out, fault.InvalidArgument.Errorf("ROOTFS", "mount recipe of type %q is not known", r.GetType())
	}
	out.Attr = mount.NoDev
	if spec.GetSecurity().GetPrivileged() {
		out.Attr = 0
	}
	if spec.ReadOnly {
		out.Attr |= mount.ReadOnly
	}
	return out, nil
}

// mountSet collects what is mounted where; a later mount at the same place
// takes the place of an earlier.
type mountSet struct {
	list   []libcontainer.Mount
	points []*apiv1.MountPoint
}

// put adds m, and point, unless nil, as what users are shown.
func (s *mountSet) put(m libcontainer.Mount, point *apiv1.MountPoint) {
	s.list = slices.DeleteFunc(s.list, func(o libcontainer.Mount) bool { return o.Destination == m.Destination })
	s.list = append(s.list, m)
	if point != nil {
		s.points = append(s.points, point)
	}
}

func (s *mountSet) has(target string) bool {
	return slices.ContainsFunc(s.list, func(m libcontainer.Mount) bool { return m.Destination == target })
}

// sorted gives the mounts so that none hides another: parents first, and what
// was first among equals stays so.
func (s *mountSet) sorted() []libcontainer.Mount {
	slices.SortStableFunc(s.list, func(a, b libcontainer.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	return s.list
}

func depth(p string) int { return strings.Count(p, "/") }

// CheckMounts finds what is wrong with the mounts of a request, without
// touching anything.
func CheckMounts(spec *apiv1.ContainerSpec) error {
	seen := make(map[string]bool)
	for _, m := range spec.Mounts {
		target, err := target(m.Target)
		if err != nil {
			return err
		}
		if seen[target] {
			return refuse("MOUNT_TARGET", "two mounts at %s", target)
		}
		seen[target] = true
		if _, err := propagation(m.Propagation); err != nil {
			return err
		}
		switch m.Type {
		case apiv1.MountType_MOUNT_TYPE_BIND:
			if !path.IsAbs(m.Source) || strings.ContainsRune(m.Source, 0) {
				return refuse("MOUNT_SOURCE", "bind source %q is not an absolute path", m.Source)
			}
		case apiv1.MountType_MOUNT_TYPE_TMPFS:
			if m.Source != "" {
				return refuse("MOUNT_SOURCE", "a tmpfs has no source, not %q", m.Source)
			}
			if m.TmpfsSizeBytes < 0 || m.TmpfsMode > 0o7777 {
				return refuse("MOUNT_TMPFS", "tmpfs at %s: size %d or mode %o is not possible", target, m.TmpfsSizeBytes, m.TmpfsMode)
			}
		case apiv1.MountType_MOUNT_TYPE_VOLUME:
		default:
			return refuse("MOUNT_TYPE", "mount at %s has no type", target)
		}
	}
	return nil
}

// target refuses places that would change what the container's confinement
// stands on: the root, and all in /proc and /sys (CVE-2019-19921,
// CVE-2023-27561).
func target(t string) (string, error) {
	if !path.IsAbs(t) || strings.ContainsRune(t, 0) {
		return "", refuse("MOUNT_TARGET", "mount target %q is not an absolute path", t)
	}
	clean := path.Clean(t)
	for _, forbidden := range []string{"/proc", "/sys"} {
		if clean == forbidden || strings.HasPrefix(clean, forbidden+"/") {
			return "", refuse("MOUNT_TARGET", "mount target %s is within %s, where nothing may be mounted", t, forbidden)
		}
	}
	if clean == "/" {
		return "", refuse("MOUNT_TARGET", "mount target %s is the root of the container", t)
	}
	return clean, nil
}

func propagation(p string) (mount.Propagation, error) {
	switch p {
	case "", "private", "rprivate":
		return mount.RPrivate, nil
	case "shared", "rshared", "slave", "rslave":
		return mount.Propagation(p), nil
	}
	return "", refuse("MOUNT_PROPAGATION", "mount propagation %q is not known", p)
}

// user adds what the user and the image asked for. imaged has resolved volumes.
func (s *mountSet) user(spec *apiv1.ContainerSpec, volumes []*imagev1.VolumeMount) error {
	attr := mount.NoDev
	if spec.GetSecurity().GetPrivileged() {
		attr = 0
	}
	asked := make(map[string]*apiv1.MountSpec)
	for _, m := range spec.Mounts {
		t, err := target(m.Target)
		if err != nil {
			return err
		}
		asked[t] = m
		switch m.Type {
		case apiv1.MountType_MOUNT_TYPE_BIND:
			err = s.bind(m, t, attr)
		case apiv1.MountType_MOUNT_TYPE_TMPFS:
			s.tmpfs(m, t)
		}
		if err != nil {
			return err
		}
	}
	for _, v := range volumes {
		t, err := target(v.Target)
		if err != nil {
			return err
		}
		if err := s.volume(v, asked[t], t, attr); err != nil {
			return err
		}
	}
	return nil
}

// makeSource makes the directory of a bind mount, and missing parents, open to any user of the container as Docker's
// are. A thread of its own has the umask for that, so that no mode is changed afterwards, when the path may already
// name something else.
func makeSource(dir string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread and its umask end with this function
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			unix.Umask(0o022)
			err = os.MkdirAll(dir, 0o755)
		}
		done <- err
	}()
	return <-done
}

func (s *mountSet) bind(m *apiv1.MountSpec, target string, attr mount.Attr) error {
	source := path.Clean(m.Source)
	_, err := os.Stat(source)
	if errors.Is(err, os.ErrNotExist) && m.CreateSource {
		err = makeSource(source)
	}
	if errors.Is(err, os.ErrNotExist) {
		return fault.InvalidArgument.Errorf("MOUNT_SOURCE", "bind source %s does not exist", source).With("path", source)
	}
	if err != nil {
		return fault.InvalidArgument.Errorf("MOUNT_SOURCE", "bind source: %w", err).With("path", source)
	}
	prop, err := propagation(m.Propagation)
	if err != nil {
		return err
	}
	if m.ReadOnly {
		attr |= mount.ReadOnly
	}
	s.put(libcontainer.Mount{Type: "bind", Source: source, Destination: target, Attr: attr, Recursive: true, Propagation: prop},
		&apiv1.MountPoint{Type: m.Type, Source: source, Target: target, ReadOnly: m.ReadOnly, Propagation: string(prop)})
	return nil
}

func (s *mountSet) tmpfs(m *apiv1.MountSpec, target string) {
	mode := m.TmpfsMode
	if mode == 0 {
		mode = 0o1777
	}
	options := []string{"mode=" + strconv.FormatUint(uint64(mode), 8)}
	if m.TmpfsSizeBytes > 0 {
		options = append(options, "size="+strconv.FormatInt(m.TmpfsSizeBytes, 10))
	}
	attr := mount.NoSuid | mount.NoDev
	if m.ReadOnly {
		attr |= mount.ReadOnly
	}
	s.put(libcontainer.Mount{Type: "tmpfs", Destination: target, Options: options, Attr: attr},
		&apiv1.MountPoint{Type: m.Type, Target: target, ReadOnly: m.ReadOnly})
}

func (s *mountSet) volume(v *imagev1.VolumeMount, m *apiv1.MountSpec, target string, attr mount.Attr) error {
	prop, err := propagation(m.GetPropagation())
	if err != nil {
		return err
	}
	if m.GetReadOnly() {
		attr |= mount.ReadOnly
	}
	s.put(libcontainer.Mount{Type: "bind", Source: v.Source, Destination: target, Attr: attr, Propagation: prop},
		&apiv1.MountPoint{
			Type: apiv1.MountType_MOUNT_TYPE_VOLUME, Name: v.Name, Source: v.Source, Target: target,
			ReadOnly: m.GetReadOnly(), Propagation: string(prop),
		})
	return nil
}
