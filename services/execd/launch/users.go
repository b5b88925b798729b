package launch

import (
	"berth/libcontainer"
	apiv1 "berth/proto/berth/api/v1"
)

// idCount is how many ids a user namespace has: all that an image can name with
// 16 bits.
const idCount = 1 << 16

// PrivateUsers reports whether a container gets a user namespace of its own:
// because it asks for it, or because the engine is set so and the container
// shares nothing with the host that such a namespace could not own.
func (b *Builder) PrivateUsers(spec *apiv1.ContainerSpec) (bool, error) {
	shared := spec.GetSecurity().GetPrivileged() || spec.PidMode != "" && spec.PidMode != "private" ||
		spec.IpcMode == "host" || spec.GetNetwork().GetMode() == "host" || len(spec.Devices) > 0
	switch spec.UsernsMode {
	case "host":
		return false, nil
	case "":
		return b.Defaults.Userns == "private" && !shared, nil
	case "private":
		if shared {
			return false, refuse("USERNS", "a private user namespace excludes privileged containers, devices, and namespaces of the host")
		}
		return true, nil
	}
	return false, refuse("NAMESPACE_MODE", "userns mode %q: want host or private", spec.UsernsMode)
}

// users gives the container its ids.
func users(in *Input, c *libcontainer.Config) {
	if in.IDBase == 0 {
		return
	}
	ids := []libcontainer.IDMap{{Container: 0, Host: in.IDBase, Size: idCount}}
	c.Namespaces.User.Private = true
	c.UIDMappings, c.GIDMappings = ids, ids
}

// mapUsers shows owners of files on the host through the container's ids.
func (s *mountSet) mapUsers() {
	for i := range s.list {
		if s.list[i].Type == "bind" {
			s.list[i].IDMap = true
		}
	}
}
