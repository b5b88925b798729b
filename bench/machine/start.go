package machine

import (
	"os/exec"
	"runtime"
	"time"
)

// Run runs cmd to its end in the account's group. The time is from just before the process exists until it has been
// waited for.
func (a Account) Run(cmd *exec.Cmd) (wall time.Duration, err error) {
	err = a.inside(cmd, func() error {
		began := time.Now()
		err := cmd.Run()
		wall = time.Since(began)
		return err
	})
	return wall, err
}

// Start starts cmd in the account's group.
func (a Account) Start(cmd *exec.Cmd) error { return a.inside(cmd, cmd.Start) }

// inside calls f, which starts cmd, on a thread that may join a control group, so it ends with f.
func (a Account) inside(cmd *exec.Cmd, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := a.Enter(cmd)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
