// Package keeper is execd's side of the monitor: it starts the monitor, asks it
// for things, and keeps a second copy of every container's descriptors.
//
// The second copy is what containers survive a killed monitor with: a pipe with
// a reader left neither breaks nor loses what is in it. The keeper notices the
// end of the connection at once, starts a new monitor and hands the containers
// over. It also makes execd a child subreaper, so that orphans of a monitor
// that execd started become children of execd, which can then wait for them.
package keeper
