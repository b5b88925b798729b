package launch

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth/internal/fault"
	"berth/libcontainer"
	"berth/libcontainer/cgroup/devices"
	apiv1 "berth/proto/berth/api/v1"
)

// nodes are the device nodes of a container and what its cgroup lets it do
// with them; nil for the default policy.
func nodes(spec *apiv1.ContainerSpec) ([]libcontainer.Device, *devices.Policy, error) {
	list := libcontainer.DefaultDevices()
	if spec.GetSecurity().GetPrivileged() {
		all, err := hostNodes("/dev", "/dev")
		if err != nil {
			return nil, nil, fault.Internal.Errorf("DEVICES", "list host devices: %w", err)
		}
		for _, d := range all {
			list = putDevice(list, d)
		}
		return list, &devices.Policy{AllowAll: true}, nil
	}
	if len(spec.Devices) == 0 {
		return list, nil, nil
	}
	policy := devices.Default()
	for _, s := range spec.Devices {
		found, access, err := userDevice(s)
		if err != nil {
			return nil, nil, err
		}
		for _, d := range found {
			list = putDevice(list, d)
			policy = policy.With(devices.Rule{Type: byte(d.Type), Major: int64(d.Major), Minor: int64(d.Minor), Access: access})
		}
	}
	return list, &policy, nil
}

// putDevice adds d; a later node at the same path takes the place of an earlier.
func putDevice(list []libcontainer.Device, d libcontainer.Device) []libcontainer.Device {
	for i := range list {
		if list[i].Path == d.Path {
			list[i] = d
			return list
		}
	}
	return append(list, d)
}

// userDevice reads "/dev/x[:/dev/y[:rwm]]". A folder stands for all devices in it.
func userDevice(s string) ([]libcontainer.Device, devices.Access, error) {
	parts := strings.Split(s, ":")
	source, target, access := parts[0], parts[0], "rwm"
	switch {
	case len(parts) > 3:
		return nil, 0, refuse("DEVICE", "device %q: want PATH[:TARGET[:rwm]]", s)
	case len(parts) == 3:
		target, access = parts[1], parts[2]
	case len(parts) == 2:
		// Docker: "/dev/x:rw" names the access, "/dev/x:/dev/y" the target.
		if path.IsAbs(parts[1]) {
			target = parts[1]
		} else {
			access = parts[1]
		}
	}
	a, err := devices.ParseAccess(access)
	if err != nil || !path.IsAbs(source) || !path.IsAbs(target) {
		return nil, 0, refuse("DEVICE", "device %q: want PATH[:TARGET[:rwm]]", s)
	}
	if clean := path.Clean(target); !strings.HasPrefix(clean, "/dev/") {
		return nil, 0, refuse("DEVICE", "device %q: the target is not in /dev", s)
	}
	st, err := os.Stat(source)
	if err != nil {
		return nil, 0, refuse("DEVICE", "device %q: %w", s, err)
	}
	if st.IsDir() {
		list, err := hostNodes(source, path.Clean(target))
		if err != nil {
			return nil, 0, refuse("DEVICE", "device %q: %w", s, err)
		}
		return list, a, nil
	}
	d, ok, err := node(source, path.Clean(target))
	if err != nil || !ok {
		return nil, 0, refuse("DEVICE", "%s is not a device", source)
	}
	return []libcontainer.Device{d}, a, nil
}

// node describes the device at source; false if it is none.
func node(source, target string) (libcontainer.Device, bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil {
		return libcontainer.Device{}, false, &os.PathError{Op: "stat", Path: source, Err: err}
	}
	d := libcontainer.Device{
		Path: target, Source: source, Mode: st.Mode & 0o777, UID: st.Uid, GID: st.Gid,
		Major: unix.Major(uint64(st.Rdev)), Minor: unix.Minor(uint64(st.Rdev)),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = 'c'
	case unix.S_IFBLK:
		d.Type = 'b'
	default:
		return d, false, nil
	}
	return d, true, nil
}

// own are the places in /dev that a container has for itself.
var own = map[string]bool{
	"/dev/pts": true, "/dev/shm": true, "/dev/mqueue": true, "/dev/fd": true, "/dev/console": true,
	"/dev/ptmx": true, "/dev/tty": true,
}

// hostNodes finds the devices below dir on the host, to appear below target.
func hostNodes(dir, target string) ([]libcontainer.Device, error) {
	var list []libcontainer.Device
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if own[p] {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if e.Type()&fs.ModeDevice == 0 {
			return nil
		}
		d, ok, err := node(p, target+strings.TrimPrefix(p, dir))
		if err == nil && ok {
			list = append(list, d)
		}
		return nil
	})
	return list, err
}
