package monitor

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// reaper waits for children. It only ever waits for those it was told of: the
// launcher waits for helpers of its own.
type reaper struct {
	mu       sync.Mutex
	children map[int]func(unix.WaitStatus)
	signals  chan os.Signal
}

func newReaper() *reaper {
	r := &reaper{children: make(map[int]func(unix.WaitStatus)), signals: make(chan os.Signal, 1)}
	signal.Notify(r.signals, unix.SIGCHLD)
	go func() {
		for range r.signals {
			r.collect()
		}
	}()
	return r
}

// close stops waiting.
func (r *reaper) close() {
	signal.Stop(r.signals)
	close(r.signals)
}

// watch calls done, in a goroutine of its own, when the child pid has ended.
func (r *reaper) watch(pid int, done func(unix.WaitStatus)) {
	r.mu.Lock()
	r.children[pid] = done
	r.mu.Unlock()
	r.try(pid) // it may have ended before it was in the map
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

// try reaps pid if it is one of ours and has ended. The lock is held over the
// wait, so that a pid that the kernel gives out again meets its new entry.
func (r *reaper) try(pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	done, ok := r.children[pid]
	if !ok {
		return false
	}
	var status unix.WaitStatus
	for {
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || got != pid {
			return false
		}
		break
	}
	delete(r.children, pid)
	go done(status)
	return true
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
