package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"

	"berth/internal/fault"
	"berth/internal/fault/faultgrpc"
	"berth/internal/rest"
)

const (
	// RequestIDKey is the metadata key that follows one user's request
	// through the daemons' logs.
	RequestIDKey = "berth-request-id"

	// DefaultTimeout ends unary calls whose caller set no deadline.
	DefaultTimeout = 30 * time.Second

	maxMessage  = 4 << 20
	maxStreams  = 256     // calls at once on one connection of a client
	allStreams  = 1 << 16 // and on that of apid to a backend, over which all its clients come
	drainPeriod = 5 * time.Second

	// With windows of its own choice grpc-go does not estimate the bandwidth-delay product, which takes a
	// ping and its answer, and thus two more wake-ups, beside nearly every message. Over a unix socket
	// that product is well below these, in bytes.
	streamWindow = 128 << 10
	connWindow   = 1 << 20

	// streamWorkers are goroutines that stay, with the stack that a handler has needed; more calls than
	// these get new ones.
	streamWorkers = 4
)

// errStopping is why streams end when the daemon stops.
var errStopping = fault.Unavailable.Errorf("DAEMON_STOPPING", "the daemon is stopping")

// Server is a gRPC server as every daemon has it. Register services on GRPC,
// then call Serve.
type Server struct {
	GRPC   *grpc.Server
	log    hclog.Logger
	rule   Rule
	health *health.Server
	// timeouts of unary methods that differ from DefaultTimeout; zero is none.
	timeouts map[string]time.Duration
	lines    sync.WaitGroup // that are yet to be logged

	stopping context.Context // done when streams are to end
	stop     context.CancelCauseFunc
}

// ServerOptions differ from server to server.
type ServerOptions struct {
	Log  hclog.Logger
	Rule Rule // who may call
	// Timeouts, by full method name, of unary calls that come without a
	// deadline; zero is no limit. Others get DefaultTimeout.
	Timeouts map[string]time.Duration
	// GRPC are further options, such as a codec.
	GRPC []grpc.ServerOption
}

// NewServer builds a server with health and reflection registered.
func NewServer(o ServerOptions) *Server {
	s := &Server{log: o.Log, rule: o.Rule, timeouts: o.Timeouts, health: health.NewServer()}
	s.stopping, s.stop = context.WithCancelCause(context.Background())
	opts := append([]grpc.ServerOption{
		grpc.Creds(peerCredentials{}),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(64 << 10),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connWindow),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		// From the outside in:
		//  1. the log line, outermost so that it sees what the client sees;
		//     it also gives the call its request id
		//  2. errors become statuses
		//  3. panics become errors: they fail the call, not the daemon
		//  4. who is not allowed goes no further
		//  5. deadlines, and the end of streams when the daemon stops
		grpc.ChainUnaryInterceptor(s.logUnary, faultgrpc.UnaryServer, s.recoverUnary, s.admitUnary, s.limitUnary),
		grpc.ChainStreamInterceptor(s.logStream, faultgrpc.StreamServer, s.recoverStream, s.admitStream, s.limitStream),
	}, o.GRPC...)
	s.GRPC = grpc.NewServer(opts...)
	healthv1.RegisterHealthServer(s.GRPC, s.health)
	reflection.Register(s.GRPC)
	return s
}

// Serve answers calls on l until ctx is done, then ends in an orderly way:
// health says NOT_SERVING, streams are cancelled with an Unavailable, unary
// calls get some seconds to finish. It returns nil after such an end.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- s.GRPC.Serve(l) }()
	s.health.Resume()
	notify("READY=1")
	rest.Worked()
	rest.Started()

	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	notify("STOPPING=1")
	s.health.Shutdown()
	s.stop(errStopping)
	hurry := time.AfterFunc(drainPeriod, s.GRPC.Stop)
	s.GRPC.GracefulStop()
	hurry.Stop()
	<-served
	s.lines.Wait()
	return nil
}

// Serve builds a server on the daemon's socket of that name, lets register add
// the services, and serves until ctx is done.
func (e *Env) Serve(ctx context.Context, socket string, o ServerOptions, register func(*grpc.Server)) error {
	l := e.Listeners[socket]
	if l == nil {
		return fmt.Errorf("socket %s is not among the daemon's", socket)
	}
	if o.Log == nil {
		o.Log = e.Log.Named("rpc")
	}
	if o.Rule == nil {
		o.Rule = AllowEngine()
		if socket == ApidSocket {
			o.Rule = AllowPeople()
		}
	}
	if socket != ApidSocket {
		o.GRPC = append([]grpc.ServerOption{grpc.MaxConcurrentStreams(allStreams)}, o.GRPC...)
	}
	s := NewServer(o)
	register(s.GRPC)
	return s.Serve(ctx, l)
}

