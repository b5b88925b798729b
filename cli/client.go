package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	apiv1 "berth/proto/berth/api/v1"
)

// engine is the connection to apid and its services.
type engine struct {
	conn       *grpc.ClientConn
	containers apiv1.ContainerServiceClient
	images     apiv1.ImageServiceClient
	networks   apiv1.NetworkServiceClient
	volumes    apiv1.VolumeServiceClient
	jobs       apiv1.JobServiceClient
	events     apiv1.EventServiceClient
	system     apiv1.SystemServiceClient
}

func (e *engine) Close() { _ = e.conn.Close() }

// target is the address of apid: --host, $BERTH_HOST, or the socket of the instance under --run.
func (a *app) target() string {
	if a.host != "" {
		return a.host
	}
	if h := os.Getenv("BERTH_HOST"); h != "" {
		return h
	}
	return "unix://" + a.run + "/apid.sock"
}

// connect prepares the connection; the first call dials. Only unix sockets are served in clear text.
func (a *app) connect() (*engine, error) {
	path, ok := strings.CutPrefix(a.target(), "unix://")
	if !ok || !strings.HasPrefix(path, "/") {
		return nil, usagef("give a socket: -H unix:///run/berth/apid.sock", "engine address %q is not unix:///absolute/path", a.target())
	}
	d := &dialer{path: path}
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(d.dial),
		grpc.WithDisableServiceConfig(),
		grpc.WithChainUnaryInterceptor(d.unary),
		grpc.WithChainStreamInterceptor(d.stream),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
	)
	if err != nil {
		return nil, err
	}
	return &engine{
		conn:       conn,
		containers: apiv1.NewContainerServiceClient(conn),
		images:     apiv1.NewImageServiceClient(conn),
		networks:   apiv1.NewNetworkServiceClient(conn),
		volumes:    apiv1.NewVolumeServiceClient(conn),
		jobs:       apiv1.NewJobServiceClient(conn),
		events:     apiv1.NewEventServiceClient(conn),
		system:     apiv1.NewSystemServiceClient(conn),
	}, nil
}

// dialer remembers why the last dial failed, so that the user reads the cause and not gRPC's wrapping of it.
type dialer struct {
	path string
	last atomic.Pointer[error]
}

func (d *dialer) dial(ctx context.Context, _ string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", d.path)
	if err != nil {
		d.last.Store(&err)
	} else {
		d.last.Store(nil)
	}
	return c, err
}

func (d *dialer) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, inv grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return d.explain(inv(ctx, method, req, reply, cc, opts...))
}

func (d *dialer) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, s grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	st, err := s(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, d.explain(err)
	}
	return &explainedStream{st, d}, nil
}

type explainedStream struct {
	grpc.ClientStream
	d *dialer
}

func (s *explainedStream) RecvMsg(m any) error { return s.d.explain(s.ClientStream.RecvMsg(m)) }

func (d *dialer) explain(err error) error {
	if status.Code(err) != codes.Unavailable {
		return err
	}
	cause := d.last.Load()
	if cause == nil {
		if strings.Contains(status.Convert(err).Message(), "error reading from server") {
			return &userError{text: "the engine closed the connection", hint: "it may be restarting: try again, or see `berth version`"}
		}
		return err
	}
	text, hint := fmt.Sprintf("cannot reach the engine at unix://%s: %v", d.path, rootCause(*cause)), ""
	switch {
	case errors.Is(*cause, fs.ErrPermission):
		hint = "join the group berth (usermod -aG berth USER, then log in again), or use sudo"
	case errors.Is(*cause, fs.ErrNotExist), errors.Is(*cause, syscall.ECONNREFUSED):
		hint = "start it with `berth up --detach`, or `systemctl start berth-apid.socket`"
	}
	return &userError{text: text, hint: hint}
}

func rootCause(err error) error {
	for {
		u := errors.Unwrap(err)
		if u == nil {
			return err
		}
		err = u
	}
}
