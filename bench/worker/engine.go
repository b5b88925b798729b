package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
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
	}
}

// run is over when the client knows how the process ended; what the stream says after that does not count. It asks for
// the steps of the start if the order does.
func (e *engine) run(ctx context.Context, o *orders.Order, worker int) (done orders.Outcome, err error) {
	open := &apiv1.RunRequest_Open{Attach: &apiv1.AttachOptions{Stdout: true, Stderr: true}, Trace: o.Steps}
	began := time.Now()
	err = e.converse(ctx, o, worker, open, func(m *apiv1.RunResponse) error {
		if x := m.GetExited(); x != nil {
			done.Wall = time.Since(began)
			done.Steps = stepsOf(m.GetTrace())
			if x.GetCode() != 0 || x.GetError() != "" {
				return fmt.Errorf("exit status %d %s", x.GetCode(), x.GetError())
			}
		}
		return nil
	})
	if err == nil && done.Wall == 0 {
		err = errors.New("the stream ended without an exit status")
	}
	return done, err
}

// stepsOf are the stages, which add up to the engine's part of the run, and then the single steps, which overlap.
func stepsOf(trace []*apiv1.TraceStep) (steps []orders.Step) {
	took := map[apiv1.Stage]time.Duration{}
	for _, s := range trace {
		took[s.GetStage()] += s.GetCounted().AsDuration()
	}
	for stage := range apiv1.Stage(len(apiv1.Stage_name)) {
		if d, there := took[stage]; there {
			name := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(stage.String(), "STAGE_"), "_", " "))
			steps = append(steps, orders.Step{Name: "stage: " + name, Took: d})
		}
	}
	for _, s := range trace {
		steps = append(steps, orders.Step{Name: s.GetName(), Took: s.GetDuration().AsDuration()})
	}
	return steps
}

// detach is over when the client knows that the process has started. The container stays.
func (e *engine) detach(ctx context.Context, o *orders.Order, worker int) (done orders.Outcome, err error) {
	began := time.Now()
	err = e.converse(ctx, o, worker, &apiv1.RunRequest_Open{Detach: true, Attach: &apiv1.AttachOptions{}}, func(m *apiv1.RunResponse) error {
		if c := m.GetCreated(); c != nil {
			done.Made = c.GetId()
		}
		if m.GetStarted() != nil {
			done.Wall = time.Since(began)
		}
		return nil
	})
	if err == nil && done.Wall == 0 {
		err = errors.New("the stream ended before the start")
	}
	return done, err
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

// exec is over when the client knows how the process ended.
func (e *engine) exec(ctx context.Context, o *orders.Order, worker int) (done orders.Outcome, err error) {
	client, err := e.client(worker)
	if err != nil {
		return done, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	began := time.Now()
	stream, err := client.Exec(ctx)
	if err != nil {
		return done, err
	}
	open := &apiv1.ExecRequest_Open{Container: o.Container, Args: []string{"/bin/true"}, Attach: &apiv1.AttachOptions{Stdout: true, Stderr: true}}
	if err := stream.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Open_{Open: open}}); err != nil {
		return done, err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) && done.Wall > 0 {
			return done, nil
		}
		if err != nil {
			return done, err
		}
		if x := m.GetExited(); x != nil {
			done.Wall = time.Since(began)
			if x.GetCode() != 0 {
				return done, fmt.Errorf("exit status %d", x.GetCode())
			}
		}
	}
}
