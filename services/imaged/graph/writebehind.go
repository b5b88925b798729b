package graph

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// behindPause is between two rounds of writing behind: short enough that little is left for the sync at a layer's end,
// long enough that small layers are never disturbed, and that a busy file system commits its journal a few times a
// second at most.
const behindPause = 200 * time.Millisecond

// WriteBehind has a file system written out while layers are being unpacked to it. Left alone, the kernel would begin
// when the first layer is synced, or half a minute later; the disk would idle while the processors work, and they while
// a pull waits for the disk. Its zero value is ready; one serves all that is on a file system.
//
// It promises nothing: what has to be on the disk must be synced by whoever says that it is, on the descriptor that he
// had open all the time, which also tells him of errors that happened meanwhile.
type WriteBehind struct {
	mu    sync.Mutex
	users int
	stop  chan struct{}
}

// Begin goes on writing dir's file system out until end is called; for several at once it is the same work.
func (w *WriteBehind) Begin(dir *os.File) (end func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.users == 0 {
		// Opened, not duplicated: an error of the disk is told to each open file once, and dir's owner is to hear of it.
		fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, os.NewSyscallError("openat", err)
		}
		w.stop = make(chan struct{})
		go writeBehind(fd, w.stop)
	}
	w.users++
	return w.leave, nil
}

func (w *WriteBehind) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.users--; w.users == 0 {
		close(w.stop)
	}
}

func writeBehind(fd int, stop <-chan struct{}) {
	defer unix.Close(fd)
	for {
		select {
		case <-stop:
			return
		case <-time.After(behindPause):
			_ = unix.Syncfs(fd)
		}
	}
}
