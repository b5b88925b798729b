package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	"berth/bench/orders"
	apiv1 "berth/proto/berth/api/v1"
)

// engine is a client of apid with a connection for each of its workers, as so many clients would have.
type engine struct {
	socket  string
	mu      sync.Mutex
	clients []apiv1.ContainerServiceClient
	conns   []*grpc.ClientConn
}

func connect(socket string) (*engine, error) {
	e := &engine{socket: socket}
	if _, err := e.client(0); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *engine) close() {
	for _, c := range e.conns {
		_ = c.Close()
	}
}

// client is that of a worker. The first call on a connection dials it: rounds before those that count see to that.
func (e *engine) client(worker int) (apiv1.ContainerServiceClient, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.clients) <= worker {
		c, err := grpc.NewClient("unix://"+e.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		e.conns = append(e.conns, c)
		e.clients = append(e.clients, apiv1.NewContainerServiceClient(c))
	}
	return e.clients[worker], nil
}

func (e *engine) operations() map[string]orders.Operation {
	return map[string]orders.Operation{
		"run":    e.run,
		"detach": e.detach,
		"exec":   e.exec,
		"remove": e.remove,
		"list":   e.list,
	}
}

// run is over when the client knows how the process ended; what the stream says after that does not count.
func (e *engine) run(ctx context.Context, o *orders.Order, worker int) (time.Duration, string, error) {
	open := &apiv1.RunRequest_Open{Attach: &apiv1.AttachOptions{Stdout: true, Stderr: true}}
	var wall time.Duration
	began := time.Now()
	err := e.converse(ctx, o, worker, open, func(m *apiv1.RunResponse) error {
		if x := m.GetExited(); x != nil {
			wall = time.Since(began)
			if x.GetCode() != 0 || x.GetError() != "" {
				return fmt.Errorf("exit status %d %s", x.GetCode(), x.GetError())
			}
		}
		return nil
	})
	if err == nil && wall == 0 {
		err = errors.New("the stream ended without an exit status")
	}
	return wall, "", err
}

// detach is over when the client knows that the process has started. The container stays.
func (e *engine) detach(ctx context.Context, o *orders.Order, worker int) (wall time.Duration, made string, err error) {
	began := time.Now()
	err = e.converse(ctx, o, worker, &apiv1.RunRequest_Open{Detach: true, Attach: &apiv1.AttachOptions{}}, func(m *apiv1.RunResponse) error {
		if c := m.GetCreated(); c != nil {
			made = c.GetId()
		}
		if m.GetStarted() != nil {
			wall = time.Since(began)
		}
		return nil
	})
	if err == nil && wall == 0 {
		err = errors.New("the stream ended before the start")
	}
	return wall, made, err
}

// converse has one Run call to its end.
func (e *engine) converse(ctx context.Context, o *orders.Order, worker int, open *apiv1.RunRequest_Open, each func(*apiv1.RunResponse) error) error {
	open.Spec = &apiv1.ContainerSpec{}
	if err := protojson.Unmarshal(o.Spec, open.Spec); err != nil {
		return err
	}
	client, err := e.client(worker)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	stream, err := client.Run(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&apiv1.RunRequest{Message: &apiv1.RunRequest_Open_{Open: open}}); err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(m); err != nil {
			return err
		}
	}
}

func (e *engine) exec(ctx context.Context, o *orders.Order, worker int) (wall time.Duration, _ string, err error) {
	client, err := e.client(worker)
	if err != nil {
		return 0, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	began := time.Now()
	stream, err := client.Exec(ctx)
	if err != nil {
		return 0, "", err
	}
	open := &apiv1.ExecRequest_Open{Container: o.Container, Args: []string{"/bin/true"}, Attach: &apiv1.AttachOptions{Stdout: true, Stderr: true}}
	if err := stream.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Open_{Open: open}}); err != nil {
		return 0, "", err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) && wall > 0 {
			return wall, "", nil
		}
		if err != nil {
			return 0, "", err
		}
		if x := m.GetExited(); x != nil {
			wall = time.Since(began)
			if x.GetCode() != 0 {
				return 0, "", fmt.Errorf("exit status %d", x.GetCode())
			}
		}
	}
}

func (e *engine) remove(ctx context.Context, o *orders.Order, worker int) (time.Duration, string, error) {
	client, err := e.client(worker)
	if err != nil {
		return 0, "", err
	}
	began := time.Now()
	_, err = client.Remove(ctx, &apiv1.RemoveRequest{Container: o.Container, Force: true})
	return time.Since(began), "", err
}

func (e *engine) list(ctx context.Context, _ *orders.Order, worker int) (time.Duration, string, error) {
	client, err := e.client(worker)
	if err != nil {
		return 0, "", err
	}
	began := time.Now()
	_, err = client.List(ctx, &apiv1.ListRequest{})
	return time.Since(began), "", err
}
