package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"berth/internal/fault"
	"berth/libcontainer/cgroup"
	"berth/services/execd/container"
	"berth/services/execd/monitor/wire"
)

const (
	// DefaultStopTimeout is between stop signal and SIGKILL, unless the engine's
	// configuration, the container or the caller says otherwise.
	DefaultStopTimeout = 10 * time.Second
	// killTimeout is how long after SIGKILL a process may take to end.
	killTimeout = 10 * time.Second
)

// Stop sends a signal (0: the container's stop signal), waits, kills, and
// answers with how the run ended; was: it did not run. A timeout of 0 means the
// container's own, a negative one to wait for ever; pass a nanosecond to kill at
// once.
func (m *Manager) Stop(ctx context.Context, c *container.Container, timeout time.Duration, sig int) (info *container.Info, was bool, err error) {
	i, err := m.settled(ctx, c)
	if err != nil {
		return nil, false, err
	}
	if i.State == container.Restarting {
		m.restarts.cancel(i.ID)
		c.Edit(func(i *container.Info) error { i.Stopped = true; return nil })
		i, err = c.Move(container.GiveUp, nil)
		if err == nil {
			return i, false, nil
		}
		if i, err = m.settled(ctx, c); err != nil {
			return nil, false, err
		}
	}
	if !i.State.Up() {
		return i, true, nil
	}
	run := i.Runs
	if _, err := c.Edit(func(i *container.Info) error { i.Stopped = true; return nil }); err != nil {
		m.Log.Warn("note stop", "container", i.ID, "error", err)
	}
	over := func(i *container.Info) bool { return i.Runs != run || !i.State.Active() }
	if timeout == 0 {
		timeout = m.stopTimeout(i)
	}
	if timeout != time.Nanosecond {
		if sig == 0 {
			sig = stopSignal(i)
		}
		if err := m.signal(ctx, c, i, sig); err != nil && !errors.Is(err, fault.FailedPrecondition) {
			return nil, false, err
		}
		if i, ok, err := waitFor(ctx, c, timeout, over); ok || err != nil {
			if ok {
				m.Events.Emit("container", "stop", i.ID, attributes(i))
			}
			return i, false, err
		}
	}
	m.kill(ctx, c, i)
	i, ok, err := waitFor(ctx, c, killTimeout, over)
	if err != nil {
		return nil, false, err
	}
	if !ok {
		c.Edit(func(i *container.Info) error {
			i.Warnings = append(i.Warnings[:len(i.Warnings):len(i.Warnings)], "stopping: "+errStopTimeout.Error())
			return nil
		})
		return nil, false, stopTimeoutError(i)
	}
	m.Events.Emit("container", "stop", i.ID, attributes(i))
	return i, false, nil
}

func (m *Manager) stopTimeout(i *container.Info) time.Duration {
	if t := i.Spec.GetStopTimeout(); t != nil {
		if d := t.AsDuration(); d != 0 {
			return d
		}
		return time.Nanosecond
	}
	if d := time.Duration(m.Builder.Defaults.StopTimeout); d > 0 {
		return d
	}
	return DefaultStopTimeout
}

// settled waits until the container is not just starting.
func (m *Manager) settled(ctx context.Context, c *container.Container) (*container.Info, error) {
	return c.Wait(ctx, func(i *container.Info) bool { return i.State != container.Starting })
}

// waitFor waits until done holds or for the time; a negative one is for ever.
func waitFor(ctx context.Context, c *container.Container, d time.Duration, done func(*container.Info) bool) (*container.Info, bool, error) {
	wait, cancel := ctx, context.CancelFunc(func() {})
	if d >= 0 {
		wait, cancel = context.WithTimeout(ctx, d)
	}
	defer cancel()
	i, err := c.Wait(wait, done)
	if err == nil {
		return i, true, nil
	}
	if ctx.Err() != nil {
		return i, false, context.Cause(ctx)
	}
	return i, false, nil
}

