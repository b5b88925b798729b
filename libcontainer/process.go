package libcontainer

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process in a container, and a child of the calling process.
type Process struct {
	Pid   int
	PidFD int // -1 before Linux 5.4; Close closes it
	// Console is the master side of the terminal, nil without Command.Terminal.
	// The caller closes it.
	Console *os.File
	// Mounts is the mount namespace, nil without Config.KeepMounts. The caller
	// closes it.
	Mounts *os.File
	// Begun is when the launch began, by [clock.Now], and Trace tells what it
	// spent its time on.
	Begun int64
	Trace []Step
	// Warnings are requests that the host allowed only in part.
	Warnings []string
}

// Step is a step of a launch. Steps of the launcher and of init overlap.
type Step struct {
	Name     string
	Start    time.Duration // since the launch began
	Duration time.Duration
}

// Status is how a process ended.
type Status struct {
	Code   int         // exit status; 128 + Signal if a signal ended it
	Signal unix.Signal // 0 if it exited
	Core   bool        // a core was dumped
	Usage  unix.Rusage // of the process and its waited-for children
}

// Wait blocks until the process has ended and reaps it. It may be called once.
func (p *Process) Wait() (Status, error) {
	var ws unix.WaitStatus
	var status Status
	for {
		_, err := unix.Wait4(p.Pid, &ws, 0, &status.Usage)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return status, os.NewSyscallError("wait4", err)
		}
		status.decode(ws)
		return status, nil
	}
}

// Reap is Wait without blocking, for those who watch many pidfds: done is false
// if the process still runs.
func (p *Process) Reap() (status Status, done bool, err error) {
	var ws unix.WaitStatus
	for {
		pid, err := unix.Wait4(p.Pid, &ws, unix.WNOHANG, &status.Usage)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid == 0 {
			return status, false, os.NewSyscallError("wait4", err)
		}
		status.decode(ws)
		return status, true, nil
	}
}

func (s *Status) decode(ws unix.WaitStatus) {
	if ws.Signaled() {
		s.Signal, s.Code, s.Core = ws.Signal(), 128+int(ws.Signal()), ws.CoreDump()
		return
	}
	s.Code = ws.ExitStatus()
}

// Signal sends a signal. It must not race with Wait unless the process has a
// PidFD: a reaped pid may be another's.
func (p *Process) Signal(sig unix.Signal) error {
	if p.PidFD >= 0 {
		err := unix.PidfdSendSignal(p.PidFD, sig, nil, 0)
		if err != unix.ENOSYS {
			return os.NewSyscallError("pidfd_send_signal", err)
		}
	}
	return os.NewSyscallError("kill", unix.Kill(p.Pid, sig))
}

// Close gives up the pidfd. The process goes on.
func (p *Process) Close() error {
	if p.PidFD < 0 {
		return nil
	}
	fd := p.PidFD
	p.PidFD = -1
	return os.NewSyscallError("close", unix.Close(fd))
}
