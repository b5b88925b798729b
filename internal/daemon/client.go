package daemon

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"berth/internal/fault/faultgrpc"
)

// Dial makes the one long-lived connection to another daemon's socket. It does
// not wait. While nobody listens there calls fail with fault.Unavailable at
// once, and when the peer is back they work again within half a second. While
// somebody holds the socket open without serving it (systemd or "berth up", whose
// daemon is just starting again) calls wait for it, for connectPatience at most.
// Errors are faults; the request id in a call's context goes along.
func Dial(path string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+path, append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a unix socket in a directory of ours
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}),
		grpc.WithAuthority("localhost"),
		grpc.WithIdleTimeout(0),
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connWindow),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: connectPatience,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 30 * time.Second}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithChainUnaryInterceptor(faultgrpc.UnaryClient, passIDUnary),
		grpc.WithChainStreamInterceptor(faultgrpc.StreamClient, passIDStream),
	}, opts...)...)
}

// connectPatience is for a busy machine: a second is not enough there.
const connectPatience = 5 * time.Second

// WatchConn keeps conn connected and calls f with true whenever it has become
// usable and false when it no longer is, until ctx is done.
func WatchConn(ctx context.Context, conn *grpc.ClientConn, f func(up bool)) {
	up := false
	for {
		state := conn.GetState()
		if state == connectivity.Idle {
			conn.Connect()
		}
		if now := state == connectivity.Ready; now != up {
			up = now
			f(up)
		}
		if !conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

func passIDUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return next(passID(ctx), method, req, reply, cc, opts...)
}

func passIDStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return next(passID(ctx), desc, cc, method, opts...)
}

func passID(ctx context.Context) context.Context {
	if id := RequestID(ctx); id != "" {
		return metadata.AppendToOutgoingContext(ctx, RequestIDKey, id)
	}
	return ctx
}
