package rootfs

import (
	"context"
	"path/filepath"
	"sync"
)

// laters are the root file systems that are on their way to the disk while their
// containers are being started.
type laters struct {
	mu  sync.Mutex
	all map[string]*later
}

type later struct {
	done chan struct{}
	err  error
}

func (l *laters) start(id string, sync func() error) {
	one := &later{done: make(chan struct{})}
	l.mu.Lock()
	if l.all == nil {
		l.all = make(map[string]*later)
	}
	l.all[id] = one
	l.mu.Unlock()
	go func() {
		defer close(one.done)
		one.err = sync()
	}()
}

// take is nil for one that is not on its way.
func (l *laters) take(id string) *later {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.all[id]
	delete(l.all, id)
	return one
}

// Sync waits until a root file system is on the disk. If it was not on its way there,
// as after a restart, it goes now.
func (m *Manager) Sync(ctx context.Context, id string) error {
	r, err := m.Get(id)
	if err != nil {
		return err
	}
	one := m.later.take(id)
	if one == nil {
		return m.sync(filepath.Join(m.dir, id), r.Recipe)
	}
	select {
	case <-one.done:
		return one.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
