package logfile

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher wakes readers when logs grow. It has one inotify instance, of which a
// user may have few (fs.inotify.max_user_instances), for all logs.
type Watcher struct {
	f *os.File

	mu   sync.Mutex
	dirs map[string]*watchedDir
	byWD map[int32]*watchedDir
	// polling says that poll runs: only while there are readers, so that execd
	// sleeps when nobody follows a log.
	polling bool
	done    chan struct{}
}

type watchedDir struct {
	path    string
	wd      int32
	readers map[chan struct{}]bool
}

// pollEvery wakes readers even without news: inotify may be out of watches, and
// does not see all file systems.
const pollEvery = time.Second

// NewWatcher makes one. Its Close ends it.
func NewWatcher() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch logs: %w", os.NewSyscallError("inotify_init1", err))
	}
	w := &Watcher{
		f: os.NewFile(uintptr(fd), "inotify"), dirs: make(map[string]*watchedDir), byWD: make(map[int32]*watchedDir),
		done: make(chan struct{}),
	}
	go w.read()
	return w, nil
}

// Close ends watching; readers are not woken any more.
func (w *Watcher) Close() error {
	close(w.done)
	return w.f.Close()
}

// Watch gives a channel that receives when the log in dir may have grown, until
// stop is called.
func (w *Watcher) Watch(dir string) (wake <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.dirs[dir]
	if d == nil {
		d = &watchedDir{path: dir, wd: -1, readers: make(map[chan struct{}]bool)}
		w.dirs[dir] = d
		w.add(d)
	}
	d.readers[ch] = true
	if !w.polling {
		w.polling = true
		go w.poll()
	}
	return ch, func() { w.forget(d, ch) }
}

// add is called with the lock. The folder may not exist yet; poll tries again.
func (w *Watcher) add(d *watchedDir) {
	const mask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_ONLYDIR
	rc, err := w.f.SyscallConn()
	if err != nil {
		return
	}
	rc.Control(func(fd uintptr) {
		if wd, err := unix.InotifyAddWatch(int(fd), d.path, mask); err == nil {
			d.wd = int32(wd)
			w.byWD[d.wd] = d
		}
	})
}

func (w *Watcher) forget(d *watchedDir, ch chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(d.readers, ch)
	if len(d.readers) > 0 || w.dirs[d.path] != d {
		return
	}
	delete(w.dirs, d.path)
	if d.wd < 0 {
		return
	}
	delete(w.byWD, d.wd)
	if rc, err := w.f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { unix.InotifyRmWatch(int(fd), uint32(d.wd)) })
	}
}

func (d *watchedDir) wake() {
	for ch := range d.readers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// read passes on news: inotify(7), struct inotify_event.
func (w *Watcher) read() {
	buf := make([]byte, 16<<10)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return
		}
		w.mu.Lock()
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			if d := w.byWD[int32(binary.NativeEndian.Uint32(b))]; d != nil {
				d.wake()
			}
			nameLen := binary.NativeEndian.Uint32(b[12:])
			b = b[min(len(b), unix.SizeofInotifyEvent+int(nameLen)):]
		}
		w.mu.Unlock()
	}
}

func (w *Watcher) poll() {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-w.done:
			return
		case <-tick.C:
		}
		if !w.wakeAll() {
			return
		}
	}
}

// wakeAll wakes all readers; false: there were none, and poll ends.
func (w *Watcher) wakeAll() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.dirs {
		if d.wd < 0 {
			w.add(d)
		}
		d.wake()
	}
	w.polling = len(w.dirs) > 0
	return w.polling
}
