package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"berth/internal/fault"
	"berth/internal/trace"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	imagev1 "berth/proto/berth/image/v1"
)

type (
	runClient = grpc.BidiStreamingServer[apiv1.RunRequest, apiv1.RunResponse]
	runExecd  = grpc.BidiStreamingClient[execv1.RunRequest, execv1.RunResponse]
)

// run is one `berth run`.
//
// The job ends when the container has started: then the work is done, and what
// follows is a conversation between the client and its container. Until then
// the client's leaving, a cancelled job and a failure all mean the same: undo.
type run struct {
	engine    *Engine
	client    runClient
	open      *apiv1.RunRequest_Open
	container container
	spare     *spare   // what it is made of, if that was at hand
	network   []string // warnings
	timing    timing
	steps     []*apiv1.TraceStep // if the client wants them

	synced  chan error         // of a container that is late: its root file system is on the disk
	created *apiv1.RunResponse // held back until it is confirmed

	launched bool // execd may know the container
	started  bool // execd has said that it runs
	// release lets the conversation go on when the job's context ends; false
	// if it has ended already.
	release func() bool
}

// Run is ContainerService.Run.
func (s *Containers) Run(client runClient) error {
	arrived := time.Now()
	first, err := client.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil {
		return fault.InvalidArgument.Errorf("OPEN_EXPECTED", "the first message of Run must be open")
	}
	if err := checkSpec(open.Spec); err != nil {
		return err
	}
	e := s.Engine
	j, ctx, err := e.Jobs.Begin(client.Context(), spec(client.Context(), "run", open.Spec.Image))
	if err != nil {
		return err
	}
	client.SetHeader(metadata.Pairs(JobIDHeader, j.ID()))
	r := &run{
		engine:    e,
		client:    client,
		open:      open,
		container: container{id: newID(), spec: open.Spec, auth: open.Auth, job: j, late: !open.Spec.AutoRemove},
		timing:    timing{arrived: arrived},
	}
	var made func()
	if r.spare = e.takeSpare(open.Spec); r.spare != nil {
		r.container.id, made = r.spare.container.id, r.spare.settled
		r.container.late = false // it is on the disk
	} else {
		made = e.making.add(r.container.id)
	}
	if !open.Detach {
		defer e.attended.add(r.container.id)()
	}
	err = r.do(ctx)
	switch {
	case err != nil && r.spare != nil && !r.spare.used:
		e.putBack(client.Context(), r.spare)
		made = func() {}
	case err != nil && !r.started:
		e.abandon(ctx, r.container, r.launched, err)
	case r.started && (open.Detach || !open.Spec.AutoRemove): // else its end has seen to it
		done := e.standby.trail()
		e.background(ctx, func(ctx context.Context) {
			defer done()
			pause(ctx, afterReply)
			e.standBy(ctx, r.container)
		})
	}
	made()
	err = because(ctx, err)
	j.End(r.container.id, err) // counts only if the container has not started
	return err
}

func (r *run) do(ctx context.Context) error {
	e, c := r.engine, r.container
	r.timing.begun = time.Now()
	p, err := r.allocate(ctx)
	if err != nil {
		return err
	}
	r.network = p.network.GetWarnings()
	if err := pointAllocated.Hit(); err != nil {
		return err
	}
	attach := r.open.Attach
	switch {
	case r.open.Detach:
		attach = nil
	case attach == nil:
		attach = new(apiv1.AttachOptions) // wait for the exit
	}

	// Until the start the conversation ends with the job, then with the client.
	talk, hangUp := context.WithCancelCause(r.client.Context())
	defer hangUp(nil)
	r.release = context.AfterFunc(ctx, func() { hangUp(context.Cause(ctx)) })
	defer r.release()

	if c.late {
		r.sync(talk)
	}
	r.launched = true
	begin := time.Now()
	execd, err := e.Backends.Launch().Run(talk)
	if err != nil {
		return err
	}
	open := &execv1.RunRequest_Open{
		Create: &execv1.CreateRequest{
			Id:        c.id,
			Spec:      c.spec,
			Rootfs:    p.rootfs,
			CreatedBy: createdBy(ctx),
			Pending:   c.late,
		},
		Network: p.network,
		Attach:  attach,
	}
	if r.open.Trace || !c.spec.AutoRemove { // else nobody will ever see the steps
		open.Timeline = r.timing.timeline(c.job, r.open.Trace)
	}
	err = execd.Send(&execv1.RunRequest{Message: &execv1.RunRequest_Open_{Open: open}})
	if err != nil && !errors.Is(err, io.EOF) { // EOF: Recv has the reason
		return err
	}
	go relayInput(r.client, execd)
	return r.relayOutput(talk, execd, begin)
}

// sync begins to wait for the disk while execd launches.
func (r *run) sync(ctx context.Context) {
	r.synced = make(chan error, 1)
	go func() {
		_, err := r.engine.Backends.Rootfs().Sync(ctx, &imagev1.SyncRequest{ContainerId: r.container.id})
		r.synced <- err
	}()
}

// confirm makes a container that runs one that survives the machine: nobody may be told
// of one whose record or root file system a power cut could take away. The record comes
// last, so that there is none without a root file system.
func (r *run) confirm(ctx context.Context, launched time.Time) error {
	if !r.container.late {
		return nil
	}
	j := r.container.job
	if err := j.Step("imaged sync", "imaged", func() error { return <-r.synced }); err != nil {
		return err
	}
	if err := pointSynced.Hit(); err != nil {
		return err
	}
	return j.Step("confirm", "execd", func() error {
		_, err := r.engine.Backends.Launch().Confirm(ctx, &execv1.ConfirmRequest{
			Container: r.container.id, Timeline: r.timing.timelineSince(j, launched),
		})
		return err
	})
}

