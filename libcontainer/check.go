package libcontainer

import (
	"path"
	"slices"
	"strings"

	"berth/libcontainer/mount"
)

// check refuses what cannot be, before anything is made.
func (c *Config) check() error {
	if (c.Root.Bind == "") == (len(c.Root.Lower) == 0) {
		return refuse("root", "needs either a directory or layers")
	}
	if (c.Root.Upper == "") != (c.Root.Work == "") {
		return refuse("root", "upper and work directory go together")
	}
	if c.Root.Images && len(c.Root.Lower) == 0 {
		return refuse("root", "needs images")
	}
	for _, dir := range append([]string{c.Root.Bind, c.Root.Upper, c.Root.Work}, c.Root.Lower...) {
		if dir != "" && !path.IsAbs(dir) {
			return refuse("root", "%q is not an absolute path", dir)
		}
	}
	for i := range c.Mounts {
		if err := checkMount(&c.Mounts[i]); err != nil {
			return err
		}
	}
	for _, d := range c.Devices {
		if !path.IsAbs(d.Path) || !strings.ContainsRune("cbp", d.Type) {
			return refuse("device", "%q of type %q", d.Path, d.Type)
		}
	}
	if len(c.Hostname) > 64 || len(c.Domainname) > 64 { // __NEW_UTS_LEN
		return refuse("hostname", "longer than 64 bytes")
	}
	if err := c.checkNamespaces(); err != nil {
		return err
	}
	return checkCommand(&c.Command)
}

func checkMount(m *Mount) error {
	if m.Type == "" || !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/" {
		return refuse("mount", "%q on %q", m.Type, m.Destination)
	}
	if m.Type == "bind" && !path.IsAbs(m.Source) {
		return refuse("mount", "source %q is not an absolute path", m.Source)
	}
	for _, option := range m.Options {
		// A comma would be the end of one option and the beginning of another.
		if strings.ContainsAny(option, ",\x00") {
			return refuse("mount", "option %q of %s", option, m.Type)
		}
	}
	switch m.Propagation {
	case mount.Private, mount.Shared, mount.Slave, mount.RShared, mount.RSlave, mount.RPrivate:
		return nil
	}
	return refuse("mount", "unknown propagation %q", m.Propagation)
}

// maxMappings is the most lines the kernel takes in uid_map
// (UID_GID_MAP_MAX_EXTENTS; 5 before Linux 4.15).
const maxMappings = 340

func (c *Config) checkNamespaces() error {
	if len(c.UIDMappings) > maxMappings || len(c.GIDMappings) > maxMappings {
		return refuse("mappings", "more than %d", maxMappings)
	}
	if c.Namespaces.User.Private != (len(c.UIDMappings) > 0 && len(c.GIDMappings) > 0) {
		return refuse("namespaces", "a private user namespace needs mappings of users and groups, and they need it")
	}
	if c.Namespaces.User.Private {
		_, uid := hostID(c.UIDMappings)
		_, gid := hostID(c.GIDMappings)
		if !uid || !gid {
			return refuse("mappings", "id 0 of the container has to be mapped")
		}
	}
	if c.Hostname != "" && c.Namespaces.UTS == (Namespace{}) {
		return refuse("hostname", "the container shares its uts namespace with the host")
	}
	return nil
}

// maxArgs is the most that arguments and environment may be together, and
// maxArg each of them: execve(2), 6 MiB and 128 KiB with default stack limits.
const (
	maxArgs = 6 << 20
	maxArg  = 128 << 10
)

func checkCommand(c *Command) error {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return refuse("command", "is empty")
	}
	total := 0
	for _, s := range slices.Concat(c.Args, c.Env) {
		if strings.IndexByte(s, 0) >= 0 {
			return refuse("command", "an argument or variable contains a NUL byte")
		}
		if total += len(s) + 1; len(s) >= maxArg || total > maxArgs {
			return refuse("command", "arguments and environment are larger than the kernel takes")
		}
	}
	if len(c.Seccomp)%8 != 0 {
		return refuse("seccomp", "not an array of struct sock_filter")
	}
	if c.Cwd != "" && !path.IsAbs(c.Cwd) {
		return refuse("working directory", "%q is not an absolute path", c.Cwd)
	}
	return nil
}
