package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	imagev1 "berth/proto/berth/image/v1"
	"berth/services/apid/job"
)

// Containers is those methods of ContainerService that apid answers itself.
type Containers struct {
	apiv1.UnimplementedContainerServiceServer
	*Engine
}

// Create is ContainerService.Create. The container gets its network when it is
// started.
func (s *Containers) Create(req *apiv1.CreateRequest, client grpc.ServerStreamingServer[apiv1.CreateResponse]) error {
	if err := checkSpec(req.Spec); err != nil {
		return err
	}
	ctx, e := client.Context(), s.Engine
	var result *apiv1.CreateResponse_Result
	j, err := e.Jobs.Go(ctx, spec(ctx, "create", req.Spec.Image), func(ctx context.Context, j *job.Job) (string, error) {
		var err error
		result, err = e.create(ctx, container{id: newID(), spec: req.Spec, auth: req.Auth, job: j})
		return result.GetId(), because(ctx, err)
	})
	if err != nil {
		return err
	}
	client.SetHeader(metadata.Pairs(JobIDHeader, j.ID()))
	err = j.Follow(ctx, func(p *apiv1.JobProgress) error {
		return client.Send(&apiv1.CreateResponse{Message: &apiv1.CreateResponse_Progress{Progress: p}})
	})
	if err != nil {
		return err
	}
	return client.Send(&apiv1.CreateResponse{Message: &apiv1.CreateResponse_Result_{Result: result}})
}

