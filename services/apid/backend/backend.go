// Package backend is apid's side of its connections to imaged, netd and execd:
// one long-lived connection each, and errors that say which daemon is away.
package backend

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"

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
	said atomic.Pointer[apiv1.DaemonInfo] // what it said of itself when it came up, nil when not known
	hung atomic.Bool                      // it did not answer when last asked for its health

	asking singleflight.Group
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
		wg.Go(func() { b.watch(ctx, f) })
	}
	wg.Wait()
}

func (b *Backend) watch(ctx context.Context, f func(*Backend)) {
	var learning sync.WaitGroup
	defer learning.Wait()
	daemon.WatchConn(ctx, b.Conn, func(up bool) {
		b.up.Store(up)
		b.said.Store(nil)
		b.hung.Store(false)
		if up {
			learning.Go(func() { b.learn(ctx) })
			f(b)
		}
	})
}

// learn asks the daemon who it is.
func (b *Backend) learn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(Unguarded(ctx), longest)
	defer cancel()
	resp, err := apiv1.NewSystemServiceClient(b.Conn).GetDaemonInfo(ctx, new(apiv1.SystemServiceGetDaemonInfoRequest))
	if err == nil && b.up.Load() {
		b.said.Store(resp.GetInfo())
	}
}

// pid is the daemon's process while it is up, 0 when not known.
func (b *Backend) pid() int { return int(b.said.Load().GetPid()) }

// Said is what the daemon said of itself when it last came up, nil when it is away, has not said anything yet, or was found
// to hang. What does not change while it is connected can be taken from it without waking the daemon; the message is shared.
func (b *Backend) Said() *apiv1.DaemonInfo {
	if !b.up.Load() || b.hung.Load() {
		return nil
	}
	return b.said.Load()
}

// Up reports whether the daemon was connected when last looked at.
func (b *Backend) Up() bool { return b.up.Load() }

// The services of each daemon.

func (s *Set) Rootfs() imagev1.RootfsServiceClient {
	return imagev1.NewRootfsServiceClient(s.Imaged.Conn)
}
func (s *Set) Store() imagev1.StoreServiceClient { return imagev1.NewStoreServiceClient(s.Imaged.Conn) }
func (s *Set) Registries() apiv1.RegistryServiceClient {
	return apiv1.NewRegistryServiceClient(s.Imaged.Conn)
}
func (s *Set) Images() apiv1.ImageServiceClient   { return apiv1.NewImageServiceClient(s.Imaged.Conn) }
func (s *Set) Volumes() apiv1.VolumeServiceClient { return apiv1.NewVolumeServiceClient(s.Imaged.Conn) }
func (s *Set) Endpoints() networkv1.EndpointServiceClient {
	return networkv1.NewEndpointServiceClient(s.Netd.Conn)
}
func (s *Set) Launch() execv1.LaunchServiceClient { return execv1.NewLaunchServiceClient(s.Execd.Conn) }
func (s *Set) Containers() apiv1.ContainerServiceClient {
	return apiv1.NewContainerServiceClient(s.Execd.Conn)
}

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

func (b *Backend) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	g := b.guard(ctx)
	defer g.release()
	err := next(g.ctx, method, req, reply, cc, opts...)
	if err == nil && b.hung.Load() {
		b.hung.Store(false)
	}
	return b.explain(g.ctx, err)
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
