package netns

import (
	"errors"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// traveller is the one thread of the process that goes into other namespaces,
// for all goroutines. It is made when first needed and kept: making a thread
// costs as much as what it is needed for. No other goroutine ever runs on it.
// Between two errands it is back in the namespace the process was started in,
// lest it keep another alive.
type traveller struct {
	mu      sync.Mutex
	errands chan func() error // nil: there is no thread
	results chan result
}

type result struct {
	err  error
	lost bool // the thread did not come home, and is dead
}

var theTraveller traveller

// aside runs fn on a thread of its own, which fn may leave in any network
// namespace; one at a time.
func aside(fn func() error) error {
	t := &theTraveller
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.errands == nil {
		t.errands, t.results = make(chan func() error), make(chan result)
		if err := startThread(t.errands, t.results); err != nil {
			t.errands = nil
			return err
		}
	}
	t.errands <- fn
	r := <-t.results
	if r.lost {
		t.errands = nil
	}
	return r.err
}

// startThread returns once the thread waits for errands. The process's first
// thread is not taken: it cannot die without taking /proc/self with it. If the
// scheduler offers that one, it is held while another is taken.
func startThread(errands <-chan func() error, results chan<- result) error {
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // until the goroutine ends, and the thread with it
		if unix.Gettid() == unix.Getpid() {
			ready <- startThread(errands, results)
			runtime.UnlockOSThread()
			return
		}
		home, err := Current()
		ready <- err
		if err != nil {
			return
		}
		defer home.Close()
		for fn := range errands {
			err := fn()
			back := netns.Set(netns.NsHandle(home.Fd()))
			results <- result{errors.Join(err, os.NewSyscallError("setns", back)), back != nil}
			if back != nil {
				return
			}
		}
	}()
	return <-ready
}
