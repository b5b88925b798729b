package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"berth/libcontainer/cgroup"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/execd/container"
	"berth/services/execd/monitor"
	"berth/services/execd/monitor/starter"
	"berth/services/execd/monitor/wire"
)

// recover makes records, monitor and host agree again. What it finds:
//
//	record says       the monitor has it         it does not
//	created, exited   -                          as it was
//	starting          running: it is             undone: the start has failed;
//	                                             if the machine went down it is
//	                                             taken for one that ran
//	running, paused   running: it is             exit file: that is the end;
//	                  ended: that is the end     else killed, status 255
//	restarting        -                          started again
//	removing          -                          removed
//	(none)            killed and forgotten       cgroup and folders swept
func (m *Manager) recover(states []*wire.State) error {
	begin := time.Now()
	infos, err := m.Records.Load()
	if err != nil {
		m.Log.Error("read container records", "error", err)
	}
	has := make(map[string]*wire.State, len(states))
	for _, s := range states {
		has[s.ID] = s
	}
	for _, i := range infos {
		m.Containers.Add(container.New(i, m.persist))
	}
	var lost sync.WaitGroup
	slots := make(chan struct{}, 16)
	for _, i := range infos {
		c, err := m.Containers.Find(i.ID)
		if err != nil {
			return err
		}
		s := has[i.ID]
		delete(has, i.ID)
		if s == nil && i.State.Up() {
			// Killing waits for processes: not one after the other.
			slots <- struct{}{}
			lost.Go(func() { defer func() { <-slots }(); m.recoverOne(c, i, nil) })
			continue
		}
		m.recoverOne(c, i, s)
	}
	lost.Wait()
	for id, s := range has {
		m.Log.Warn("end container without record", "container", id)
		m.keeper.Signal(m.life, wire.Target{ID: id}, 9)
		m.forget(id)
		m.janitor.later(func() {
			if err := m.deleteGroup(s.Cgroup); err != nil {
				m.Log.Warn("delete cgroup", "container", id, "error", err)
			}
		})
	}
	m.janitor.later(m.sweepStrays)
	m.Log.Info("containers recovered", "records", len(infos), "monitor", len(states), "ms", time.Since(begin).Milliseconds())
	return nil
}

func (m *Manager) recoverOne(c *container.Container, i *container.Info, s *wire.State) {
	var err error
	switch {
	case i.State == container.Starting && s != nil:
		_, err = c.Move(container.Started, func(i *container.Info) { readopt(i, s) })
	case i.State == container.Starting && i.Cut:
		if _, err = c.Move(container.Started, nil); err == nil {
			m.containerEnded(m.lostExit(c.Info()))
			return
		}
	case i.State == container.Starting:
		m.undoStart(c, i)
		return
	case i.State.Up() && s != nil:
		_, err = c.Edit(func(i *container.Info) error { readopt(i, s); return nil })
	case i.State.Up():
		m.containerEnded(m.lostExit(i))
		return
	case i.State == container.Restarting:
		m.scheduleRestart(c, i)
		return
	case i.State == container.Removing:
		err = m.removeRecord(c, i)
		return
	default:
		if s != nil {
			m.forget(i.ID)
		}
		return
	}
	if err != nil {
		m.Log.Error("adopt container", "container", i.ID, "error", err)
		return
	}
	if s.Exit != nil {
		m.containerEnded(s.Exit)
		return
	}
	m.adoptNamespace(c.Info())
	m.adoptFrozen(c)
}

func readopt(i *container.Info, s *wire.State) {
	i.Pid, i.StartedAt, i.Cgroup, i.Cgroups = s.Pid, s.StartedAt, s.Cgroup, s.Cgroups
}

// undoStart is for a start that never was: for its asker it has failed.
func (m *Manager) undoStart(c *container.Container, i *container.Info) {
	if i.AutoRemove() {
		m.Records.Delete(i)
		m.Containers.Drop(c)
		m.Events.Emit("container", "destroy", i.ID, attributes(i))
		m.sweepLater(c, true)
		return
	}
	m.startFailed(c, errors.New("execd ended during the start"))
}

// lostExit is how a container ended that no monitor knows.
func (m *Manager) lostExit(i *container.Info) *wire.Exit {
	if e, err := readExit(m.runDir(i.ID)); err == nil && e.ID == i.ID && e.Pid == i.Pid {
		return e
	}
	reason := "exit status lost: the monitor and execd died"
	if err := m.deleteGroup(i.Cgroup); err != nil {
		reason += "; ending its processes: " + err.Error()
	}
	return &wire.Exit{ID: i.ID, Pid: i.Pid, Code: 255, Error: reason, At: time.Now()}
}

