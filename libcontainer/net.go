package libcontainer

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"berth/libcontainer/clock"
	"berth/libcontainer/initproc"
	"berth/libcontainer/netns"
)

// A private network namespace takes the kernel longer to make than all others
// together. With a processor to spare it is made while init starts, in a thread of
// package netns, and handed to init, which joins it before it mounts anything.

// madeNet is a network namespace with lo up, or why there is none.
type madeNet struct {
	ns         *os.File
	begin, end int64 // clock.Now
	err        error
}

// lateMessage is what the descriptor travels with: a message is never empty.
var lateMessage = []byte("net")

// makeNet begins to make the network namespace, if that is not to be done by the
// clone.
func (p *plan) makeNet() {
	if p.flags&unix.CLONE_NEWNET == 0 || p.launcher.netByClone || runtime.NumCPU() == 1 {
		return
	}
	p.flags &^= unix.CLONE_NEWNET
	p.setup.LateNet, p.setup.Loopback = true, false
	ready := make(chan madeNet, 1)
	p.net = ready
	go func() {
		made := madeNet{begin: clock.Now()}
		made.ns, made.err = netns.New(nil)
		made.end = clock.Now()
		ready <- made
	}()
}

// sendNet gives init the network namespace as soon as it is there.
func (p *plan) sendNet(sock int, t *tracer) error {
	if p.net == nil {
		return nil
	}
	made := <-p.net
	p.net = nil
	if made.err != nil {
		return &StepError{"make net namespace", made.err}
	}
	defer made.ns.Close()
	t.add([]initproc.Step{{Name: "make net namespace", Start: made.begin, End: made.end}})
	if err := initproc.Send(sock, lateMessage, int(made.ns.Fd())); err != nil && err != unix.EPIPE {
		return &StepError{"send net namespace", err}
	}
	return nil
}
