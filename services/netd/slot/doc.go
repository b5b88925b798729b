// Package slot makes places in a network: a namespace with an interface inside,
// its other end a port of the network's bridge, an address, a default route, and
// the firewall's leave to send. A container takes a slot that is all there; what
// its id is the slot never knows, so slots can be made before containers.
//
//	host                                    namespace (held by execd)
//	  berth0 ── bv1f0c9a3b7c02e5 ═════════ eth0  10.88.0.2/16
//	            name: prefix + slot id        MAC made from the address
//
// A [Maker] makes and restores slots, a [Pool] keeps a few ready, a [Reaper]
// takes used ones apart in the background: deleting an interface waits for RCU
// grace periods, some 20 ms, with the kernel's network lock held.
package slot
