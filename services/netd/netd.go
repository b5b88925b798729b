// Package netd is the network daemon: it owns the networks, the addresses and
// ports of containers, and the firewall. It runs as its own user with the right
// to administer the network, and cannot even create a network namespace: those
// it is handed by execd. Traffic that flows does so without it.
package netd

import (
	"berth/internal/account"
	"berth/internal/daemon"
)

// Spec is what netd may do, and how it begins.
func Spec() daemon.Spec {
	return daemon.Spec{
		Name:    "netd",
		User:    account.Netd,
		Keep:    []string{"NET_ADMIN", "NET_BIND_SERVICE"},
		RunDir:  true,
		Sockets: []daemon.Socket{{Name: daemon.NetdSocket}},
		Run:     run,
	}
}
