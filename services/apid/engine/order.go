package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	imagev1 "berth/proto/berth/image/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/apid/backend"
)

// This file keeps order: what an exit leaves, by the janitor as it happens; what
// a crash leaves, by the reconciler.

// settle takes the endpoint of a container that has exited, and, if it is one to
// remove on exit, everything else. It does nothing for one that runs, or will be
// restarted. It is right at any time and any number of times.
func (e *Engine) settle(ctx context.Context, id string) error {
	if e.gone.has(id) {
		return nil
	}
	defer e.locks.lock(id)()
	if e.gone.has(id) {
		return nil
	}
	c, err := e.inspect(ctx, id)
	switch {
	case errors.Is(err, fault.NotFound):
		// execd removed the record on exit. (A job that removes one holds the
		// lock, and has noted by now that it is gone.)
		e.gone.add(id)
		return e.release(ctx, id, true)
	case err != nil:
		return err
	}
	switch c.State {
	case apiv1.ContainerState_CONTAINER_STATE_EXITED, apiv1.ContainerState_CONTAINER_STATE_DEAD:
	default:
		return nil
	}
	if err := pointExitSeen.Hit(); err != nil {
		return err
	}
	if !c.GetSpec().GetAutoRemove() {
		return e.detach(ctx, id)
	}
	return e.removeExited(ctx, id)
}

// removeExited needs the container's lock.
func (e *Engine) removeExited(ctx context.Context, id string) error {
	if _, err := e.Backends.Launch().Remove(ctx, &execv1.RemoveRequest{Container: id}); err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	e.gone.add(id)
	return e.release(ctx, id, true)
}

// settleSoon settles within the call and leaves what fails to the reconciler.
func (e *Engine) settleSoon(ctx context.Context, id string) {
	ctx, cancel := lasting(ctx)
	defer cancel()
	if err := e.settle(ctx, id); err != nil {
		e.Log.Warn("exited container left for the reconciler", "container", id, "error", err)
		e.wakeLater()
	}
}

// afterReply is how long the work that follows a reply waits for the reply to have
// left: gRPC's writer lets other goroutines go first, and this is a long one.
const afterReply = 2 * time.Millisecond

// settleRun is settle for the container of an attached run, whose exit we have
// just been told of: without asking for what we know (of a container to remove
// on exit execd tells when it has dropped the record), and with all
// that nobody waits for removed after the reply.
func (e *Engine) settleRun(ctx context.Context, c container) {
	if policy := c.spec.Restart.GetName(); policy != "" && policy != "no" {
		e.settleSoon(ctx, c.id) // execd may be restarting it
		return
	}
	defer e.locks.lock(c.id)()
	if e.gone.has(c.id) {
		return
	}
	if c.spec.AutoRemove && !coveted(c.spec.Network) {
		e.gone.add(c.id)
		done := e.standby.trail()
		e.background(ctx, func(ctx context.Context) {
			defer done()
			pause(ctx, afterReply)
			if c.announce != nil {
				c.announce()
			}
			if e.release(ctx, c.id, true) != nil {
				e.wakeLater()
			}
			e.standBy(ctx, c)
		})
		return
	}
	err := e.detach(ctx, c.id)
	if c.spec.AutoRemove {
		e.gone.add(c.id)
		done := e.standby.trail()
		e.background(ctx, func(ctx context.Context) {
			defer done()
			_, err := e.Backends.Rootfs().Release(ctx, &imagev1.ReleaseRequest{ContainerId: c.id, AnonymousVolumes: true})
			if err != nil {
				e.wakeLater()
			}
			e.standBy(ctx, c)
		})
	}
	if err != nil {
		e.Log.Warn("exited container left for the reconciler", "container", c.id, "error", err)
		e.wakeLater()
	}
}

// coveted reports whether an endpoint may have what the client, told of the exit, could want for something else at once:
// ports, an address of its choice, or a network that it could remove now.
func coveted(n *apiv1.NetworkSpec) bool {
	switch n.GetMode() {
	case "", defaultNetwork, "none", "host":
		return len(n.GetPorts()) > 0 || n.GetPublishAll() || n.GetIp() != "" || n.GetMacAddress() != ""
	}
	return true
}

// defaultNetwork is always there; containers that name no network are in it.
const defaultNetwork = "bridge"

// attendance is how long an attached run has to settle its container before the janitor looks: both at once would ask
// everything twice while the client waits.
const attendance = 100 * time.Millisecond

