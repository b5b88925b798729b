// Command berth-init is the first process of a container until it becomes the
// user's command. It is started by package libcontainer and by nothing else;
// package initproc says what it does.
package main

import "berth/libcontainer/initproc"

// An init function, not main: initproc.Main says why.
func init() { initproc.Main() }

func main() {}
