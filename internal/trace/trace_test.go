package trace_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"berth/internal/trace"
	apiv1 "berth/proto/berth/api/v1"
)

const ms = time.Millisecond

func step(name string, stage apiv1.Stage, begin, end int) *apiv1.TraceStep {
	return trace.Step(name, stage, time.Duration(begin)*ms, time.Duration(end)*ms)
}

// counted adds up by name, so that gaps, which are called alike, come together.
func counted(steps []*apiv1.TraceStep) (by map[string]time.Duration, sum time.Duration) {
	by = map[string]time.Duration{}
	for _, s := range steps {
		by[s.Name] += s.Counted.AsDuration()
		sum += s.Counted.AsDuration()
	}
	return by, sum
}

func TestSettle(t *testing.T) {
	const (
		image, network, exec = apiv1.Stage_STAGE_IMAGE, apiv1.Stage_STAGE_NETWORK, apiv1.Stage_STAGE_EXEC
		call, mounts         = apiv1.Stage_STAGE_HANDOVER, apiv1.Stage_STAGE_MOUNTS
	)
	for _, tc := range []struct {
		name  string
		steps []*apiv1.TraceStep
		end   int
		want  map[string]int
	}{
		{"nothing", nil, 5, map[string]int{"hand over": 5}},
		{"one after the other", []*apiv1.TraceStep{step("a", image, 0, 2), step("b", exec, 2, 5)}, 5, map[string]int{"a": 2, "b": 3}},
		{"gaps before, between and after", []*apiv1.TraceStep{step("a", image, 1, 2), step("b", exec, 4, 5)}, 8, map[string]int{"a": 1, "b": 1, "hand over": 6}},
		{"side by side, the longer one begun first", []*apiv1.TraceStep{step("i", image, 0, 6), step("n", network, 1, 4)}, 6, map[string]int{"i": 6, "n": 0}},
		{"side by side, the longer one begun last", []*apiv1.TraceStep{step("i", image, 0, 3), step("n", network, 1, 6)}, 6, map[string]int{"i": 1, "n": 5}},
		{"a call around others", []*apiv1.TraceStep{step("call", call, 1, 9), step("m", mounts, 3, 4), step("x", exec, 4, 7)}, 9,
			map[string]int{"hand over": 1, "call": 4, "m": 1, "x": 3}},
		{"calls in calls", []*apiv1.TraceStep{step("out", call, 0, 10), step("in", call, 2, 8), step("x", exec, 4, 5)}, 10,
			map[string]int{"out": 4, "in": 5, "x": 1}},
		{"a moment", []*apiv1.TraceStep{step("m", mounts, 2, 2)}, 4, map[string]int{"m": 0, "hand over": 4}},
		{"beyond the end, before the beginning", []*apiv1.TraceStep{step("a", image, -2, 1), step("b", exec, 3, 9)}, 4, map[string]int{"a": 1, "hand over": 2, "b": 1}},
	} {
		by, sum := counted(trace.Settle(tc.steps, time.Duration(tc.end)*ms))
		if sum != time.Duration(tc.end)*ms {
			t.Errorf("%s: the sum is %v, the whole %d ms", tc.name, sum, tc.end)
		}
		for name, want := range tc.want {
			if by[name] != time.Duration(want)*ms {
				t.Errorf("%s: %q counts %v, want %d ms", tc.name, name, by[name], want)
			}
		}
		if len(by) > len(tc.want) {
			t.Errorf("%s: counted %v, want %v", tc.name, by, tc.want)
		}
	}
}

// TestSettleAddsUp: whatever the steps, each moment counts once.
func TestSettleAddsUp(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var steps []*apiv1.TraceStep
		for range random.IntN(20) {
			begin := random.IntN(60)
			steps = append(steps, step("s", apiv1.Stage(random.IntN(15)), begin, begin+random.IntN(40)))
		}
		end := time.Duration(1+random.IntN(100)) * ms
		settled := trace.Settle(steps, end)
		if _, sum := counted(settled); sum != end {
			t.Fatalf("%v: the sum is %v, the whole %v", steps, sum, end)
		}
		for _, s := range settled {
			if c := s.Counted.AsDuration(); c < 0 || c > s.Duration.AsDuration() {
				t.Fatalf("%v: %v counts %v", steps, s, c)
			}
		}
	}
}

func TestEnd(t *testing.T) {
	if end := trace.End([]*apiv1.TraceStep{step("a", 1, 0, 7), step("b", 1, 2, 3)}); end != 7*ms {
		t.Errorf("End = %v, want 7ms", end)
	}
}
