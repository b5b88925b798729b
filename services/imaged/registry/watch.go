package registry

import (
	"context"
	"io"
	"sync"
	"time"
)

const (
	// minProgress is how much a transfer must move per stall window; less, such as a byte
	// a second, is a stall with extra steps.
	minProgress = 1 << 10
	// commitFactor stretches the window once an upload is complete: the registry now
	// hashes and stores all of it before it answers.
	commitFactor = 5
)

// watch cancels a request that makes no progress. It runs only while the network is waited
// for: a reader that takes its time over the disk is not the registry's fault.
type watch struct {
	cancel context.CancelCauseFunc
	window time.Duration
	timer  *time.Timer

	mu    sync.Mutex
	left  time.Duration // of the window
	since time.Time     // of resume
	moved int           // bytes in this window
}

// newWatch returns a paused watch and the context it cancels, with errStalled as cause.
func newWatch(ctx context.Context, window time.Duration) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{cancel: cancel, window: window, left: window}
	w.timer = time.AfterFunc(window, func() { cancel(errStalled) })
	w.timer.Stop()
	return ctx, w
}

func (w *watch) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Now()
	w.timer.Reset(w.left)
}

// pause stops the clock after n bytes have come in.
func (w *watch) pause(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	w.left -= time.Since(w.since)
	w.count(n)
}

// feed notes that n bytes have gone out, with the clock running.
func (w *watch) feed(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count(n) {
		w.since = time.Now()
		w.timer.Reset(w.left)
	}
}

// sentAll gives the registry time to commit an upload.
func (w *watch) sentAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left, w.since = commitFactor*w.window, time.Now()
	w.timer.Reset(w.left)
}

// count opens a new window once enough has moved.
func (w *watch) count(n int) bool {
	w.moved += n
	if w.moved < minProgress {
		return false
	}
	w.moved, w.left = 0, w.window
	return true
}

func (w *watch) end() {
	w.timer.Stop()
	w.cancel(nil)
}

// watchedBody is a response's body.
type watchedBody struct {
	io.ReadCloser
	ctx   context.Context // newWatch's
	watch *watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.resume()
	n, err := b.ReadCloser.Read(p)
	b.watch.pause(n)
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.watch.end()
	return b.ReadCloser.Close()
}

// upload is a request's body. The transport reads and closes it from a goroutine of its own.
type upload struct {
	io.ReadCloser
	watch    *watch
	size     int64
	progress func(sent int64)

	mu   sync.Mutex
	sent int64
	err  error // the source's, as opposed to the network's
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	u.mu.Lock()
	u.sent += int64(n)
	sent := u.sent
	if err != nil && err != io.EOF {
		u.err = err
	}
	u.mu.Unlock()
	u.watch.feed(n)
	if sent >= u.size {
		u.watch.sentAll()
	}
	if u.progress != nil && n > 0 {
		u.progress(sent)
	}
	return n, err
}

func (u *upload) failure() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}
