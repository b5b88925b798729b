package monitor

import (
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/services/execd/logfile"
	"berth/services/execd/monitor/wire"
)

// adopt takes over a container from execd after another monitor was killed.
// The process is not a child of ours: see watchAdopted for its exit status.
// Exec sessions are not adopted; their processes go on without us.
func (m *Monitor) adopt(st *wire.State, fds []int) error {
	proc := &process{
		target:  wire.Target{ID: st.ID},
		state:   *st,
		killAll: st.KillAll,
		execs:   make(map[string]*process),
		reaped:  make(chan int, 1),
	}
	proc.state.Execs = nil
	files, stdin, stdout, stderr, terminal := takeHeld(st.Held, fds)
	proc.files = files
	s := &stdio{stdin: stdin, stdinOnce: st.Stdio.StdinOnce, first: longAgo}
	switch {
	case terminal != nil:
		s.setTerminal(terminal)
	default:
		if stdout != nil {
			s.outputs = append(s.outputs, output{stdout, wire.KindStdout, logfile.Stdout})
		}
		if stderr != nil {
			s.outputs = append(s.outputs, output{stderr, wire.KindStderr, logfile.Stderr})
		}
	}
	if err := m.reserve(proc); err != nil {
		s.abandon()
		return err
	}
	var err error
	if st.Log.Dir != "" {
		if s.log, err = logfile.Create(st.Log.Dir, st.Log.MaxBytes, st.Log.MaxFiles); err != nil {
			// Better without a log than without the container.
			m.log.Printf("continue log of %.12s: %v", st.ID, err)
			err = nil
		}
	}
	s.onStdinClosed = func() { m.tell(&wire.Message{Op: wire.OpStdinClosed, Target: &proc.target}) }
	m.mu.Lock()
	proc.io = s
	m.mu.Unlock()
	s.pump()
	go m.watchAdopted(proc)
	return nil
}

// lost is what is said of an exit that nobody could wait for.
const lost = "exit status lost: monitor was killed"

// statusWait is how long to look for a status after the end.
const statusWait = time.Second

// watchAdopted waits for the end of a process that is no child. Its status is
// known to whoever reaps it, its new parent: execd, if that had started the
// monitor that died, and execd tells; otherwise process 1, and then the kernel
// tells by the pidfd, from Linux 6.15 on.
func (m *Monitor) watchAdopted(proc *process) {
	waitGone(proc.files.pidfd, proc.state.Pid)
	deadline := time.NewTimer(statusWait)
	defer deadline.Stop()
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		select {
		case s := <-proc.reaped:
			m.ended(proc, exitCode(unix.WaitStatus(s)), "")
			return
		case <-retry.C:
			if s, err := pidfdStatus(proc.files.pidfd); err == nil {
				m.ended(proc, exitCode(s), "")
				return
			}
		case <-deadline.C:
			m.ended(proc, 255, lost)
			return
		}
	}
}

func (m *Monitor) reapedByExecd(e *wire.Exit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.containers[e.ID]; p != nil && p.reaped != nil {
		select {
		case p.reaped <- *e.Status:
		default:
		}
	}
}

// waitGone blocks until the process has ended. A pidfd is readable then
// (pidfd_open(2)); without one the pid is asked for, which another process may
// have taken only after a whole round of pids.
func waitGone(pidfd *os.File, pid int) {
	if pidfd != nil {
		if rc, err := pidfd.SyscallConn(); err == nil {
			err = rc.Read(func(fd uintptr) bool {
				p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				n, err := unix.Poll(p, 0)
				return n > 0 || (err != nil && err != unix.EINTR)
			})
			if err == nil {
				return
			}
		}
	}
	for unix.Kill(pid, 0) != unix.ESRCH {
		time.Sleep(200 * time.Millisecond)
	}
}

// pidfdInfo is the first published form of struct pidfd_info (linux/pidfd.h).
type pidfdInfo struct {
	mask     uint64
	cgroupid uint64
	pid      uint32
	tgid     uint32
	ppid     uint32
	ids      [8]uint32
	exitCode int32
}

const (
	pidfdInfoExit = 1 << 3
	// pidfdGetInfo is _IOWR(0xFF, 11, struct pidfd_info).
	pidfdGetInfo = 3<<30 | unsafe.Sizeof(pidfdInfo{})<<16 | 0xFF<<8 | 11
)

// pidfdStatus is the wait status of a process that has been reaped by somebody
// (Linux 6.15).
func pidfdStatus(pidfd *os.File) (unix.WaitStatus, error) {
	if pidfd == nil {
		return 0, os.ErrInvalid
	}
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return 0, err
	}
	info := pidfdInfo{mask: pidfdInfoExit}
	var errno syscall.Errno
	err = rc.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	})
	switch {
	case err != nil:
		return 0, err
	case errno != 0:
		return 0, os.NewSyscallError("ioctl PIDFD_GET_INFO", errno)
	case info.mask&pidfdInfoExit == 0:
		return 0, fmt.Errorf("not reaped yet")
	}
	return unix.WaitStatus(info.exitCode), nil
}
