package backend

import (
	"context"
	"errors"
	"sync"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"berth/internal/fault"
)

const (
	// A call that has no answer after patience makes us ask whether anybody is
	// there at all. Together with window that stays below the second within
	// which a caller learns that a daemon hangs.
	patience = 450 * time.Millisecond

	// window is how long an answer may take before we look why there is none.
	window = 450 * time.Millisecond

	// longest is how long we go on waiting for the answer of a daemon that seems
	// not to hang but to get no processor.
	longest = 10 * time.Second

	// again is when a call that still has no answer asks once more.
	again = 5 * time.Second
)

type hungError struct{ err error }

func (e *hungError) Error() string { return "health check: " + e.err.Error() }

type unguarded struct{}

// Unguarded is for calls that may have nothing to say for hours, and that nobody
// waits for: that their daemon hangs is noticed by the connection's keepalive.
func Unguarded(ctx context.Context) context.Context {
	return context.WithValue(ctx, unguarded{}, true)
}

// guard watches over one call: its context ends when the daemon turns out to
// hang.
type guard struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	backend *Backend

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

func (b *Backend) guard(ctx context.Context) *guard {
	g := &guard{backend: b}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	if ctx.Value(unguarded{}) != nil {
		return g
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.timer = time.AfterFunc(patience, g.ask)
	return g
}

func (g *guard) ask() {
	err := g.backend.ask()
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.stopped:
	case err != nil:
		g.cancel(&hungError{err})
	default:
		g.timer.Reset(again)
	}
}

// stop asks no more; release ends the context as well.
func (g *guard) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	if g.timer != nil {
		g.timer.Stop()
	}
}

func (g *guard) release() {
	g.stop()
	g.cancel(nil)
}

// ask finds out whether the daemon answers; nil: it does. All calls that want to
// know at the same time share one question.
func (b *Backend) ask() error {
	_, err, _ := b.asking.Do("", func() (any, error) {
		err := b.askOnce()
		b.hung.Store(err != nil)
		return nil, err
	})
	return err
}

// askOnce asks for its health. When there is no answer it looks, once in each
// window, whether the daemon hangs or is starved.
func (b *Backend) askOnce() error {
	ctx, done := context.WithTimeout(Unguarded(context.Background()), longest)
	defer done()
	answer := make(chan error, 1)
	go func() {
		_, err := healthv1.NewHealthClient(b.Conn).Check(ctx, &healthv1.HealthCheckRequest{})
		answer <- err
	}()
	pid := b.pid()
	before := look(pid)
	tick := time.NewTicker(window)
	defer tick.Stop()
	for {
		select {
		case err := <-answer:
			if errors.Is(err, fault.DeadlineExceeded) || errors.Is(err, fault.Unavailable) {
				return err
			}
			return nil
		case <-tick.C:
		}
		now := look(pid)
		if !starved(before, now) {
			return fault.DeadlineExceeded.Errorf("", "no answer in %s", time.Since(before.at).Round(time.Millisecond))
		}
		before = now
	}
}
