package keeper

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// kin are the processes that are, or may become, children of execd: the monitor
// it started, and that one's orphans. They are waited for one by one, so that
// nobody else's children are.
type kin struct {
	mu      sync.Mutex
	pids    map[int]func(status int)
	signals chan os.Signal
	done    chan struct{}
}

// open makes this process the reaper of its descendants (PR_SET_CHILD_SUBREAPER,
// Linux 3.4).
func (k *kin) open() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_CHILD_SUBREAPER", err)
	}
	k.pids = make(map[int]func(int))
	k.signals = make(chan os.Signal, 1)
	k.done = make(chan struct{})
	signal.Notify(k.signals, unix.SIGCHLD)
	go func() {
		defer close(k.done)
		for range k.signals {
			k.collect()
		}
	}()
	return nil
}

func (k *kin) close() {
	signal.Stop(k.signals)
	close(k.signals)
	<-k.done
}

// expect reaps pid when it ends, if it is a child then, and calls ended with its
// wait status. ended may be nil.
func (k *kin) expect(pid int, ended func(status int)) {
	k.mu.Lock()
	k.pids[pid] = ended
	k.mu.Unlock()
	k.collect()
}

func (k *kin) collect() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for pid, ended := range k.pids {
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		switch {
		case err == unix.ECHILD && unix.Kill(pid, 0) == unix.ESRCH:
			delete(k.pids, pid) // another has reaped it
		case err == nil && got == pid:
			delete(k.pids, pid)
			if ended != nil {
				go ended(int(status))
			}
		}
	}
}
