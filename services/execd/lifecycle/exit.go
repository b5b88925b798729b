package lifecycle

import (
	"context"
	"time"

	"berth/services/execd/container"
	"berth/services/execd/monitor/wire"
)

// onExit hears from the monitor that a process has ended. It returns at once:
// the one who calls reads all news of the monitor.
func (m *Manager) onExit(e *wire.Exit) {
	if e.Exec != "" {
		if m.sessions.ended(e) {
			m.exits.Go(func() { m.execDied(e) })
		}
		return
	}
	m.exits.Go(func() {
		select {
		case <-m.recovered:
		case <-m.life.Done():
			return // the next execd hears of it
		}
		m.containerEnded(e)
	})
}

// onLost hears of a container that could not be handed to a new monitor.
func (m *Manager) onLost(id string, pid int, err error) {
	m.exits.Go(func() {
		c, err2 := m.Containers.Find(id)
		if err2 != nil {
			return
		}
		if err := m.deleteGroup(c.Info().Cgroup); err != nil {
			m.Log.Error("end container that has no monitor", "container", id, "error", err)
		}
		m.containerEnded(&wire.Exit{ID: id, Pid: pid, Code: 255, At: time.Now(), Error: "the monitor died: " + err.Error()})
	})
}

// containerEnded records the end of a container's run. Telling it twice is
// harmless.
func (m *Manager) containerEnded(e *wire.Exit) {
	c, err := m.Containers.Find(e.ID)
	if err != nil {
		m.forget(e.ID)
		return
	}
	// The end may overtake the start's own bookkeeping.
	i, err := c.Wait(m.life, func(i *container.Info) bool { return i.State != container.Starting })
	if err != nil || !i.State.Up() || e.Pid != i.Pid {
		return
	}
	if exitSeen.Hit() != nil {
		return
	}
	switch {
	case i.AutoRemove():
		m.endAndRemove(c, i, e)
	case m.restarts.wants(i, e):
		m.endAndRestart(c, e)
	default:
		m.endPlainly(c, e)
	}
	m.forget(e.ID)
}

// endPlainly records the exit of a container that stays.
func (m *Manager) endPlainly(c *container.Container, e *wire.Exit) {
	i, err := c.Must(container.Exit, func(i *container.Info) { noteExit(i, e) })
	if err != nil {
		m.Log.Error("record exit", "container", e.ID, "error", err)
	}
	if i == nil {
		return
	}
	m.tellExit(i)
	m.sweepLater(c, false)
}

// endAndRemove takes the record and the name away before anybody hears of the
// exit: who runs `run --rm --name x` again at once finds x free.
func (m *Manager) endAndRemove(c *container.Container, i *container.Info, e *wire.Exit) {
	m.Containers.Drop(c)
	if err := m.Records.Delete(i); err != nil {
		m.Log.Error("delete record", "container", e.ID, "error", err)
	}
	if recordRemoved.Hit() != nil {
		return
	}
	i, err := c.Must(container.Exit, func(i *container.Info) { noteExit(i, e) })
	if err != nil {
		m.Log.Error("record exit", "container", e.ID, "error", err)
	}
	if i == nil {
		return
	}
	m.tellExit(i)
	c.Move(container.Remove, nil)
	c.Move(container.Removed, nil)
	m.Events.Emit("container", "destroy", i.ID, attributes(i))
	m.sweepLater(c, true)
}

func noteExit(i *container.Info, e *wire.Exit) {
	i.Exit = &container.ExitStatus{Code: int32(e.Code), OOM: e.OOM, Error: e.Error, At: e.At}
	i.Trace = afterStart(i.Trace, e)
	i.Runs++
	i.Pid = 0
}

func (m *Manager) tellExit(i *container.Info) {
	if i.Exit.OOM {
		m.Events.Emit("container", "oom", i.ID, attributes(i))
	}
	m.Events.Emit("container", "die", i.ID, exitAttributes(i))
}

// forget lets the monitor drop the status: it is recorded.
func (m *Manager) forget(id string) {
	ctx, cancel := context.WithTimeout(m.life, time.Second)
	defer cancel()
	if err := m.keeper.Forget(ctx, id); err != nil && m.life.Err() == nil {
		m.Log.Debug("tell the monitor to forget", "container", id, "error", err)
	}
}
