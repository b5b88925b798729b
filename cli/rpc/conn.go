// Package rpc calls gRPC services over a unix socket: the client of the command line.
//
// It does what google.golang.org/grpc does for a command that makes a few calls over one connection in clear text, and
// nothing else: unary, server-streaming and bidirectional calls, deadlines, cancelling, flow control, and errors with
// their details. There is no TLS, compression, name resolution, balancing, retrying or sending of metadata. A command
// ends before grpc, with net/http and crypto/tls below it, has initialised its packages and made its connection.
//
// A Conn may be used by several goroutines at once, a stream by one that sends and one that receives.
//
// How it works: a transport is one HTTP/2 connection (RFC 9113). Whoever has something to send appends frames to the
// transport's output under its lock and then writes the output, unless another is writing already and will take them
// along; so the header and the first message of a call leave in one write, with preface and settings if Begin has not sent these. One goroutine
// reads. It never writes itself, so a server that does not read cannot keep it from reading.
package rpc

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"berth/cli/wire"
)

// maxMessage is the largest message accepted, in bytes.
const maxMessage = 16 << 20

// Conn calls the services behind one socket. It connects at the first call, and again for a call after the connection
// was lost.
type Conn struct {
	path string
	mu   sync.Mutex
	t    *transport // nil before the first call
}

// NewConn makes a Conn to the unix socket at path without connecting.
func NewConn(path string) *Conn { return &Conn{path: path} }

// Path is the socket's.
func (c *Conn) Path() string { return c.path }

// Begin connects ahead of the first call, if the server takes a connection at once. What keeps it from that is left to
// the call to find out and tell.
func (c *Conn) Begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	fd, err := socket()
	if err != nil {
		return
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: c.path}); err != nil {
		syscall.Close(fd)
		return
	}
	c.t = newTransport(os.NewFile(uintptr(fd), c.path))
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	c.t.flush()
}

// Close ends the connection; calls that run fail with Canceled.
func (c *Conn) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.t != nil {
		c.t.close()
	}
}

// Invoke makes a unary call of a method, "/package.Service/Method".
func (c *Conn) Invoke(ctx context.Context, method string, in, out wire.Message) error {
	s, err := c.open(ctx, method)
	if err != nil {
		return err
	}
	defer s.finish()
	if err := s.send(in, true); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return s.receiveOnly(out)
}

// open begins a call; its header is sent with the first message.
func (c *Conn) open(ctx context.Context, method string) (*stream, error) {
	if ctx.Err() != nil {
		return nil, contextStatus(ctx)
	}
	t, err := c.transport(ctx)
	if err != nil {
		return nil, err
	}
	return t.open(ctx, method)
}

// transport is the connection in use, or a new one.
func (c *Conn) transport(ctx context.Context) (*transport, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.t == nil || !c.t.usable() {
		f, err := dial(ctx, c.path)
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return nil, contextStatus(ctx)
		}
		if err != nil {
			return nil, &Status{Code: Unavailable, Message: "connect to " + c.path + ": " + err.Error(), Cause: &DialError{c.path, err}}
		}
		c.t = newTransport(f)
	}
	return c.t, nil
}

// DialError is why no connection could be made: the Cause of a Status that is Unavailable.
type DialError struct {
	Path string // of the socket
	Err  error
}

// Error implements error.
func (e *DialError) Error() string { return e.Err.Error() }

// Unwrap returns the error of the system call.
func (e *DialError) Unwrap() error { return e.Err }

// dialWait bounds the waiting for a server whose queue of connections is full.
const dialWait = 5 * time.Second

// dial connects without package net, which would make more system calls for the same: it asks for both addresses.
func dial(ctx context.Context, path string) (*os.File, error) {
	fd, err := socket()
	if err != nil {
		return nil, err
	}
	for pause := time.Millisecond; ; pause *= 2 {
		err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
		// EAGAIN: the queue is full (connect(2)); there is no readiness to wait for.
		if err == nil || (!errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR)) || pause > dialWait/2 {
			break
		}
		select {
		case <-ctx.Done():
			syscall.Close(fd)
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
	if err != nil {
		syscall.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func socket() (fd int, err error) {
	fd, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	return fd, os.NewSyscallError("socket", err)
}
