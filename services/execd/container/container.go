package container

import (
	"context"
	"sync"
	"sync/atomic"
)

// Container is one that exists.
type Container struct {
	info atomic.Pointer[Info]

	mu      sync.Mutex // orders changes
	changed chan struct{}
	persist func(*Info) error

	// Work orders what is done to the container (start, stop, remove) by those
	// who must not be in each other's way. It is not needed to read or to wait.
	Work sync.Mutex
	// Logs is held for reading by readers of the log, and to delete it.
	Logs sync.RWMutex
}

// New makes a container from its first Info. persist is called with each new
// Info before it can be seen; an error keeps the old one.
func New(i *Info, persist func(*Info) error) *Container {
	c := &Container{changed: make(chan struct{}), persist: persist}
	c.info.Store(i)
	return c
}

// Info is the container now.
func (c *Container) Info() *Info { return c.info.Load() }

// Move lets an event happen: the state changes, edit (which may be nil) changes
// the rest in the same step. It fails when the state does not allow the event
// or the change could not be recorded; nothing has changed then.
func (c *Container) Move(e Event, edit func(*Info)) (*Info, error) {
	return c.change(func(i *Info) error {
		next, err := i.State.Next(e)
		if err != nil {
			return err
		}
		i.State = next
		if edit != nil {
			edit(i)
		}
		return nil
	})
}

// Must is Move for what has happened already: it cannot be undone because a
// disk is full. The error is that of the recording; the Info has changed unless
// it is nil.
func (c *Container) Must(e Event, edit func(*Info)) (*Info, error) {
	var lost error
	i, err := c.changeThen(func(i *Info) error {
		next, err := i.State.Next(e)
		if err != nil {
			return err
		}
		i.State = next
		edit(i)
		return nil
	}, func(err error) bool { lost = err; return true })
	if err == nil {
		err = lost
	}
	return i, err
}

// Edit changes what is not the state.
func (c *Container) Edit(edit func(*Info) error) (*Info, error) {
	return c.change(func(i *Info) error {
		state := i.State
		err := edit(i)
		i.State = state
		return err
	})
}

// Note changes what need not be recorded before the next change of something else.
func (c *Container) Note(edit func(*Info)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *c.info.Load()
	edit(&next)
	c.info.Store(&next)
}

func (c *Container) change(f func(*Info) error) (*Info, error) {
	return c.changeThen(f, func(error) bool { return false })
}

// changeThen asks anyway whether to go on when the change cannot be recorded.
func (c *Container) changeThen(f func(*Info) error, anyway func(error) bool) (*Info, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *c.info.Load()
	if err := f(&next); err != nil {
		return nil, err
	}
	if c.persist != nil {
		if err := c.persist(&next); err != nil && !anyway(err) {
			return nil, err
		}
	}
	c.info.Store(&next)
	close(c.changed)
	c.changed = make(chan struct{})
	return &next, nil
}

// Wait blocks until ok holds and gives the Info for which it did.
func (c *Container) Wait(ctx context.Context, ok func(*Info) bool) (*Info, error) {
	for {
		c.mu.Lock()
		changed := c.changed
		i := c.info.Load()
		c.mu.Unlock()
		if ok(i) {
			return i, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return i, context.Cause(ctx)
		}
	}
}

// Done gives a channel that is closed once ok holds, for as long as ctx lives.
func (c *Container) Done(ctx context.Context, ok func(*Info) bool) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		if _, err := c.Wait(ctx, ok); err == nil {
			close(done)
		}
	}()
	return done
}