func (e *Engine) create(ctx context.Context, c container) (result *apiv1.CreateResponse_Result, err error) {
	defer e.making.add(c.id)()
	launched := false
	defer func() {
		if err != nil {
			e.abandon(ctx, c, launched, err)
		}
	}()
	rootfs, err := e.prepare(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := pointAllocated.Hit(); err != nil {
		return nil, err
	}
	launched = true
	var created *execv1.CreateResponse
	err = c.job.Step("execd create", "execd", func() (err error) {
		ctx, cancel := unbroken(ctx, callTime)
		defer cancel()
		created, err = e.Backends.Launch().Create(ctx, &execv1.CreateRequest{
			Id: c.id, Spec: c.spec, Rootfs: rootfs, CreatedBy: createdBy(ctx),
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	c.job.Target(created.Name)
	return &apiv1.CreateResponse_Result{Id: c.id, Name: created.Name, Warnings: created.Warnings}, nil
}

// Start is ContainerService.Start.
func (s *Containers) Start(ctx context.Context, req *apiv1.StartRequest) (*apiv1.StartResponse, error) {
	e, arrived := s.Engine, time.Now()
	return detachedJob(ctx, e, spec(ctx, "start", req.Container),
		func(ctx context.Context, j *job.Job) (*apiv1.StartResponse, string, error) {
			known, unlock, err := e.own(ctx, req.Container)
			if err != nil {
				return nil, "", err
			}
			defer unlock()
			resp, err := e.start(ctx, j, known, arrived)
			return resp, known.Id, err
		})
}

// own finds a container and takes its lock; it is as it is now that the lock is ours.
func (e *Engine) own(ctx context.Context, name string) (c *apiv1.Container, unlock func(), err error) {
	before := e.locks.ended()
	c, err = e.inspect(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	unlock = e.locks.lock(c.Id)
	if e.locks.ended() != before { // somebody may have had this one
		if c, err = e.inspect(ctx, c.Id); err != nil {
			unlock()
			return nil, nil, err
		}
	}
	return c, unlock, nil
}

// start needs the container's lock, under which it is known. arrived is when the call for it did.
func (e *Engine) start(ctx context.Context, j *job.Job, known *apiv1.Container, arrived time.Time) (resp *apiv1.StartResponse, err error) {
	id := known.Id
	switch known.State {
	case apiv1.ContainerState_CONTAINER_STATE_RUNNING, apiv1.ContainerState_CONTAINER_STATE_PAUSED,
		apiv1.ContainerState_CONTAINER_STATE_RESTARTING:
		return new(apiv1.StartResponse), nil
	}
	c := container{id: id, spec: known.Spec, job: j}
	defer func() {
		if err != nil {
			e.unstart(ctx, id, err)
		}
	}()
	timing := timing{arrived: arrived, begun: time.Now()}
	p, err := e.partsOf(ctx, c, known.State == apiv1.ContainerState_CONTAINER_STATE_CREATED)
	if err != nil {
		return nil, err
	}
	var started *execv1.StartResponse
	request := &execv1.StartRequest{Id: id, Network: p.network, Rootfs: p.rootfs, Timeline: timing.timeline(j, true)}
	err = j.Step("execd start", "execd", func() (err error) {
		ctx, cancel := context.WithTimeout(ctx, launchTime)
		defer cancel()
		started, err = e.Backends.Launch().Start(ctx, request)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &apiv1.StartResponse{
		Trace:    timing.settled(append(timing.steps(j), started.Trace...)),
		Warnings: append(p.network.GetWarnings(), started.Warnings...),
	}, nil
}

// partsOf gets the parts of a container that exists; fresh: it has never run.
func (e *Engine) partsOf(ctx context.Context, c container, fresh bool) (parts, error) {
	var p parts
	rootfs := func(ctx context.Context) error {
		return c.job.Step("imaged get", "imaged", func() error {
			ctx, cancel := context.WithTimeout(ctx, callTime)
			defer cancel()
			resp, err := e.Backends.Rootfs().Get(ctx, &imagev1.GetRequest{ContainerId: c.id})
			p.rootfs = resp.GetRootfs()
			return err
		})
	}
	network := func(ctx context.Context, ports []*apiv1.PortMapping) (err error) {
		// The janitor may not have come round to what the last run left. What a start left that was broken off is as good
		// as new.
		if !fresh {
			if err := e.detach(ctx, c.id); err != nil {
				return err
			}
		}
		p.network, err = e.attach(ctx, c, ports)
		return err
	}
	if c.spec.Network.GetPublishAll() {
		if err := rootfs(ctx); err != nil {
			return p, err
		}
		return p, network(ctx, allPorts(c.spec.Network, p.rootfs.GetConfig().GetExposedPorts()))
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return rootfs(ctx) })
	group.Go(func() error { return network(ctx, nil) })
	return p, group.Wait()
}

// unstart takes the network back, unless the container may be running: then
// the reconciler decides.
func (e *Engine) unstart(ctx context.Context, id string, cause error) {
	switch fault.KindOf(cause) {
	case fault.Unavailable, fault.DeadlineExceeded, fault.Cancelled:
		e.wakeLater()
		return
	}
	ctx, cancel := lasting(ctx)
	defer cancel()
	if err := e.detach(ctx, id); err != nil {
		e.Log.Warn("endpoint left for the reconciler", "container", id, "error", err)
		e.wakeLater()
	}
}

// Stop is ContainerService.Stop. Its answer means that names and ports are free.
func (s *Containers) Stop(ctx context.Context, req *apiv1.StopRequest) (*apiv1.StopResponse, error) {
	e := s.Engine
	return detachedJob(ctx, e, spec(ctx, "stop", req.Container),
		func(ctx context.Context, j *job.Job) (*apiv1.StopResponse, string, error) {
			stopped, err := e.stop(ctx, j, &execv1.StopRequest{Container: req.Container, Timeout: req.Timeout, Signal: req.Signal})
			if err != nil {
				return nil, "", err
			}
			if !stopped.WasStopped {
				e.settleSoon(ctx, stopped.Id)
			}
			return new(apiv1.StopResponse), stopped.Id, nil
		})
}

const forever = 10 * 365 * 24 * time.Hour

func (e *Engine) stop(ctx context.Context, j *job.Job, req *execv1.StopRequest) (*execv1.StopResponse, error) {
	// Always a deadline of our own: without one execd would set its default.
	limit := time.Hour // for the container's own timeout, which execd knows
	if req.Timeout != nil {
		limit = req.Timeout.AsDuration() + callTime // execd takes up to 10 s for SIGKILL
		if req.Timeout.AsDuration() < 0 {
			limit = forever
		}
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var resp *execv1.StopResponse
	err := j.Step("execd stop", "execd", func() (err error) {
		resp, err = e.Backends.Launch().Stop(ctx, req)
		return err
	})
	return resp, err
}

// Restart is ContainerService.Restart. The lock is held from stop to start, so
// that nobody takes the container for one that has ended.
func (s *Containers) Restart(ctx context.Context, req *apiv1.RestartRequest) (*apiv1.RestartResponse, error) {
	e := s.Engine
	return detachedJob(ctx, e, spec(ctx, "restart", req.Container),
		func(ctx context.Context, j *job.Job) (*apiv1.RestartResponse, string, error) {
			c, unlock, err := e.own(ctx, req.Container)
			if err != nil {
				return nil, "", err
			}
			err = e.restart(ctx, j, c, req)
			unlock()
			if err != nil {
				e.settleSoon(ctx, c.Id)
				return nil, "", err
			}
			return new(apiv1.RestartResponse), c.Id, nil
		})
}

// restart needs the container's lock, under which it is c.
func (e *Engine) restart(ctx context.Context, j *job.Job, c *apiv1.Container, req *apiv1.RestartRequest) error {
	if c.GetSpec().GetAutoRemove() {
		// execd forgets it, and frees its name, the moment it exits.
		return fault.FailedPrecondition.Errorf("REMOVED_ON_EXIT", "container %s is removed when it stops, so it cannot be restarted", c.Name).
			With("container", c.Name).
			Hint("stop it and run it again, without --rm if it is to be restarted")
	}
	if _, err := e.stop(ctx, j, &execv1.StopRequest{Container: c.Id, Timeout: req.Timeout}); err != nil {
		return err
	}
	stopped, err := e.inspect(ctx, c.Id)
	if err != nil {
		return err
	}
	_, err = e.start(ctx, j, stopped, time.Now()) // stopping is not part of the start
	return err
}

// Remove is ContainerService.Remove.
func (s *Containers) Remove(ctx context.Context, req *apiv1.RemoveRequest) (*apiv1.RemoveResponse, error) {
	e := s.Engine
	return detachedJob(ctx, e, spec(ctx, "rm", req.Container),
		func(ctx context.Context, j *job.Job) (*apiv1.RemoveResponse, string, error) {
			id, err := e.remove(ctx, j, req)
			return new(apiv1.RemoveResponse), id, err
		})
}

// remove removes the record, which is the container; the rest follows, if not
// now then by the reconciler. The lock keeps the janitor from taking the removal
// for an exit.
func (e *Engine) remove(ctx context.Context, j *job.Job, req *apiv1.RemoveRequest) (id string, err error) {
	c, unlock, err := e.own(ctx, req.Container)
	if err != nil {
		return "", err
	}
	defer unlock()
	id = c.Id
	err = j.Step("execd remove", "execd", func() error {
		ctx, cancel := context.WithTimeout(ctx, callTime)
		defer cancel()
		_, err := e.Backends.Launch().Remove(ctx, &execv1.RemoveRequest{Container: id, Force: req.Force})
		return err
	})
	if err != nil {
		return "", err
	}
	e.gone.add(id)
	if err := pointForgotten.Hit(); err != nil {
		return "", err
	}
	ctx, cancel := lasting(ctx)
	defer cancel()
	err = j.Step("release", "", func() error { return e.release(ctx, id, req.Volumes) })
	if err != nil {
		e.Log.Warn("parts of a removed container left for the reconciler", "container", id, "error", err)
		e.wakeLater()
	}
	return id, nil
}

// Prune is ContainerService.Prune.
func (s *Containers) Prune(ctx context.Context, req *apiv1.PruneRequest) (*apiv1.PruneResponse, error) {
	e := s.Engine
	return detachedJob(ctx, e, spec(ctx, "prune", "containers"),
		func(ctx context.Context, j *job.Job) (*apiv1.PruneResponse, string, error) {
			resp, err := e.prune(ctx, j, req.Filters)
			return resp, fmt.Sprintf("%d containers", len(resp.GetIds())), err
		})
}

func (e *Engine) prune(ctx context.Context, j *job.Job, filters []string) (*apiv1.PruneResponse, error) {
	listed := []string{"status=created", "status=exited", "status=dead"}
	var before time.Time
	for _, f := range filters {
		until, ok := strings.CutPrefix(f, "until=")
		if !ok {
			listed = append(listed, f)
			continue
		}
		var err error
		if before, err = parseUntil(until, time.Now()); err != nil {
			return nil, err
		}
	}
	resp := new(apiv1.PruneResponse)
	used := e.rootfsBytes(ctx)
	for token := ""; ; {
		page, err := e.Backends.Containers().List(ctx, &apiv1.ListRequest{All: true, Filters: listed, PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, c := range page.Containers {
			if !before.IsZero() && !c.CreatedAt.AsTime().Before(before) {
				continue
			}
			_, err := e.remove(ctx, j, &apiv1.RemoveRequest{Container: c.Id, Volumes: true})
			switch {
			case err == nil:
				resp.Ids = append(resp.Ids, c.Id)
			case errors.Is(err, fault.NotFound), errors.Is(err, fault.FailedPrecondition): // removed or started meanwhile
			default:
				return nil, err
			}
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	resp.ReclaimedBytes = max(0, used-e.rootfsBytes(ctx))
	return resp, nil
}

// rootfsBytes is what writable layers take, 0 if imaged does not say.
func (e *Engine) rootfsBytes(ctx context.Context) int64 {
	usage, err := e.Backends.Store().Usage(ctx, new(imagev1.UsageRequest))
	if err != nil {
		return 0
	}
	return usage.RootfsBytes
}

// parseUntil reads what Docker's "until" filter takes: a duration before now or
// a time.
func parseUntil(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fault.InvalidArgument.Errorf("BAD_FILTER", "until=%s is neither a duration nor a time", s)
}

// Diff is ContainerService.Diff.
func (s *Containers) Diff(ctx context.Context, req *apiv1.DiffRequest) (*apiv1.DiffResponse, error) {
	c, err := s.inspect(ctx, req.Container)
	if err != nil {
		return nil, err
	}
	resp, err := s.Backends.Store().Changes(ctx, &imagev1.ChangesRequest{ContainerId: c.Id})
	if err != nil {
		return nil, err
	}
	return &apiv1.DiffResponse{Changes: resp.Changes}, nil
}

// Networks is those methods of NetworkService that name a container.
type Networks struct {
	apiv1.UnimplementedNetworkServiceServer
	*Engine
}

// Connect is NetworkService.Connect.
func (s *Networks) Connect(ctx context.Context, req *apiv1.NetworkServiceConnectRequest) (*apiv1.NetworkServiceConnectResponse, error) {
	c, err := s.inspect(ctx, req.Container)
	if err != nil {
		return nil, err
	}
	defer s.locks.lock(c.Id)()
	return apiv1.NewNetworkServiceClient(s.Backends.Netd.Conn).Connect(ctx, &apiv1.NetworkServiceConnectRequest{
		Network: req.Network, Container: c.Id, Aliases: append(req.Aliases, c.Name), Ip: req.Ip,
	})
}

// Disconnect is NetworkService.Disconnect.
func (s *Networks) Disconnect(ctx context.Context, req *apiv1.NetworkServiceDisconnectRequest) (*apiv1.NetworkServiceDisconnectResponse, error) {
	c, err := s.inspect(ctx, req.Container)
	if err != nil {
		return nil, err
	}
	defer s.locks.lock(c.Id)()
	return apiv1.NewNetworkServiceClient(s.Backends.Netd.Conn).Disconnect(ctx, &apiv1.NetworkServiceDisconnectRequest{
		Network: req.Network, Container: c.Id, Force: req.Force,
	})
}
