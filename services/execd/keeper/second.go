package keeper

import (
	"slices"
	"syscall"

	"berth/services/execd/monitor/wire"
)

// second is the second copy of a container's descriptors, in the order of
// wire.Held. Nothing is ever read from or written to them here.
type second struct {
	state wire.State
	fds   []int
}

func (s *second) close() {
	wire.CloseAll(s.fds)
	s.fds = nil
}

// closeStdin: a pipe gives end-of-file only when every write end is closed.
func (s *second) closeStdin() {
	if !s.state.Held.Stdin {
		return
	}
	i := 0
	if s.state.Held.PidFD {
		i = 1
	}
	if i < len(s.fds) {
		syscall.Close(s.fds[i])
		s.fds = slices.Delete(s.fds, i, i+1)
	}
	s.state.Held.Stdin = false
}

func (s *second) dropExec(id string) {
	s.state.Execs = slices.DeleteFunc(s.state.Execs, func(e wire.ExecState) bool { return e.Exec == id })
}
