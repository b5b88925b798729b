// Command daemons is the program of all four daemons: it is the one by whose
// name it is called, apid, imaged, netd or execd. `make build` makes these hard
// links of one file.
//
// They are processes that share nothing but this: most of each is the Go
// runtime, gRPC and protobuf, which the kernel keeps in memory once for one file
// and four times for four. None runs another's code beyond initialising its
// packages.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"berth/internal/daemon"
	"berth/internal/faultpoint"
	"berth/services/apid"
	"berth/services/execd"
	"berth/services/imaged"
	"berth/services/netd"
)

func main() {
	name := filepath.Base(os.Args[0])
	var me *daemon.Spec
	for _, d := range []daemon.Spec{apid.Daemon(), imaged.Daemon(), netd.Daemon(), execd.Daemon()} {
		if d.Name == name {
			me = &d
		} else {
			faultpoint.Forget(d.Name)
		}
	}
	if name != "execd" {
		faultpoint.Forget("monitor") // execd and its monitor share code
	}
	if me == nil {
		fmt.Fprintf(os.Stderr, "%s: error: this program is a daemon by the name it is called by: apid, imaged, netd or execd\n", name)
		os.Exit(2)
	}
	daemon.Main(*me)
}
