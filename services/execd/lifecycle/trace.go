package lifecycle

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"berth/internal/trace"
	"berth/libcontainer"
	"berth/libcontainer/clock"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	"berth/services/execd/container"
	"berth/services/execd/monitor/wire"
)

// Timeline collects the steps of a start. A nil one collects nothing.
type Timeline struct {
	begun int64 // clock.Now, what offsets count from
	steps []*apiv1.TraceStep
}

// NewTimeline goes on with what the caller did; nil without that.
func NewTimeline(t *execv1.Timeline) *Timeline {
	if t == nil {
		return nil
	}
	return &Timeline{begun: t.Begun, steps: append(make([]*apiv1.TraceStep, 0, len(t.Steps)+40), t.Steps...)}
}

// Now is the time for Add; 0 if that would be for nothing.
func (t *Timeline) Now() int64 {
	if t == nil {
		return 0
	}
	return clock.Now()
}

// Add adds a step that ends now.
func (t *Timeline) Add(name string, stage apiv1.Stage, begin int64) {
	if t != nil {
		t.steps = append(t.steps, trace.Step(name, stage, time.Duration(begin-t.begun), time.Duration(clock.Now()-t.begun)))
	}
}

// After is for the steps that follow those of t.
func (t *Timeline) After() *Timeline {
	if t == nil {
		return nil
	}
	return &Timeline{begun: t.begun}
}

// launched adds the monitor's steps, and gives all.
func (t *Timeline) launched(l *wire.Launched) []*apiv1.TraceStep {
	if t == nil {
		return nil
	}
	return append(t.steps, Steps(l.Trace, time.Duration(l.Begun-t.begun))...)
}

// stages are libcontainer's, as clients know them.
var stages = map[libcontainer.Stage]apiv1.Stage{
	libcontainer.StageCgroup:   apiv1.Stage_STAGE_CGROUP,
	libcontainer.StageClone:    apiv1.Stage_STAGE_CLONE,
	libcontainer.StageMounts:   apiv1.Stage_STAGE_MOUNTS,
	libcontainer.StageSecurity: apiv1.Stage_STAGE_SECURITY,
	libcontainer.StageExec:     apiv1.Stage_STAGE_EXEC,
	libcontainer.StageHandover: apiv1.Stage_STAGE_HANDOVER,
}

// Steps are the monitor's as clients know them; zero is where those begin.
func Steps(steps []wire.Step, zero time.Duration) []*apiv1.TraceStep {
	out := make([]*apiv1.TraceStep, len(steps))
	for n, s := range steps {
		out[n] = &apiv1.TraceStep{
			Name: s.Name, Stage: stages[libcontainer.StageOf(s.Name)],
			Offset: durationpb.New(zero + s.Offset), Duration: durationpb.New(s.Duration),
		}
	}
	return out
}

// Note adds the steps of t, which were taken after the start that gave i, to what is known of that start, and gives i with
// them. The record has them with the container's next change.
func (m *Manager) Note(c *container.Container, i *container.Info, t *Timeline) *container.Info {
	if t == nil || len(i.Trace) == 0 {
		return i
	}
	first := i.Trace[0]
	with := func(i *container.Info) { i.Trace = append(slices.Clip(i.Trace), t.steps...) }
	c.Note(func(now *container.Info) {
		if len(now.Trace) > 0 && now.Trace[0] == first { // it is the same start still
			with(now)
		}
	})
	noted := *i
	with(&noted)
	return &noted
}

// afterStart adds to a trace what followed the start, which ended with the command's execution.
// There is nothing to add to the trace of a start that nobody wanted to know of,
// and for an exit of which the monitor does not say how long after the start it
// was.
func afterStart(steps []*apiv1.TraceStep, e *wire.Exit) []*apiv1.TraceStep {
	if len(steps) == 0 || e.Ran <= 0 {
		return steps
	}
	steps = slices.Clip(steps) // others read them
	start := startOf(steps)
	ran, spoke := start+e.Ran, start
	if e.FirstByte > 0 {
		spoke = start + min(e.FirstByte, e.Ran)
		steps = append(steps, trace.Step("first output", apiv1.Stage_STAGE_FIRST_BYTE, start, spoke))
	}
	return append(steps, trace.Step("run", apiv1.Stage_STAGE_EXIT, spoke, ran),
		trace.Step("pass on output and exit", apiv1.Stage_STAGE_CLEANUP, ran, ran+max(time.Since(e.At), 0)))
}

// startOf is when the command began to run: what is done for the record goes on meanwhile.
func startOf(steps []*apiv1.TraceStep) (at time.Duration) {
	for _, s := range steps {
		if s.Stage == apiv1.Stage_STAGE_EXEC {
			at = max(at, s.Offset.AsDuration()+s.Duration.AsDuration())
		}
	}
	return at
}

// StepsSince are those that followed the start which gave before; none if another run has begun meanwhile.
func StepsSince(before, now *container.Info) (since []*apiv1.TraceStep) {
	if len(before.Trace) == 0 || len(now.Trace) == 0 || now.Trace[0] != before.Trace[0] {
		return nil
	}
	for _, s := range now.Trace {
		switch s.Stage {
		case apiv1.Stage_STAGE_FIRST_BYTE, apiv1.Stage_STAGE_EXIT, apiv1.Stage_STAGE_CLEANUP:
			since = append(since, s)
		}
	}
	return since
}
