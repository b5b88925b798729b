package monitor

import (
	"log"
	"sync"
	"time"

	"berth/services/execd/monitor/wire"
)

// Monitor holds the containers. Its lock guards the maps only and is never held
// over anything that can wait.
type Monitor struct {
	launcher Launcher
	log      *log.Logger
	build    string
	reaper   *reaper

	mu         sync.Mutex
	containers map[string]*process
	standing   map[string]standing // built ahead, by id
	peer       *peer
	changed    chan struct{} // someone came or went: look whether to end
	quit       chan struct{}
	quitOnce   sync.Once
}

// New makes a monitor without containers.
func New(l Launcher, build string, lg *log.Logger) *Monitor {
	return &Monitor{
		launcher:   l,
		log:        lg,
		build:      build,
		reaper:     newReaper(),
		containers: make(map[string]*process),
		standing:   make(map[string]standing),
		changed:    make(chan struct{}, 1),
		quit:       make(chan struct{}),
	}
}

// Done is closed when the monitor has nothing more to do: it was told to quit,
// or for idle time there was neither a running container nor an execd. What it
// still knows is in the exit files.
func (m *Monitor) Done(idle time.Duration) <-chan struct{} {
	go func() {
		timer := time.NewTimer(idle)
		defer timer.Stop()
		for {
			select {
			case <-m.quit:
				return
			case <-m.changed:
				timer.Reset(idle)
			case <-timer.C:
				if m.unused() {
					m.end()
					return
				}
			}
		}
	}()
	return m.quit
}

func (m *Monitor) end() { m.quitOnce.Do(func() { close(m.quit) }) }

func (m *Monitor) unused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peer == nil && m.running() == 0
}

// running counts; the lock is held.
func (m *Monitor) running() int {
	n := 0
	for _, c := range m.containers {
		if c.state.Exit == nil {
			n++
		}
	}
	return n
}

func (m *Monitor) touch() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// process is a container's first process, or that of an exec session. The
// fields that change are guarded by Monitor.mu.
type process struct {
	target wire.Target
	state  wire.State
	files  held
	io     *stdio
	// killAll: the end of the process does not end the container's others
	// (it has no PID namespace of its own).
	killAll bool
	execs   map[string]*process
	// open is held while descriptors are sent, and to close them.
	open sync.RWMutex
	// reaped gets the wait status of an adopted process from execd.
	reaped chan int
}

// find is the running process a target names.
func (m *Monitor) find(t wire.Target) (*process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.containers[t.ID]
	if p != nil && t.Exec != "" {
		p = p.execs[t.Exec]
	}
	if p == nil || p.io == nil || p.state.Exit != nil {
		return nil, &wire.Error{Code: wire.CodeNotFound, Text: "the process does not run"}
	}
	return p, nil
}

// tell sends an event to execd, if there is one. Otherwise it will learn by
// itself when it connects.
func (m *Monitor) tell(msg *wire.Message) bool {
	m.mu.Lock()
	p := m.peer
	m.mu.Unlock()
	return p != nil && p.conn.Send(msg) == nil
}
