// Package wire is what execd and the monitor say to one another.
//
// They meet on $RUN/execd/monitor.sock. execd connects and both send hello;
// the monitor then tells each container it has (state, with the descriptors of
// its stdio) and ready. From then on requests and answers are matched by
// sequence number and events come in between:
//
//	execd                                    monitor
//	hello {version}          ───────────►
//	                         ◄───────────    hello {version}
//	                         ◄───────────    state {id, pid, …} + descriptors   (each container)
//	                         ◄───────────    ready
//	launch {config} + fds    ───────────►    clone, wait for exec
//	                         ◄───────────    launch {pid, trace} + descriptors
//	                         ◄───────────    exit {code}                        (file "exit" is written)
//	forget {id}              ───────────►
//
// Stdio of clients does not pass here but through one SOCK_SEQPACKET socket pair
// a client ([Stream]), one end of which goes along with launch, exec or attach.
package wire
