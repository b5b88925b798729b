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
	dir     string
	logf    func(format string, args ...any)
	seq     atomic.Uint64
	pending chan string
	stop    chan struct{}
	done    sync.WaitGroup
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
	c := &Can{dir: dir, logf: logf, pending: make(chan string, 4096), stop: make(chan struct{})}
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
	select {
	case c.pending <- into:
	default: // thousands are waiting; the next start finds it
	}
	return nil
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
			c.drain(time.Now().Add(closePatience))
			return
		case path := <-c.pending:
			c.delete(path)
		}
	}
}

// drain deletes what is waiting, until there is nothing more or it is late.
func (c *Can) drain(deadline time.Time) {
	for time.Now().Before(deadline) {
		select {
		case path := <-c.pending:
			c.delete(path)
		default:
			return
		}
	}
}

func (c *Can) delete(path string) {
	if err := os.RemoveAll(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.logf("delete %s: %v", path, err)
	}
}
