// Package execd is the container daemon: it keeps the records of containers,
// runs them through the monitor, and tells about them. It runs as root, for it
// makes namespaces and cgroups, but without the capabilities that no container
// gets either.
package execd

import "berth/internal/daemon"

// Spec is what execd may do, and how it begins.
func Spec() daemon.Spec {
	return daemon.Spec{
		Name: "execd",
		Lose: []string{
			"SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "SYS_TIME", "MAC_ADMIN", "MAC_OVERRIDE", "SYSLOG", "SYS_PACCT",
		},
		RunDir: true,
		Links:  []string{"monitor"},
		Sockets: []daemon.Socket{
			{Name: daemon.ExecdSocket},
			{Name: daemon.NetnsSocket, Type: "unixpacket"},
		},
		Run: run,
	}
}
