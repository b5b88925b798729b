package launch

import (
	"fmt"
	"os"
	"strings"

	"berth/libcontainer"
	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
)

// Peer finds the running container whose namespaces another is to share.
type Peer func(ref string) (pid int, err error)

// namespaces decides where each comes from. The network namespace that execd
// holds goes along as a descriptor and is not named here.
func namespaces(spec *apiv1.ContainerSpec, net *networkv1.Namespace, peer Peer) (libcontainer.Namespaces, error) {
	n := libcontainer.PrivateNamespaces()
	var err error
	if n.PID, err = namespace(n.PID, "pid", "pid", spec.PidMode, peer); err != nil {
		return n, err
	}
	if n.IPC, err = namespace(n.IPC, "ipc", "ipc", ipcMode(spec.IpcMode), peer); err != nil {
		return n, err
	}
	if n.UTS, err = namespace(n.UTS, "uts", "uts", spec.UtsMode, peer); err != nil {
		return n, err
	}
	if n.Cgroup, err = namespace(n.Cgroup, "cgroup", "cgroupns", spec.CgroupnsMode, peer); err != nil {
		return n, err
	}
	switch net.GetKind() {
	case networkv1.Namespace_KIND_HELD:
		n.Net = libcontainer.Namespace{} // joined by descriptor
	case networkv1.Namespace_KIND_HOST:
		n.Net = libcontainer.Namespace{}
	case networkv1.Namespace_KIND_CONTAINER:
		n.Net, err = namespace(n.Net, "net", "network", "container:"+net.Id, peer)
	}
	return n, err
}

// ipcMode maps Docker's words: "shareable" and "none" are private ones here.
func ipcMode(mode string) string {
	if mode == "shareable" || mode == "none" {
		return "private"
	}
	return mode
}

func namespace(private libcontainer.Namespace, kind, field, mode string, peer Peer) (libcontainer.Namespace, error) {
	switch mode {
	case "", "private":
		return private, nil
	case "host":
		return libcontainer.Namespace{}, nil
	}
	ref, ok := strings.CutPrefix(mode, "container:")
	if !ok || ref == "" {
		return private, refuse("NAMESPACE_MODE", "%s mode %q: want private, host or container:NAME", field, mode)
	}
	pid, err := peer(ref)
	if err != nil {
		return private, fmt.Errorf("%s mode %s: %w", field, mode, err)
	}
	return libcontainer.Namespace{Path: fmt.Sprintf("/proc/%d/ns/%s", pid, kind)}, nil
}

// checkModes finds words that are no modes, at creation.
func checkModes(spec *apiv1.ContainerSpec) error {
	for field, mode := range map[string]string{"pid": spec.PidMode, "ipc": ipcMode(spec.IpcMode)} {
		if ref, ok := strings.CutPrefix(mode, "container:"); ok && ref != "" {
			continue
		}
		if mode != "" && mode != "private" && mode != "host" {
			return refuse("NAMESPACE_MODE", "%s mode %q: want private, host or container:NAME", field, mode)
		}
	}
	for field, mode := range map[string]string{"uts": spec.UtsMode, "cgroupns": spec.CgroupnsMode} {
		if mode != "" && mode != "private" && mode != "host" {
			return refuse("NAMESPACE_MODE", "%s mode %q: want private or host", field, mode)
		}
	}
	return nil
}

// hostName is the host's, for those that share its UTS or network namespace.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}
