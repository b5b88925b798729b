package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"berth/bench/orders"
	apiv1 "berth/proto/berth/api/v1"
)

// worker is a process of bench/worker that launches for a peer, in its account.
type worker struct {
	in  *json.Encoder
	out *json.Decoder
}

// work starts a worker for the peer, to be ended with it.
func (p *peer) work(o options, args ...string) (*worker, error) {
	cmd := exec.Command(filepath.Join(o.bin, "bench-worker"), args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for the bench
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.charge.Start(cmd); err != nil {
		return nil, err
	}
	p.atEnd(func() error { return errors.Join(stdin.Close(), cmd.Wait()) })
	return &worker{json.NewEncoder(stdin), json.NewDecoder(stdout)}, nil
}

// ask gives an order and waits for its result. Runs that failed are in the result, not in the error.
func (w *worker) ask(ctx context.Context, o orders.Order) (r orders.Result, err error) {
	if err := ctx.Err(); err != nil {
		return r, err
	}
	if err := w.in.Encode(o); err != nil {
		return r, fmt.Errorf("give an order: %w", err)
	}
	if err := w.out.Decode(&r); err != nil {
		return r, fmt.Errorf("wait for what came of %s: %w", o.Op, err)
	}
	return r, nil
}

// once gives an order for one run.
func (w *worker) once(ctx context.Context, o orders.Order) (time.Duration, []string, error) {
	o.Count = 1
	r, err := w.ask(ctx, o)
	if err == nil && r.Failed > 0 {
		err = errors.New(r.Complaint)
	}
	if err != nil {
		return 0, r.Made, err
	}
	return r.Walls[0], r.Made, nil
}

// specOf is a container's description as the engine's operations take it.
func specOf(s *apiv1.ContainerSpec) json.RawMessage {
	b, err := protojson.Marshal(s)
	if err != nil {
		panic(err) // of a message of our own making
	}
	return b
}
