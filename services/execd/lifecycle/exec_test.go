package lifecycle

import (
	"context"
	"testing"
	"time"

	"berth/services/execd/monitor/wire"
)

// TestSessionEndIsNewsOnce: the end of a session comes on its stream and from the monitor, in either order, or from the
// monitor alone, to an execd that did not start it.
func TestSessionEndIsNewsOnce(t *testing.T) {
	at := time.Unix(1700000000, 5)
	full := func() *wire.Exit { return &wire.Exit{ID: "c", Exec: "e", Pid: 9, Code: 7, At: at} }
	short := func() *wire.Exit { return &wire.Exit{Code: 7, At: at} }
	for name, c := range map[string]struct {
		tell func(s *sessions, e *Session) (news int)
		want int
	}{
		"stream first":          {func(s *sessions, e *Session) int { return count(s.endedEarly(e, short()), s.ended(full())) }, 1},
		"monitor first":         {func(s *sessions, e *Session) int { return count(s.ended(full()), s.endedEarly(e, short())) }, 1},
		"monitor alone":         {func(s *sessions, e *Session) int { return count(s.ended(full())) }, 1},
		"started by an earlier": {func(s *sessions, e *Session) int { s.drop(e.ID); return count(s.ended(full())) }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var s sessions
			e := &Session{ID: "e", Container: "c", done: make(chan struct{})}
			s.add(e)
			if got := c.tell(&s, e); got != c.want {
				t.Errorf("told as news %d times, want %d", got, c.want)
			}
			if len(s.byID)+len(s.early) > 0 {
				t.Errorf("left over: %v, %v", s.byID, s.early)
			}
			if name == "started by an earlier" {
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if x, err := e.Wait(ctx); err != nil || x.Code != 7 || x.ID != "c" || x.Exec != "e" || !x.At.Equal(at) {
				t.Errorf("Wait: %+v, %v", x, err)
			}
		})
	}
}

func count(news ...bool) (n int) {
	for _, is := range news {
		if is {
			n++
		}
	}
	return n
}
