// Package backend is apid's side of its connections to imaged, netd and execd:
// one long-lived connection each, and errors that say which daemon is away.
package backend

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"berth/internal/daemon"
	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	imagev1 "berth/proto/berth/image/v1"
	networkv1 "berth/proto/berth/network/v1"
)

// Backend is one of the daemons behind apid.
type Backend struct {
	Name string
	Conn *grpc.ClientConn
	up   atomic.Bool
}

// Set is all of them.
type Set struct {
	Imaged, Netd, Execd *Backend
}

// Dial makes the connections to the sockets below run. It does not wait for
// anybody to be there.
func Dial(run string) (*Set, error) {
	s := new(Set)
	for _, b := range []struct {
		to           **Backend
		name, socket string
	}{
		{&s.Imaged, "imaged", daemon.ImagedSocket},
		{&s.Netd, "netd", daemon.NetdSocket},
		{&s.Execd, "execd", daemon.ExecdSocket},
	} {
		made, err := dial(b.name, filepath.Join(run, b.socket))
		if err != nil {
			s.Close()
			return nil, err
		}
		*b.to = made
	}
	return s, nil
}

func dial(name, path string) (*Backend, error) {
	b := &Backend{Name: name}
	var err error
	// The single (not chained) interceptors run outermost: they see faults.
	b.Conn, err = daemon.Dial(path, grpc.WithUnaryInterceptor(b.unary), grpc.WithStreamInterceptor(b.stream))
	return b, err
}

// Each is the daemons in a fixed order.
func (s *Set) Each() []*Backend { return []*Backend{s.Imaged, s.Netd, s.Execd} }

// Close closes all connections.
func (s *Set) Close() {
	for _, b := range s.Each() {
		if b != nil {
			b.Conn.Close()
		}
	}
}

// Watch keeps all connected and calls f whenever one has come (back) up, until
// ctx is done.
func (s *Set) Watch(ctx context.Context, f func(*Backend)) {
	var wg sync.WaitGroup
	for _, b := range s.Each() {
		wg.Go(func() {
			daemon.WatchConn(ctx, b.Conn, func(up bool) {
				b.up.Store(up)
				if up {
					f(b)
				}
			})
		})
	}
	wg.Wait()
}

// Up reports whether the daemon was connected when last looked at.
func (b *Backend) Up() bool { return b.up.Load() }

// The services of each daemon.

func (s *Set) Rootfs() imagev1.RootfsServiceClient {
	return imagev1.NewRootfsServiceClient(s.Imaged.Conn)
}
func (s *Set) Store() imagev1.StoreServiceClient  { return imagev1.NewStoreServiceClient(s.Imaged.Conn) }
func (s *Set) Images() apiv1.ImageServiceClient   { return apiv1.NewImageServiceClient(s.Imaged.Conn) }
func (s *Set) Volumes() apiv1.VolumeServiceClient { return apiv1.NewVolumeServiceClient(s.Imaged.Conn) }
func (s *Set) Endpoints() networkv1.EndpointServiceClient {
	return networkv1.NewEndpointServiceClient(s.Netd.Conn)
}
func (s *Set) Launch() execv1.LaunchServiceClient { return execv1.NewLaunchServiceClient(s.Execd.Conn) }
func (s *Set) Containers() apiv1.ContainerServiceClient {
	return apiv1.NewContainerServiceClient(s.Execd.Conn)
}

const (
	// A call that has no answer after patience makes us ask whether anybody is
	// there at all; together with probeTime that stays below the second within
	// which a caller learns that a daemon hangs.
	patience  = 500 * time.Millisecond
	probeTime = 450 * time.Millisecond

	// Later questions are rarer and kinder: a daemon that has answered once is
	// alive.
	laterPatience  = 5 * time.Second
	laterProbeTime = 3 * time.Second

	// On a machine so busy that our own timers are late by more than lateness,
	// no answer says nothing: we ask again, up to excuses times.
	lateness = 50 * time.Millisecond
	excuses  = 10
)

func (b *Backend) away(cause error) error {
	return fault.Unavailable.Errorf("BACKEND_UNAVAILABLE", "%s does not answer", b.Name).
		With("daemon", b.Name).
		With("cause", cause.Error()).
		Hint("it comes back by itself if systemd or \"berth up\" runs the engine; otherwise start it with: berth up")
}

// explain gives words to errors of the connection itself; a daemon's own
// Unavailable has a reason.
func (b *Backend) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if hung := new(hungError); errors.As(context.Cause(ctx), &hung) {
		return b.away(hung)
	}
	if errors.Is(err, fault.Unavailable) && fault.ReasonOf(err) == "" {
		return b.away(err)
	}
	return err
}

type hungError struct{ err error }

func (e *hungError) Error() string { return "health check: " + e.err.Error() }

type probeKey struct{}

// guard watches over one call: its context ends when the daemon turns out to
// hang.
type guard struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	backend *Backend

	mu      sync.Mutex
	timer   *time.Timer
	due     time.Time // when timer should fire
	limit   time.Duration
	excused int
	stopped bool
}

func (b *Backend) guard(ctx context.Context) *guard {
	g := &guard{backend: b, limit: probeTime}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	if ctx.Value(probeKey{}) != nil { // the question itself
		return g
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.due = time.Now().Add(patience)
	g.timer = time.AfterFunc(patience, g.probe)
	return g
}

func (g *guard) probe() {
	g.mu.Lock()
	limit, due := g.limit, g.due
	g.mu.Unlock()
	ctx, done := context.WithTimeout(context.WithValue(g.ctx, probeKey{}, true), limit)
	_, err := healthv1.NewHealthClient(g.backend.Conn).Check(ctx, &healthv1.HealthCheckRequest{})
	done()
	g.mu.Lock()
	defer g.mu.Unlock()
	silent := errors.Is(err, fault.DeadlineExceeded)
	switch {
	case g.stopped:
	case silent && time.Since(due) > limit+lateness && g.excused < excuses:
		g.excused++
		g.again(0)
	case silent, errors.Is(err, fault.Unavailable):
		g.cancel(&hungError{err})
	default:
		g.limit = laterProbeTime
		g.again(laterPatience)
	}
}

// again needs mu.
func (g *guard) again(in time.Duration) {
	g.due = time.Now().Add(in)
	g.timer.Reset(in)
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

func (b *Backend) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	g := b.guard(ctx)
	defer g.release()
	return b.explain(g.ctx, next(g.ctx, method, req, reply, cc, opts...))
}

func (b *Backend) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	g := b.guard(ctx)
	s, err := next(g.ctx, desc, cc, method, opts...)
	if err != nil {
		err = b.explain(g.ctx, err)
		g.release()
		return nil, err
	}
	context.AfterFunc(s.Context(), g.release)
	return &clientStream{ClientStream: s, guard: g}, nil
}

// clientStream explains errors. Its guard stops with the first answer: from
// then on a dead daemon is noticed by the connection's keepalive.
type clientStream struct {
	grpc.ClientStream
	guard    *guard
	answered bool // RecvMsg is for one goroutine
}

func (s *clientStream) SendMsg(m any) error {
	return s.guard.backend.explain(s.guard.ctx, s.ClientStream.SendMsg(m))
}

func (s *clientStream) RecvMsg(m any) error {
	err := s.guard.backend.explain(s.guard.ctx, s.ClientStream.RecvMsg(m))
	if !s.answered {
		s.answered = true
		s.guard.stop()
	}
	return err
}
