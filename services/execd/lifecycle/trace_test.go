package lifecycle

import (
	"testing"
	"time"

	"berth/internal/trace"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/execd/container"
	"berth/services/execd/monitor/wire"
)

const ms = time.Millisecond

// startSteps are those of a start that took 3 ms.
func startSteps() []*apiv1.TraceStep {
	return []*apiv1.TraceStep{
		trace.Step("accept", apiv1.Stage_STAGE_QUEUE, 0, ms),
		trace.Step("exec", apiv1.Stage_STAGE_EXEC, 2*ms, 3*ms),
	}
}

// TestNote: what is done for the record after the start is part of it, whether or not the container has ended meanwhile.
func TestNote(t *testing.T) {
	exit := &wire.Exit{At: time.Now(), Ran: 10 * ms, FirstByte: 4 * ms}
	for _, ended := range []bool{false, true} {
		started := &container.Info{Trace: startSteps()}
		c := container.New(started, nil)
		if ended {
			c.Edit(func(i *container.Info) error { i.Trace = afterStart(i.Trace, exit); return nil })
		}
		after := (&Timeline{}).After()
		after.steps = append(after.steps, trace.Step("record on disk", apiv1.Stage_STAGE_RECORD, 3*ms, 8*ms))
		noted := (*Manager)(nil).Note(c, started, after)
		if n := len(noted.Trace); n != 3 || noted.Trace[2].Name != "record on disk" {
			t.Errorf("told are %v", noted.Trace)
		}
		if since := StepsSince(noted, c.Info()); len(since) > 0 != ended {
			t.Errorf("ended: %t, steps since then %v", ended, since)
		}
		if !ended {
			c.Edit(func(i *container.Info) error { i.Trace = afterStart(i.Trace, exit); return nil })
		}
		begin := map[string]time.Duration{}
		for _, s := range c.Info().Trace {
			if _, twice := begin[s.Name]; twice {
				t.Errorf("%s is there twice", s.Name)
			}
			begin[s.Name] = s.Offset.AsDuration()
		}
		if len(begin) != 6 || begin["first output"] != 3*ms || begin["run"] != 7*ms || begin["pass on output and exit"] != 13*ms {
			t.Errorf("ended: %t, steps begin at %v", ended, begin)
		}
		var names []string
		for _, s := range StepsSince(noted, c.Info()) {
			names = append(names, s.Name)
		}
		if len(names) != 3 {
			t.Errorf("since the start: %q", names)
		}
	}
}

// TestNoteOfAnotherStart: a container that was started again meanwhile is left as it is.
func TestNoteOfAnotherStart(t *testing.T) {
	before := &container.Info{Trace: startSteps()}
	c := container.New(&container.Info{Trace: startSteps()}, nil)
	after := &Timeline{steps: []*apiv1.TraceStep{trace.Step("x", apiv1.Stage_STAGE_RECORD, 3*ms, 8*ms)}}
	if (*Manager)(nil).Note(c, before, after); len(c.Info().Trace) != 2 {
		t.Errorf("steps: %v", c.Info().Trace)
	}
}