// allocate shows the client the progress of a pull meanwhile.
func (r *run) allocate(ctx context.Context) (parts, error) {
	if r.spare != nil {
		r.container.job.Note("standby", "apid", time.Now())
		return r.engine.use(ctx, r.spare, r.container)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	following := make(chan struct{})
	stop, stopFollowing := context.WithCancel(ctx)
	go func() {
		defer close(following)
		err := r.container.job.Follow(stop, func(p *apiv1.JobProgress) error {
			return r.client.Send(&apiv1.RunResponse{Message: &apiv1.RunResponse_Progress{Progress: p}})
		})
		if err != nil && stop.Err() == nil {
			cancel(err)
		}
	}()
	p, err := r.engine.allocate(ctx, r.container)
	stopFollowing()
	<-following // one goroutine at a time may send
	return p, err
}

// relayInput copies the client's messages to execd until either is done. There
// is no buffer: the client can send only as fast as the container reads. It
// ends with the client's stream, when Run returns.
func relayInput(client runClient, execd runExecd) {
	for {
		m, err := client.Recv()
		if errors.Is(err, io.EOF) {
			execd.CloseSend()
			return
		}
		if err != nil {
			return // the client is gone; that is not the end of its input
		}
		var out execv1.RunRequest
		switch in := m.Message.(type) {
		case *apiv1.RunRequest_Stdin:
			out.Message = &execv1.RunRequest_Stdin{Stdin: in.Stdin}
		case *apiv1.RunRequest_Resize:
			out.Message = &execv1.RunRequest_Resize{Resize: in.Resize}
		case *apiv1.RunRequest_Signal:
			out.Message = &execv1.RunRequest_Signal{Signal: in.Signal}
		default:
			continue
		}
		if execd.Send(&out) != nil {
			return
		}
	}
}

// relayOutput copies execd's messages to the client until the exit or the end.
func (r *run) relayOutput(ctx context.Context, execd runExecd, begin time.Time) error {
	for {
		m, err := execd.Recv()
		if err != nil {
			return r.executorLeft(err)
		}
		since := m.Trace
		switch m := m.Message.(type) {
		case *execv1.RunResponse_Created:
			r.container.job.Target(m.Created.Name)
			r.created = &apiv1.RunResponse{Message: &apiv1.RunResponse_Created_{Created: &apiv1.RunResponse_Created{
				Id: r.container.id, Name: m.Created.Name, Warnings: append(r.network, m.Created.Warnings...),
			}}}
		case *execv1.RunResponse_Started:
			err = r.hasStarted(ctx, m.Started, begin)
		case *execv1.RunResponse_Output:
			err = r.client.Send(&apiv1.RunResponse{Message: &apiv1.RunResponse_Output{Output: m.Output}})
		case *execv1.RunResponse_Exited:
			return r.hasExited(m.Exited, since)
		}
		if err != nil {
			return err
		}
	}
}

// hasStarted ends the job: from now on the container goes on whoever leaves.
func (r *run) hasStarted(ctx context.Context, m *execv1.StartResponse, begin time.Time) error {
	j := r.container.job
	if err := pointLaunched.Hit(); err != nil {
		return err
	}
	j.Note("execd run", "execd", begin)
	if err := r.confirm(ctx, time.Now()); err != nil {
		return err
	}
	if !r.release() {
		return context.Canceled // cancelled this very moment: undo
	}
	r.started = true
	if r.spare != nil && !r.spare.told {
		r.container.announce = r.engine.announceLater(r.client.Context(), r.container.id)
	}
	j.End(r.container.id, nil)
	if r.created != nil {
		if err := r.client.Send(r.created); err != nil {
			return err
		}
	}
	var out apiv1.RunResponse_Started
	if r.open.Trace {
		r.steps = append(r.timing.steps(j), m.Trace...)
		out.Trace = r.timing.settled(r.steps)
	}
	return r.client.Send(&apiv1.RunResponse{Message: &apiv1.RunResponse_Started_{Started: &out}})
}

// hasExited frees name and ports, then tells the client, then removes the rest.
func (r *run) hasExited(exit *apiv1.ExitStatus, since []*apiv1.TraceStep) error {
	told := time.Now()
	ctx, cancel := lasting(r.client.Context())
	defer cancel()
	if err := pointExitSeen.Hit(); err != nil {
		return err
	}
	r.engine.settleRun(ctx, r.container)
	out := &apiv1.RunResponse{Message: &apiv1.RunResponse_Exited{Exited: exit}}
	if r.open.Trace {
		free := trace.Step("free name and ports", apiv1.Stage_STAGE_CLEANUP, told.Sub(r.timing.arrived), time.Since(r.timing.arrived))
		out.Trace = r.timing.settled(append(append(r.steps, since...), free))
	}
	return r.client.Send(out)
}

// executorLeft is the end of execd's stream before an exit.
func (r *run) executorLeft(err error) error {
	switch {
	case errors.Is(err, io.EOF) && r.started && r.open.Detach:
		return nil
	case errors.Is(err, io.EOF):
		err = fault.Internal.Errorf("STREAM_CUT", "execd ended the stream early")
	}
	if !r.started {
		return err
	}
	if fault.HintOf(err) != "" {
		return fmt.Errorf("attached to %s: %w", r.container.id[:12], err)
	}
	return fault.KindOf(err).Errorf("ATTACH_LOST", "attached to %s: %w", r.container.id[:12], err).
		Hint("the container goes on; see it with: berth logs -f %s", r.container.id[:12])
}
