// Package netlink speaks rtnetlink(7) by hand, for the few requests that stand
// between a container and its network.
//
// A [Batch] collects requests; [Conn.Do] hands them to the kernel in one
// sendmsg(2), and the kernel works through them in order before that call
// returns. Creating a veth pair whose far end is born inside the container's
// namespace and whose near end is born as a port of a bridge is one message
// here; with a general library it is a create, a lookup, a move (which waits
// for an RCU grace period, some 17 ms) and a second socket.
//
// The package knows links, addresses, routes and neighbours as numbers and
// names. It is not a full binding: whatever is cold (listing, diagnosis, exotic
// link types) is better served by a general library.
package netlink
