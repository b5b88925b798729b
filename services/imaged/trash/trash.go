// Package trash deletes directory trees without making anybody wait for it:
// a tree is renamed into the can at once, which makes its name free, and its
// files go one by one in the background. What a killed process left in the can
// is emptied by the next one.
package trash

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Can is a directory of trees that are to be deleted.
type Can struct {
	dir  string
	logf func(format string, args ...any)
	seq  atomic.Uint64
	wake chan struct{} // there is something in pending
	stop chan struct{}
	done sync.WaitGroup

	mu      sync.Mutex
	pending []string
}

// Open opens the can in dir, made if need be, and begins to empty it. It
// returns without waiting for that. logf hears of what cannot be deleted.
func Open(dir string, logf func(format string, args ...any)) (*Can, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	old, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	c := &Can{dir: dir, logf: logf, wake: make(chan struct{}, 1), stop: make(chan struct{})}
	c.done.Go(func() { c.run(old) })
	return c, nil
}

// Throw puts the tree at path, which is on the can's file system, into the can.
// When it returns nothing is at path any more. fs.ErrNotExist if nothing was.
func (c *Can) Throw(path string) error {
	name := strconv.FormatInt(time.Now().UnixNano(), 36) + "-" + strconv.FormatUint(c.seq.Add(1), 36)
	into := filepath.Join(c.dir, name)
	if err := os.Rename(path, into); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	c.mu.Lock()
	c.pending = append(c.pending, into)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default: // is awake
	}
	return nil
}

// next takes what waits longest out of pending; empty if nothing does.
func (c *Can) next() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 {
		c.pending = nil
		return ""
	}
	path := c.pending[0]
	c.pending = c.pending[1:]
	return path
}

// closePatience is how long Close goes on emptying the can. A daemon that stops
// should not leave work behind, nor keep the host from shutting down.
const closePatience = 5 * time.Second

// Close ends the deleting once the can is empty or some seconds are over, and
// the tree under way is gone; the rest is left to the next start.
func (c *Can) Close() {
	close(c.stop)
	c.done.Wait()
}

// run deletes one tree at a time: deleting competes with starting containers
// for the file system's journal, and nobody waits for it.
func (c *Can) run(old []os.DirEntry) {
	for _, e := range old {
		select {
		case <-c.stop:
			return // they have waited for a start before
		default:
			c.delete(filepath.Join(c.dir, e.Name()))
		}
	}
	for {
		select {
		case <-c.stop:
			c.empty(time.Now().Add(closePatience))
			return
		case <-c.wake:
			c.empty(time.Time{})
		}
	}
}

// empty deletes what is waiting, until there is nothing more, or it is late, or
// with no deadline the can is closed.
func (c *Can) empty(deadline time.Time) {
	for {
		select {
		case <-c.stop:
			if deadline.IsZero() || time.Now().After(deadline) {
				return
			}
		default:
		}
		path := c.next()
		if path == "" {
			return
		}
		c.delete(path)
	}
}

func (c *Can) delete(path string) {
	if err := os.RemoveAll(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.logf("delete %s: %v", path, err)
	}
}
