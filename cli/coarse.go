package main

import (
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// daemonSlack is how late the kernel may wake a daemon's threads (PR_SET_TIMERSLACK, prctl(2)); the systemd units set the
// same with TimerSlackNSec=. Go's runtime has a thread that looks after the others every 20 µs while there is work, which
// the usual slack of 50 µs makes a wake-up every 70 µs: a quarter of the CPU time of the start of a container, and on a
// busy machine each preempts somebody. Nothing in a daemon needs to be woken more precisely than this.
const daemonSlack = time.Millisecond

// startCoarse starts a command with that slack. It is the thread's and inherited by its children, so it is set where the
// fork happens and put back.
func startCoarse(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(daemonSlack), 0, 0, 0) == nil {
		defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // 0: what it was in the beginning
	}
	return cmd.Start()
}
