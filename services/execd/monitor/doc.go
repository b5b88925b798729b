// Package monitor is the parent of every container.
//
// One monitor serves all containers of an engine. It starts their processes,
// holds the ends of their pipes and terminals, writes their logs, hands output
// to attached clients, waits for their end and keeps the exit status until
// execd has recorded it. It outlives execd; while it lives no status and no
// output is lost, whatever happens to the daemons.
//
// It is small on purpose (no gRPC, no store, no knowledge of images or names)
// and holds no memory for an idle container but its descriptors and the stacks
// of two or three goroutines. Nothing one container or client does can make it
// wait for long on behalf of another: a process's output waits only for its
// own log, and a client that does not read is sent to the log.
//
// What it holds, execd holds a second time. When the monitor dies execd starts
// another, which adopts the containers (see package wire).
package monitor
