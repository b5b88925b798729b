package libcontainer

import (
	"maps"
	"slices"
	"strings"

	"berth/libcontainer/initproc"
	"berth/libcontainer/ns"
)

// sysctls checks the names and turns them into paths. Only values that belong to
// a namespace may be set, and only if the container does not share it with the
// host. Names are taken apart, not compared by prefix: "net.../../kernel" must
// not pass for one of net (CVE-2022-0811).
func (c *Config) sysctls(own func(ns.Kind) bool) ([]initproc.Sysctl, error) {
	var list []initproc.Sysctl
	for _, name := range slices.Sorted(maps.Keys(c.Sysctls)) {
		value := c.Sysctls[name]
		parts := strings.Split(name, ".")
		if len(parts) < 2 || slices.ContainsFunc(parts, badSysctlPart) {
			return nil, refuse("sysctl", "%q is not a name like net.ipv4.ip_forward", name)
		}
		if strings.ContainsAny(value, "\n\x00") {
			return nil, refuse("sysctl "+name, "the value has more than one line")
		}
		kind := sysctlNamespace(parts)
		if kind == "" {
			return nil, refuse("sysctl "+name, "belongs to the host, not to a container")
		}
		if !own(kind) {
			return nil, refuse("sysctl "+name, "the container shares its %s namespace with the host", kind)
		}
		list = append(list, initproc.Sysctl{Path: strings.Join(parts, "/"), Value: value})
	}
	return list, nil
}

// badSysctlPart reports whether a part of a name is not a plain word. Interface
// names have no other characters unless they are VLANs (eth0.1), which cannot be
// told from two parts.
func badSysctlPart(part string) bool {
	if part == "" {
		return true
	}
	for _, c := range part {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return true
		}
	}
	return false
}

// ipcSysctls are the values of kernel.* that belong to an IPC namespace
// (ipc/ipc_sysctl.c).
var ipcSysctls = []string{
	"msgmax", "msgmnb", "msgmni", "msg_next_id", "sem", "sem_next_id",
	"shmall", "shmmax", "shmmni", "shm_next_id", "shm_rmid_forced",
}

// sysctlNamespace is the kind of namespace that a value belongs to, "" if it
// belongs to none.
func sysctlNamespace(parts []string) ns.Kind {
	switch {
	case parts[0] == "net":
		return ns.Net
	case parts[0] == "kernel" && len(parts) == 2 && slices.Contains(ipcSysctls, parts[1]):
		return ns.IPC
	case parts[0] == "fs" && len(parts) == 3 && parts[1] == "mqueue":
		return ns.IPC
	}
	return ""
}
