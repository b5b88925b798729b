package engine

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"berth/internal/trace"
	"berth/libcontainer/clock"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	"berth/services/apid/job"
)

// timing is when a start reached its first stages.
type timing struct {
	arrived time.Time // the call
	begun   time.Time // the work on it
}

// stagesOf knows the steps of jobs that start containers. A standby stands for
// both of what it saves.
var stagesOf = map[string][]apiv1.Stage{
	"imaged pull":    {apiv1.Stage_STAGE_PULL},
	"imaged prepare": {apiv1.Stage_STAGE_IMAGE},
	"imaged get":     {apiv1.Stage_STAGE_IMAGE},
	"netd attach":    {apiv1.Stage_STAGE_NETWORK},
	"standby":        {apiv1.Stage_STAGE_IMAGE, apiv1.Stage_STAGE_NETWORK},
	"netd use":       {apiv1.Stage_STAGE_NETWORK},
	"execd run":      {apiv1.Stage_STAGE_HANDOVER},
	"imaged sync":    {apiv1.Stage_STAGE_RECORD},
	"confirm":        {apiv1.Stage_STAGE_RECORD},
	"execd start":    {apiv1.Stage_STAGE_HANDOVER},
}

// steps are those of apid so far, since the call arrived.
func (t timing) steps(j *job.Job) []*apiv1.TraceStep {
	out := []*apiv1.TraceStep{trace.Step("accept", apiv1.Stage_STAGE_QUEUE, 0, t.begun.Sub(t.arrived))}
	before := j.Begun().Sub(t.arrived)
	for _, s := range j.Trace() {
		s.Offset = durationpb.New(before + s.Offset.AsDuration())
		for _, s.Stage = range stagesOf[s.Name] {
			out = append(out, &apiv1.TraceStep{Name: s.Name, Stage: s.Stage, Offset: s.Offset, Duration: s.Duration})
		}
	}
	return out
}

// timeline is what execd gets to know of them.
func (t timing) timeline(j *job.Job, wanted bool) *execv1.Timeline {
	return &execv1.Timeline{Begun: clock.At(t.arrived), Steps: t.steps(j), Wanted: wanted}
}

// timelineSince is the same of the steps since a moment.
func (t timing) timelineSince(j *job.Job, since time.Time) *execv1.Timeline {
	all := t.timeline(j, false)
	all.Steps = slices.DeleteFunc(all.Steps, func(s *apiv1.TraceStep) bool { return s.Offset.AsDuration() < since.Sub(t.arrived) })
	return all
}

// settled adds the steps up to now.
func (t timing) settled(steps []*apiv1.TraceStep) []*apiv1.TraceStep {
	return trace.Settle(steps, time.Since(t.arrived))
}
