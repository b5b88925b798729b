package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"berth/internal/fault"
	"berth/libcontainer/clock"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/execd/container"
	"berth/services/execd/monitor/wire"
)

// Back-off between restarts: doubling from the first to the last, and beginning
// anew after a run of healthyRun.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = time.Minute
	healthyRun   = 10 * time.Second
)

// restarts starts containers again that ended by themselves, if their policy
// says so. What it needs for that it keeps beside the container's other files:
// the request to the monitor, as it was.
type restarts struct {
	mu      sync.Mutex
	waiting map[string]context.CancelFunc
}

func checkRestart(spec *apiv1.ContainerSpec) error {
	r := spec.GetRestart()
	switch r.GetName() {
	case "", "no", "always", "on-failure", "unless-stopped":
	default:
		return fault.InvalidArgument.Errorf("RESTART", "restart policy %q: want no, always, on-failure or unless-stopped", r.Name)
	}
	if r.GetMaxRetries() < 0 || (r.GetMaxRetries() > 0 && r.GetName() != "on-failure") {
		return fault.InvalidArgument.Errorf("RESTART", "a number of retries goes with restart policy on-failure only")
	}
	if restarting(spec) && spec.AutoRemove {
		return fault.InvalidArgument.Errorf("RESTART", "restart policy %q and automatic removal exclude each other", r.Name)
	}
	return nil
}

func restarting(spec *apiv1.ContainerSpec) bool {
	name := spec.GetRestart().GetName()
	return name != "" && name != "no"
}

// launchFile keeps the request to the monitor.
const launchFile = "launch"

func (r *restarts) keep(dir string, i *container.Info, req *wire.Launch) error {
	if !restarting(i.Spec) {
		return nil
	}
	b, err := json.Marshal(req)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, launchFile), b, 0o600)
	}
	return wrap("keep launch for restarts", err)
}

// wants says whether the policy asks for another start.
func (r *restarts) wants(i *container.Info, e *wire.Exit) bool {
	if i.Stopped {
		return false
	}
	policy := i.Spec.GetRestart()
	switch policy.GetName() {
	case "always", "unless-stopped":
		return true
	case "on-failure":
		return e.Code != 0 && (policy.MaxRetries == 0 || i.RestartCount < policy.MaxRetries)
	}
	return false
}

// backoff is the time before restart number n, counted from 0.
func backoff(n int32) time.Duration {
	if n > 20 {
		return lastBackoff
	}
	return min(firstBackoff<<n, lastBackoff)
}

// endAndRestart records the end of a run and starts the next after a while.
func (m *Manager) endAndRestart(c *container.Container, e *wire.Exit) {
	ran := e.At.Sub(c.Info().StartedAt)
	i, err := c.Must(container.Again, func(i *container.Info) {
		noteExit(i, e)
		if ran > healthyRun && i.Spec.GetRestart().GetName() != "on-failure" {
			i.RestartCount = 0
		}
	})
	if err != nil {
		m.Log.Error("record exit", "container", e.ID, "error", err)
	}
	if i == nil {
		return
	}
	m.tellExit(i)
	m.scheduleRestart(c, i)
}

func (m *Manager) scheduleRestart(c *container.Container, i *container.Info) {
	ctx, cancel := context.WithCancel(m.life)
	m.restarts.mu.Lock()
	if m.restarts.waiting == nil {
		m.restarts.waiting = make(map[string]context.CancelFunc)
	}
	m.restarts.waiting[i.ID] = cancel
	m.restarts.mu.Unlock()
	m.exits.Go(func() {
		select {
		case <-time.After(backoff(i.RestartCount)):
		case <-ctx.Done():
			return
		}
		if err := m.restart(ctx, c); err != nil && ctx.Err() == nil {
			m.Log.Warn("restart container", "container", i.ID, "error", err)
		}
	})
}

// cancel keeps a scheduled restart from happening.
func (r *restarts) cancel(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cancel := r.waiting[id]; cancel != nil {
		cancel()
		delete(r.waiting, id)
	}
}

// restart runs the container again with the namespace and root file system it
// had.
func (m *Manager) restart(ctx context.Context, c *container.Container) error {
	c.Work.Lock()
	defer c.Work.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	i, err := c.Move(container.Start, nil)
	if err != nil {
		return err
	}
	timeline := &Timeline{begun: clock.Now()}
	got, err := m.relaunch(ctx, i)
	if err != nil {
		m.startFailed(c, err)
		return err
	}
	i, err = c.Move(container.Started, func(i *container.Info) {
		i.Pid, i.StartedAt, i.Cgroup, i.Cgroups = got.Pid, got.StartedAt, got.Cgroup, got.Cgroups
		i.Trace = timeline.launched(got)
		i.RestartCount++
	})
	if err != nil {
		return err
	}
	m.Events.Emit("container", "start", i.ID, attributes(i))
	return nil
}

func (m *Manager) relaunch(ctx context.Context, i *container.Info) (*wire.Launched, error) {
	b, err := os.ReadFile(filepath.Join(m.runDir(i.ID), launchFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the plan of the last run is gone: %w", err)
	}
	if err != nil {
		return nil, err
	}
	req := new(wire.Launch)
	if err := json.Unmarshal(b, req); err != nil {
		return nil, fmt.Errorf("read the plan of the last run: %w", err)
	}
	req.Attach = nil
	return m.launch(ctx, i, nil, req, nil)
}