// janitor settles each container whose exit execd reports. What it misses while
// execd is away the reconciler sees when execd is back.
func (e *Engine) janitor(ctx context.Context) {
	const atOnce = 8
	slots := make(chan struct{}, atOnce)
	var working sync.WaitGroup
	defer working.Wait()
	since := time.Now()
	for ctx.Err() == nil {
		stream, err := apiv1.NewEventServiceClient(e.Backends.Execd.Conn).Watch(backend.Unguarded(ctx), &apiv1.EventServiceWatchRequest{
			Since: timestamppb.New(since), Filters: []string{"type=container", "event=die"},
		})
		for err == nil {
			var m *apiv1.EventServiceWatchResponse
			if m, err = stream.Recv(); err != nil {
				break
			}
			if t := m.Event.GetTime().AsTime(); t.After(since) {
				since = t
			}
			if m.Event.GetType() != "container" || m.Event.GetAction() != "die" {
				continue
			}
			id := m.Event.Id
			if e.attended.has(id) {
				working.Go(func() {
					pause(ctx, attendance)
					e.settleSoon(ctx, id)
				})
				continue
			}
			slots <- struct{}{}
			working.Go(func() {
				defer func() { <-slots }()
				e.settleSoon(ctx, id)
			})
		}
		e.Log.Debug("events of execd interrupted", "error", err)
		pause(ctx, 500*time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// wakeLater wakes the reconciler when what failed just now has had time to pass.
func (e *Engine) wakeLater() { time.AfterFunc(time.Second, e.wake) }

// reconcileLoop reconciles whenever it is woken, and again if that failed for
// another reason than an absent daemon, which will wake it when it is back.
func (e *Engine) reconcileLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.kick:
		}
		if err := e.Reconcile(ctx); err != nil && ctx.Err() == nil {
			e.Log.Debug("not reconciled", "error", err)
			if !errors.Is(err, fault.Unavailable) {
				time.AfterFunc(10*time.Second, e.wake)
			}
		}
	}
}

// Reconcile releases what belongs to no container and settles those that have
// exited. It needs execd: without it nothing may be taken away.
//
// The order of the questions matters. A job adds its id to making before it asks
// imaged or netd for anything, and takes it out after execd has the record. So
// an id that they knew before we looked into making, that was not in there, and
// that execd did not know after that, is nobody's.
func (e *Engine) Reconcile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := e.removeDoomed(ctx); err != nil {
		return err
	}
	rootfs, imagedErr := e.Backends.Rootfs().List(ctx, new(imagev1.ListRequest))
	endpoints, netdErr := e.Backends.Endpoints().List(ctx, new(networkv1.ListRequest))
	making := e.making.snapshot()
	known, err := e.Backends.Launch().ListIds(ctx, new(execv1.ListIdsRequest))
	if err != nil {
		return err
	}
	entries := make(map[string]*execv1.ListIdsResponse_Entry, len(known.Entries))
	for _, entry := range known.Entries {
		entries[entry.Id] = entry
	}
	errs := []error{imagedErr, netdErr}
	note := func(what, id string, err error) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		e.Log.Info("reconciled", "action", what, "container", id)
	}

	attached := map[string]bool{}
	for _, p := range endpoints.GetEndpoints() {
		attached[p.ContainerId] = true
	}
	for id := range attached {
		if entries[id] == nil && !making[id] {
			note("release endpoint", id, e.detach(ctx, id))
		}
	}
	for _, r := range rootfs.GetRootfs() {
		if id := r.ContainerId; entries[id] == nil && !making[id] {
			_, err := e.Backends.Rootfs().Release(ctx, &imagev1.ReleaseRequest{ContainerId: id, AnonymousVolumes: true})
			note("release root file system", id, err)
		}
	}
	for id, entry := range entries {
		ended := entry.State == apiv1.ContainerState_CONTAINER_STATE_EXITED || entry.State == apiv1.ContainerState_CONTAINER_STATE_DEAD
		if ended && !entry.Active && (attached[id] || entry.AutoRemove) {
			note("settle", id, e.settle(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// removeDoomed removes the containers whose making failed while execd was away: it may have recorded them before, and
// their asker was told that it failed. Their other parts go as those of no container.
func (e *Engine) removeDoomed(ctx context.Context) error {
	for id := range e.doomed.snapshot() {
		_, err := e.Backends.Launch().Remove(ctx, &execv1.RemoveRequest{Container: id, Force: true})
		if err != nil && !errors.Is(err, fault.NotFound) {
			return err
		}
		e.doomed.remove(id)
		e.gone.add(id)
		e.Log.Info("reconciled", "action", "remove half-made container", "container", id)
	}
	return nil
}