// signal reaches a paused container too: it is thawed, for a frozen process
// takes no signal.
func (m *Manager) signal(ctx context.Context, c *container.Container, i *container.Info, sig int) error {
	if err := m.keeper.Signal(ctx, target(i), sig); err != nil {
		return commandError(err)
	}
	if i.State == container.Paused {
		return m.Unpause(c)
	}
	return nil
}

// kill ends all processes of the container. Signalling the first is enough
// where it has a PID namespace of its own; the cgroup gets the rest.
func (m *Manager) kill(ctx context.Context, c *container.Container, i *container.Info) {
	if err := m.keeper.Signal(ctx, target(i), 9); err != nil {
		m.Log.Debug("kill first process", "container", i.ID, "error", err)
	}
	go func() {
		over := func(now *container.Info) bool { return now.Runs != i.Runs || !now.State.Up() }
		if _, gone, _ := waitFor(m.life, c, 100*time.Millisecond, over); gone {
			return
		}
		g, err := m.parent.Open(i.Cgroup)
		if err == nil {
			err = g.Kill()
			g.Close()
		}
		if err != nil && !errors.Is(err, cgroup.ErrNotFound) {
			m.Log.Warn("kill cgroup", "container", i.ID, "error", err)
		}
	}()
}

// Kill sends a signal to the first process.
func (m *Manager) Kill(ctx context.Context, c *container.Container, sig int) error {
	i, err := m.settled(ctx, c)
	if err != nil {
		return err
	}
	if !i.State.Up() {
		return notRunning(i)
	}
	const sigkill = 9
	if sig == sigkill {
		// Somebody wants it to stay down, and a frozen one to go.
		c.Edit(func(i *container.Info) error { i.Stopped = true; return nil })
		if i.State == container.Paused {
			m.kill(ctx, c, i)
			m.Events.Emit("container", "kill", i.ID, attributes(i, "signal", strconv.Itoa(sig)))
			return nil
		}
	}
	if err := m.keeper.Signal(ctx, target(i), sig); err != nil {
		return commandError(err)
	}
	m.Events.Emit("container", "kill", i.ID, attributes(i, "signal", strconv.Itoa(sig)))
	return nil
}

// Signal is Kill for a client attached to the process of a target.
func (m *Manager) Signal(ctx context.Context, t wire.Target, sig int) error {
	return commandError(m.keeper.Signal(ctx, t, sig))
}

// Pause freezes all processes.
func (m *Manager) Pause(c *container.Container) error {
	c.Work.Lock()
	defer c.Work.Unlock()
	if _, err := c.Info().State.Next(container.Pause); err != nil {
		return err
	}
	if err := m.withGroup(c, (*cgroup.Group).Freeze); err != nil {
		return groupError(c, "pause container", err)
	}
	i, err := c.Move(container.Pause, nil)
	if err != nil {
		m.withGroup(c, (*cgroup.Group).Thaw)
		return err
	}
	m.Events.Emit("container", "pause", i.ID, attributes(i))
	return nil
}

// Unpause lets them go on.
func (m *Manager) Unpause(c *container.Container) error {
	c.Work.Lock()
	defer c.Work.Unlock()
	if _, err := c.Info().State.Next(container.Unpause); err != nil {
		return err
	}
	if err := m.withGroup(c, (*cgroup.Group).Thaw); err != nil {
		return groupError(c, "unpause container", err)
	}
	i, err := c.Move(container.Unpause, nil)
	if err != nil {
		return err
	}
	m.Events.Emit("container", "unpause", i.ID, attributes(i))
	return nil
}

// groupError: the container may have ended under our hands, cgroup and all.
func groupError(c *container.Container, what string, err error) error {
	if i := c.Info(); !i.State.Up() {
		return notRunning(i)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (m *Manager) withGroup(c *container.Container, f func(*cgroup.Group) error) error {
	g, err := m.Group(c.Info())
	if err != nil {
		return err
	}
	defer g.Close()
	return f(g)
}