func readExit(dir string) (*wire.Exit, error) {
	b, err := os.ReadFile(filepath.Join(dir, monitor.ExitFile))
	if err != nil {
		return nil, err
	}
	e := new(wire.Exit)
	return e, json.Unmarshal(b, e)
}

// adoptNamespace makes netd find the network namespace of a running container
// again.
func (m *Manager) adoptNamespace(i *container.Info) {
	if i.Namespace.GetKind() != networkv1.Namespace_KIND_HELD {
		return
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", i.Pid))
	if err == nil {
		err = m.Netns.Adopt(i.Namespace.Id, f)
	}
	if err != nil {
		m.Log.Warn("adopt network namespace", "container", i.ID, "error", err)
	}
}

// adoptFrozen asks the host whether the container is paused: the record may
// have missed the last change.
func (m *Manager) adoptFrozen(c *container.Container) {
	var frozen bool
	err := m.withGroup(c, func(g *cgroup.Group) (err error) {
		frozen, err = g.Frozen()
		return err
	})
	i := c.Info()
	switch {
	case err != nil:
		m.Log.Warn("look at cgroup", "container", i.ID, "error", err)
	case frozen && i.State == container.Running:
		c.Move(container.Pause, nil)
	case !frozen && i.State == container.Paused:
		c.Move(container.Unpause, nil)
	}
}

// sweepStrays removes cgroups and folders that no container has.
func (m *Manager) sweepStrays() {
	known := func(id string) bool {
		c, err := m.Containers.Find(id)
		return err == nil && c.Info().ID == id || m.standby.has(id)
	}
	m.sweepGroups()
	for _, dir := range []string{filepath.Join(m.RunDir, "c"), filepath.Join(m.StateDir, "containers")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			m.Log.Warn("list containers' folders", "error", err)
		}
		for _, e := range entries {
			if container.CheckID(e.Name()) == nil && !known(e.Name()) {
				os.RemoveAll(filepath.Join(dir, e.Name()))
			}
		}
	}
}

// secondLook is how much later an empty group must still be empty to be taken for
// a leftover: a launch is in it long before.
const secondLook = 5 * time.Second

// betweenMonitors is when to ask again who the monitor is.
const betweenMonitors = 20 * time.Millisecond

// sweepGroups removes the cgroups that no container has. Those that the present
// monitor keeps ready, or is just starting something in, it knows by their names.
// An empty one of these may be a leftover of a launch that was cut short, or one
// that is being filled this moment, which only time tells.
func (m *Manager) sweepGroups() {
	pid := m.keeper.MonitorPid()
	if pid == 0 { // between two monitors, whose pools cannot be told apart yet
		if m.life.Err() == nil {
			time.AfterFunc(betweenMonitors, func() { m.janitor.later(m.sweepGroups) })
		}
		return
	}
	var suspects []string
	m.strayGroups(func(name string) {
		if starter.PooledBy(name, pid) || starter.PooledBy(name, m.keeper.MonitorPid()) {
			if m.empty(name) {
				suspects = append(suspects, name)
			}
			return
		}
		m.sweepGroup(name)
	})
	if len(suspects) == 0 {
		return
	}
	time.AfterFunc(secondLook, func() {
		m.janitor.later(func() {
			m.strayGroups(func(name string) {
				if slices.Contains(suspects, name) && m.empty(name) {
					m.sweepGroup(name)
				}
			})
		})
	})
}

// strayGroups calls f for the cgroups of containers and of pools that no container
// is known to have.
func (m *Manager) strayGroups(f func(name string)) {
	groups, err := m.parent.List()
	if err != nil {
		m.Log.Warn("list cgroups", "error", err)
	}
	used := make(map[string]bool)
	for _, c := range m.Containers.All() {
		i := c.Info()
		used[i.ID] = true
		if i.State.Active() {
			used[i.Cgroup] = true
		}
	}
	for _, name := range groups {
		if !used[name] && (starter.Pooled(name) || container.CheckID(name) == nil) {
			f(name)
		}
	}
}

func (m *Manager) sweepGroup(name string) {
	if err := m.deleteGroup(name); err != nil {
		m.Log.Warn("sweep cgroup", "name", name, "error", err)
	}
}

// empty reports whether a cgroup is there and no process is in it.
func (m *Manager) empty(name string) bool {
	g, err := m.parent.Open(name)
	if err != nil {
		return false
	}
	defer g.Close()
	procs, err := g.Procs()
	return err == nil && len(procs) == 0
}
