package flags

import (
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"berth/cli/apiv1"
)

func (c *Container) storage() error {
	for _, v := range c.volumes {
		m, err := Volume(v)
		if err != nil {
			return err
		}
		c.spec.Mounts = append(c.spec.Mounts, m)
	}
	for _, v := range c.mounts {
		m, err := Mount(v)
		if err != nil {
			return err
		}
		c.spec.Mounts = append(c.spec.Mounts, m)
	}
	for _, v := range c.tmpfs {
		m, err := Tmpfs(v)
		if err != nil {
			return err
		}
		c.spec.Mounts = append(c.spec.Mounts, m)
	}
	seen := map[string]bool{}
	for _, m := range c.spec.Mounts {
		t := path.Clean(m.Target)
		if seen[t] {
			return fmt.Errorf("two mounts have the target %s", t)
		}
		seen[t] = true
	}
	return nil
}

// Volume reads -v: TARGET, SOURCE:TARGET or SOURCE:TARGET:OPTIONS. A source that starts with "/", "./" or "../" is a
// host path, made when absent; anything else names a volume.
func Volume(s string) (*apiv1.MountSpec, error) {
	parts := strings.Split(s, ":")
	m := &apiv1.MountSpec{Type: apiv1.MountType_MOUNT_TYPE_VOLUME}
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2:
		m.Source, m.Target = parts[0], parts[1]
	case 3:
		m.Source, m.Target = parts[0], parts[1]
		if err := volumeOptions(m, s, parts[2]); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("--volume: %q is not [SOURCE:]TARGET[:OPTIONS]", s)
	}
	if len(parts) > 1 && m.Source == "" {
		return nil, fmt.Errorf("--volume: no source in %q", s)
	}
	if strings.HasPrefix(m.Source, "/") || strings.HasPrefix(m.Source, "./") || strings.HasPrefix(m.Source, "../") || m.Source == "." || m.Source == ".." {
		abs, err := filepath.Abs(m.Source)
		if err != nil {
			return nil, fmt.Errorf("--volume: %w", err)
		}
		m.Type, m.Source, m.CreateSource = apiv1.MountType_MOUNT_TYPE_BIND, abs, true
	}
	return m, target("--volume", s, m)
}

func volumeOptions(m *apiv1.MountSpec, whole, list string) error {
	for o := range strings.SplitSeq(list, ",") {
		switch o {
		case "ro", "readonly":
			m.ReadOnly = true
		case "rw":
		case "private", "rprivate", "shared", "rshared", "slave", "rslave":
			m.Propagation = o
		case "nocopy":
			m.NoCopy = true
		case "z", "Z", "cached", "delegated", "consistent", "":
			// SELinux relabelling needs SELinux; the consistency modes are for other systems.
		default:
			return fmt.Errorf("--volume: unknown option %q in %q", o, whole)
		}
	}
	return nil
}

func target(flag, whole string, m *apiv1.MountSpec) error {
	if !path.IsAbs(m.Target) {
		return fmt.Errorf("%s: target %q in %q is not an absolute path", flag, m.Target, whole)
	}
	if path.Clean(m.Target) == "/" {
		return fmt.Errorf("%s: target / in %q would cover the whole root file system", flag, whole)
	}
	return nil
}

// Mount reads --mount type=…,source=…,target=….
func Mount(s string) (*apiv1.MountSpec, error) {
	m := &apiv1.MountSpec{Type: apiv1.MountType_MOUNT_TYPE_VOLUME}
	for f := range strings.SplitSeq(s, ",") {
		k, v, has := strings.Cut(f, "=")
		switch strings.ToLower(k) {
		case "type":
			switch v {
			case "bind":
				m.Type = apiv1.MountType_MOUNT_TYPE_BIND
			case "volume":
				m.Type = apiv1.MountType_MOUNT_TYPE_VOLUME
			case "tmpfs":
				m.Type = apiv1.MountType_MOUNT_TYPE_TMPFS
			default:
				return nil, fmt.Errorf("--mount: type %q in %q is not bind, volume or tmpfs", v, s)
			}
		case "source", "src":
			m.Source = v
		case "target", "dst", "destination":
			m.Target = v
		case "readonly", "ro":
			m.ReadOnly = !has || v == "true" || v == "1"
		case "bind-propagation":
			m.Propagation = v
		case "volume-nocopy":
			m.NoCopy = !has || v == "true" || v == "1"
		case "tmpfs-size":
			n, err := Size(v)
			if err != nil {
				return nil, fmt.Errorf("--mount: tmpfs-size: %w", err)
			}
			m.TmpfsSizeBytes = n
		case "tmpfs-mode":
			n, err := strconv.ParseUint(v, 8, 12)
			if err != nil {
				return nil, fmt.Errorf("--mount: tmpfs-mode %q is not an octal mode", v)
			}
			m.TmpfsMode = uint32(n)
		default:
			return nil, fmt.Errorf("--mount: unknown key %q in %q", k, s)
		}
	}
	switch m.Type {
	case apiv1.MountType_MOUNT_TYPE_BIND:
		if m.Source == "" {
			return nil, fmt.Errorf("--mount: no source in %q", s)
		}
		abs, err := filepath.Abs(m.Source)
		if err != nil {
			return nil, fmt.Errorf("--mount: %w", err)
		}
		m.Source = abs
	case apiv1.MountType_MOUNT_TYPE_TMPFS:
		if m.Source != "" {
			return nil, fmt.Errorf("--mount: a tmpfs has no source: %q", s)
		}
	}
	return m, target("--mount", s, m)
}

// Tmpfs reads --tmpfs TARGET[:OPTIONS].
func Tmpfs(s string) (*apiv1.MountSpec, error) {
	t, options, _ := strings.Cut(s, ":")
	m := &apiv1.MountSpec{Type: apiv1.MountType_MOUNT_TYPE_TMPFS, Target: t}
	for o := range strings.SplitSeq(options, ",") {
		k, v, _ := strings.Cut(o, "=")
		switch k {
		case "size":
			n, err := Size(v)
			if err != nil {
				return nil, fmt.Errorf("--tmpfs: size: %w", err)
			}
			m.TmpfsSizeBytes = n
		case "mode":
			n, err := strconv.ParseUint(v, 8, 12)
			if err != nil {
				return nil, fmt.Errorf("--tmpfs: mode %q is not octal", v)
			}
			m.TmpfsMode = uint32(n)
		case "ro":
			m.ReadOnly = true
		case "", "rw", "nosuid", "nodev": // always so
		default:
			return nil, fmt.Errorf("--tmpfs: unknown option %q in %q", o, s)
		}
	}
	return m, target("--tmpfs", s, m)
}