type requestIDKey struct{}

// RequestID is the id of the request that ctx serves, or empty.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// WithRequestID gives work that outlives its call the call's id.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

func newRequestID() string {
	var b [6]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// identify takes the request id the caller sent, if it is one, or makes one.
func identify(ctx context.Context) context.Context {
	id := ""
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		if v := md.Get(RequestIDKey); len(v) == 1 && plausibleID(v[0]) {
			id = v[0]
		}
	}
	if id == "" {
		id = newRequestID()
	}
	return WithRequestID(ctx, id)
}

// plausibleID keeps what a stranger sent from spoiling the log.
func plausibleID(s string) bool {
	return len(s) > 0 && len(s) <= 64 && strings.IndexFunc(s, func(r rune) bool {
		return !(r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}) < 0
}

// logCall writes the line of a call that is over. It is called before grpc-go has sent the reply, and does not keep it
// waiting: a daemon that is killed right after a reply may not have logged it.
func (s *Server) logCall(ctx context.Context, method string, begin time.Time, err error) {
	level := hclog.Info
	if strings.HasPrefix(method, "/grpc.") { // health probes, reflection
		level = hclog.Debug
	}
	if level < s.log.GetLevel() {
		return
	}
	took := time.Since(begin)
	s.lines.Go(func() {
		afterSending()
		p, _ := PeerOf(ctx)
		args := []any{"method", method, "code", faultgrpc.Code(err).String(), "ms", took.Seconds() * 1000,
			"uid", p.UID, "pid", p.PID, "request", RequestID(ctx)}
		if err != nil {
			args = append(args, "error", faultgrpc.ToStatus(err).Message())
		}
		s.log.Log(level, "call", args...)
	})
}

// afterSending gives way to the goroutine that writes to the connection. It gives way once itself, for more to write,
// and on a single processor whoever became ready last runs first.
func afterSending() {
	for range 3 {
		runtime.Gosched()
	}
}

func (s *Server) logUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	rest.Begin()
	defer rest.End()
	begin, ctx := time.Now(), identify(ctx)
	resp, err := next(ctx, req)
	s.logCall(ctx, info.FullMethod, begin, err)
	return resp, err
}

func (s *Server) logStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	begin, ctx := time.Now(), identify(ss.Context())
	rest.Worked() // a stream may stay for days
	err := next(srv, withContext{ss, ctx})
	s.logCall(ctx, info.FullMethod, begin, err)
	rest.Worked()
	return err
}

func (s *Server) recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = s.panicked(info.FullMethod, r)
		}
	}()
	return next(ctx, req)
}

func (s *Server) recoverStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = s.panicked(info.FullMethod, r)
		}
	}()
	return next(srv, ss)
}

func (s *Server) panicked(method string, r any) error {
	s.log.Error("panic in a call", "method", method, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	return fault.Internal.Errorf("PANIC", "internal error in %s", method).
		Hint("this is a bug: please report it with the daemon's log")
}

func (s *Server) admit(ctx context.Context) error {
	p, ok := PeerOf(ctx)
	if !ok {
		return fault.Unauthenticated.Errorf("NO_PEER", "the caller is unknown")
	}
	if s.rule == nil {
		return fault.PermissionDenied.Errorf("NO_RULE", "this server admits nobody")
	}
	return s.rule(p)
}

func (s *Server) admitUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (s *Server) admitStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := s.admit(ss.Context()); err != nil {
		return err
	}
	return next(srv, ss)
}

func (s *Server) limitUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if _, has := ctx.Deadline(); !has {
		limit, special := s.timeouts[info.FullMethod]
		if !special {
			limit = DefaultTimeout
		}
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
	}
	return next(ctx, req)
}

// limitStream cancels the handler's context when the daemon stops: nobody waits
// for a "watch" to end by itself. A handler that is blocked in Recv at that
// moment has to have another goroutine look at its context, or is cut off when
// the drain period ends.
func (s *Server) limitStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(errStopping) })()
	err := next(srv, withContext{ss, ctx})
	if err != nil && context.Cause(ctx) == errStopping && errors.Is(err, context.Canceled) {
		return errStopping
	}
	return err
}

type withContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s withContext) Context() context.Context { return s.ctx }
