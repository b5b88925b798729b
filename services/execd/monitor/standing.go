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
	m.standing[req.ID] = s
	m.mu.Unlock()
	time.AfterFunc(standingTime, func() {
		m.mu.Lock()
		late := m.standing[req.ID] == s
		if late {
			delete(m.standing, req.ID)
		}
		m.mu.Unlock()
		if late {
			s.Discard()
		}
	})
	return nil
}

// takeStanding gives a container that was built ahead to its launch; nil: there is none.
func (m *Monitor) takeStanding(id string) Standing {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.standing[id]
	delete(m.standing, id)
	return s
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
	m.standing = make(map[string]Standing)
	m.mu.Unlock()
	for _, s := range all {
		s.Discard()
	}
}
