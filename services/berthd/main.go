// Command berthd is three of the engine's four daemons in one program: apid, netd and execd. The build gives it a name
// for each, by hard links, and the name that a process was started by says which of them it is: it runs by itself, under
// its own user and with its own rights, as if the program held nothing else.
//
// They are one file because most of a resting daemon's memory is its program, and most of that is the same in all: the
// runtime, gRPC, protobuf. The pages of one file are in memory once, whoever maps them. imaged has a program of its
// own: what reads images, registries' answers and archives, all of it from strangers, is in no process of root's.
package main

import (
	"berth/internal/daemon"
	"berth/services/apid"
	"berth/services/execd"
	"berth/services/netd"
)

func main() {
	daemon.Main(apid.Spec(), netd.Spec(), execd.Spec())
}
