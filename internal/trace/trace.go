// Package trace adds the steps of a start up to its whole.
package trace

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "berth/proto/berth/api/v1"
)

// Step is one that took from begin to end.
func Step(name string, stage apiv1.Stage, begin, end time.Duration) *apiv1.TraceStep {
	return &apiv1.TraceStep{Name: name, Stage: stage, Offset: durationpb.New(begin), Duration: durationpb.New(end - begin)}
}

// End is when the last of steps ended.
func End(steps []*apiv1.TraceStep) (end time.Duration) {
	for _, s := range steps {
		end = max(end, s.GetOffset().AsDuration()+s.GetDuration().AsDuration())
	}
	return end
}

// Settle says of each moment between 0 and end which step it counts for: of those that are under way then, the one that
// ends last, since the others are not what the whole waits for. What is of the stage HANDOVER contains others, as a call
// contains what was done for it, and gets the moments when none of them is under way. Moments without a step become
// steps of their own, of that stage too. The answer is in order of time, and what is counted of its steps adds up to
// end; the steps given are not changed.
func Settle(steps []*apiv1.TraceStep, end time.Duration) []*apiv1.TraceStep {
	spans := make([]span, 0, len(steps))
	edges := append(make([]time.Duration, 0, 2+2*len(steps)), 0, end)
	for _, s := range steps {
		from := min(max(s.GetOffset().AsDuration(), 0), end)
		to := min(max(from, s.GetOffset().AsDuration()+s.GetDuration().AsDuration()), end)
		spans = append(spans, span{step: s, from: from, to: to})
		edges = append(edges, from, to)
	}
	slices.SortStableFunc(spans, func(a, b span) int {
		if a.from != b.from {
			return int(a.from - b.from)
		}
		return int(b.to - a.to) // what contains comes first
	})
	slices.Sort(edges)
	edges = slices.Compact(edges)
	for i := 1; i < len(edges); i++ {
		from, to := edges[i-1], edges[i]
		if owner := ownerOf(spans, from, to); owner >= 0 {
			spans[owner].counted += to - from
		} else if n := len(spans); n > 0 && spans[n-1].step == nil && spans[n-1].to == from {
			spans[n-1].to, spans[n-1].counted = to, spans[n-1].counted+to-from
		} else {
			spans = append(spans, span{from: from, to: to, counted: to - from})
		}
	}
	slices.SortStableFunc(spans, func(a, b span) int { return int(a.from - b.from) })
	out := make([]*apiv1.TraceStep, 0, len(spans))
	for _, s := range spans {
		t := s.step
		if t == nil {
			t = Step("hand over", apiv1.Stage_STAGE_HANDOVER, s.from, s.to)
		}
		out = append(out, &apiv1.TraceStep{Name: t.Name, Stage: t.Stage, Offset: t.Offset, Duration: t.Duration, Counted: durationpb.New(s.counted)})
	}
	return out
}

// span is a step between the edges of the whole; without a step: a gap.
type span struct {
	step     *apiv1.TraceStep
	from, to time.Duration
	counted  time.Duration
}

// ownerOf is the place of the step that the time from…to, in which no step begins or ends, counts for; -1: none. The
// spans are in order of their beginning.
func ownerOf(spans []span, from, to time.Duration) int {
	owner := -1
	for i, s := range spans {
		if s.step == nil || s.from > from || s.to < to {
			continue
		}
		switch {
		case owner < 0, spans[owner].around():
			owner = i // inside the one before, or begun later than it
		case !s.around() && s.to > spans[owner].to:
			owner = i
		}
	}
	return owner
}

// around reports whether a step contains others.
func (s span) around() bool { return s.step.Stage == apiv1.Stage_STAGE_HANDOVER }
