// Package portmap says who owns which port of the host.
//
// Traffic to a published port never reaches a socket of the host: it is
// translated before. So nothing would stop a host program from listening on a
// published port (and getting nothing), nor netd from publishing a port that a
// program listens on (and taking its traffic). A [Table] therefore binds, but
// does not serve, a socket for each port; the kernel then says no to whoever
// comes second. The sockets carry no traffic, and nothing stops when netd and
// they are away.
package portmap
