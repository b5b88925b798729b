// Package netns makes network namespaces in one process for the use of another.
//
// Creating a network namespace, or entering one, takes CAP_SYS_ADMIN.
// Configuring one takes only CAP_NET_ADMIN, provided somebody hands over a
// socket that was opened inside. So the privileged process runs a [Server], the
// network daemon a [Client], and between them goes a tiny protocol on a
// SOCK_SEQPACKET socket:
//
//	client                                server
//	N id\n… ─────────────────────────►    for each: unshare(CLONE_NEWNET) on a thread
//	                                      of its own, sysctls, lo up, open a socket
//	       ◄───────────────────────────   k  + [namespace fd, rtnetlink fd]…
//	G id   ───────────────────────────►   the same, of a namespace it already holds
//	D id\n…  ─────────────────────────►   close what it holds; unknown ids are fine
//	       ◄───────────────────────────   k
//	L      ───────────────────────────►
//	       ◄───────────────────────────   m id\nid\n…   (any number of these)
//	       ◄───────────────────────────   k
//	                                      n TEXT: no such id   e TEXT: other failure
//
// One packet is one message; requests are answered in order. The server keeps
// one descriptor for each namespace, and that descriptor is what keeps an
// unused namespace alive: nothing is named in the file system, so nothing can
// leak there. When the server's process dies, namespaces with a process inside
// live on (the new server is told of them by [Server.Adopt]) and all others
// vanish, with their links, at once.
package netns
