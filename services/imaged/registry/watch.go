package registry

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	// minProgress is how much a transfer must move per stall window; less, such as a byte a
	// second, is a stall with extra steps.
	minProgress = 1 << 10
	// commitFactor stretches the window once an upload is complete: the registry now hashes
	// and stores all of it before it answers.
	commitFactor = 5
)

// watch cancels a request that makes no progress. Its clock runs only while the network is
// waited for: a reader that takes its time over the disk is not the registry's fault.
//
// Reads are many and stalls are rare, so a read only notes the time; the timer fires once a
// window, looks at the notes and sets itself to the earliest moment at which there could be
// a stall.
type watch struct {
	cancel context.CancelCauseFunc
	window time.Duration
	timer  *time.Timer

	mu    sync.Mutex
	left  time.Duration // of the window
	since time.Time     // when the clock was started; zero while it is stopped
	moved int           // bytes in this window
	ended bool
}

// newWatch returns a watch whose clock stands, and the context it cancels with errStalled
// as cause.
func newWatch(ctx context.Context, window time.Duration) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{cancel: cancel, window: window, left: window}
	w.mu.Lock() // look needs w.timer
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(window, w.look)
	return ctx, w
}

func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.ended:
	case w.since.IsZero():
		w.timer.Reset(max(w.left, w.window/16))
	case time.Since(w.since) >= w.left:
		w.cancel(errStalled)
	default:
		w.timer.Reset(w.left - time.Since(w.since))
	}
}

// resume starts the clock.
func (w *watch) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Now()
}

// pause stops the clock after n bytes have come in.
func (w *watch) pause(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left -= time.Since(w.since)
	w.since = time.Time{}
	w.count(n)
}

// feed notes that n bytes have gone out, with the clock running.
func (w *watch) feed(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count(n) && !w.since.IsZero() { // an early answer stops the clock before the body's end
		w.since = time.Now()
	}
}

// sentAll gives the registry time to commit an upload.
func (w *watch) sentAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = commitFactor * w.window
	if !w.since.IsZero() {
		w.since = time.Now()
	}
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
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.timer.Stop()
	w.cancel(nil)
}

// watchedBody is a response's body.
type watchedBody struct {
	io.ReadCloser
	ctx      context.Context // newWatch's
	watch    *watch
	throttle *throttle
}

func (b *watchedBody) Read(p []byte) (int, error) {
	p = p[:b.throttle.portion(len(p))]
	b.watch.resume()
	n, err := b.ReadCloser.Read(p)
	b.watch.pause(n)
	b.throttle.wait(b.ctx, n)
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

// outgoing is a request's body. The transport reads and closes it from a goroutine of its
// own.
type outgoing struct {
	io.ReadCloser
	ctx      context.Context
	watch    *watch
	throttle *throttle
	size     int64
	progress func(sent int64)

	mu   sync.Mutex
	sent int64
	err  error // the source's, as opposed to the network's
}

func (u *outgoing) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p[:u.throttle.portion(len(p))])
	u.throttle.wait(u.ctx, n)
	u.mu.Lock()
	u.sent += int64(n)
	sent := u.sent
	switch {
	case err == io.EOF && sent < u.size:
		u.err = fmt.Errorf("it ends after %d of %d bytes", sent, u.size)
	case err != nil && err != io.EOF:
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

func (u *outgoing) failure() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}
