package monitor

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// reaper waits for children. It only ever waits for those it was told of: the
// launcher waits for helpers of its own.
//
// A process descriptor tells of the end by way of the poller, a tenth of a millisecond before the
// signal has gone from the thread that happens to get it through the runtime's own to ours. So the
// signal is listened to only once there is a child without one (before Linux 5.3), and until then the
// kernel does not even send it: it would take the very thread that waits in the poller through the
// runtime's handler first.
type reaper struct {
	mu       sync.Mutex
	children map[int]func(unix.WaitStatus)
	signals  chan os.Signal
	listen   sync.Once
}

func newReaper() *reaper {
	silenceChildren()
	return &reaper{children: make(map[int]func(unix.WaitStatus)), signals: make(chan os.Signal, 1)}
}

// watch calls done, in a goroutine of its own, when the child pid has ended. pidfd may be nil.
func (r *reaper) watch(pid int, pidfd *os.File, done func(unix.WaitStatus)) {
	r.mu.Lock()
	r.children[pid] = done
	r.mu.Unlock()
	go func() {
		if pidfd == nil || !r.poll(pid, pidfd) {
			r.listen.Do(r.listenToSignals)
			r.try(pid) // it may have ended before
		}
	}()
}

// poll waits for the end of pid and handles it; false if that cannot be done.
func (r *reaper) poll(pid int, pidfd *os.File) bool {
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return false
	}
	var handle func()
	err = rc.Read(func(uintptr) bool {
		handle = r.take(pid)
		return handle != nil
	})
	if err != nil {
		return false
	}
	handle()
	return true
}

func (r *reaper) listenToSignals() {
	signal.Notify(r.signals, unix.SIGCHLD)
	hearChildren()
	go func() {
		for range r.signals {
			r.collect()
		}
	}()
}

// collect reaps every known child that has ended. One SIGCHLD may stand for
// many.
func (r *reaper) collect() {
	for {
		pid := peek()
		if pid <= 0 {
			return
		}
		if !r.try(pid) {
			// A child of the launcher is in the way: ask for each of ours.
			r.sweep()
			return
		}
	}
}

// peek is the pid of some child that has ended, without reaping it.
func peek() int {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0
		}
		return siginfoPid(&info)
	}
}

func (r *reaper) sweep() {
	r.mu.Lock()
	pids := make([]int, 0, len(r.children))
	for pid := range r.children {
		pids = append(pids, pid)
	}
	r.mu.Unlock()
	for _, pid := range pids {
		r.try(pid)
	}
}

// try handles the end of pid in a goroutine of its own, if it is one of ours and has ended.
func (r *reaper) try(pid int) bool {
	handle := r.take(pid)
	if handle == nil {
		return false
	}
	go handle()
	return true
}

// take reaps pid if it is one of ours and has ended, and gives what is to be done then. The lock is
// held over the wait, so that a pid that the kernel gives out again meets its new entry.
func (r *reaper) take(pid int) (handle func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done, ok := r.children[pid]
	if !ok {
		return nil
	}
	var status unix.WaitStatus
	for {
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || got != pid {
			return nil
		}
		break
	}
	delete(r.children, pid)
	return func() { done(status) }
}

// exitCode is what a shell would say.
func exitCode(s unix.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// kill signals a child that has not been reaped, so that the pid is surely its.
func (r *reaper) kill(pid int, sig unix.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.children[pid]; !ok {
		return unix.ESRCH
	}
	return unix.Kill(pid, sig)
}
