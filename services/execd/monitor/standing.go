package monitor

import (
	"time"

	"berth/services/execd/monitor/wire"
)

// standingTime is how long a container that was built ahead waits for its command.
// Whoever asked for it gives it up long before; this is for one that died and did not come back.
const standingTime = 30 * time.Second

// standBy builds a container ahead.
func (m *Monitor) standBy(req *wire.Launch, fds []int) error {
	netns, _ := split(fds, req.NetNS, false)
	defer closeFile(netns)
	m.standDown(req.ID)
	s, err := m.launcher.StandBy(req, netns)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.standing[req.ID] = standing{s, time.AfterFunc(standingTime, func() { m.standDown(req.ID) })}
	return nil
}

// standing is a container that was built ahead, until it expires.
type standing struct {
	Standing
	expiry *time.Timer
}

// takeStanding gives a container that was built ahead to its launch; nil: there is none.
func (m *Monitor) takeStanding(id string) Standing {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.standing[id]
	if !ok {
		return nil
	}
	s.expiry.Stop() // an idle monitor is not to wake up for nothing
	delete(m.standing, id)
	return s.Standing
}

// standDown returns when nothing of a container that was built ahead is left.
func (m *Monitor) standDown(id string) {
	if s := m.takeStanding(id); s != nil {
		s.Discard()
	}
}

// Close gives up what was built ahead.
func (m *Monitor) Close() {
	m.mu.Lock()
	all := m.standing
	m.standing = make(map[string]standing)
	m.mu.Unlock()
	for _, s := range all {
		s.expiry.Stop()
		s.Discard()
	}
}
