package stages

import (
	"strings"
	"testing"
	"time"

	"berth/cli/apiv1"
	"berth/cli/wire"
)

func step(stage apiv1.Stage, counted time.Duration) *apiv1.TraceStep {
	return &apiv1.TraceStep{Name: "s", Stage: stage, Duration: wire.NewDuration(time.Second), Counted: wire.NewDuration(counted)}
}

func TestSum(t *testing.T) {
	steps := []*apiv1.TraceStep{
		step(apiv1.Stage_STAGE_QUEUE, 1*time.Millisecond), step(apiv1.Stage_STAGE_MOUNTS, 2*time.Millisecond),
		step(apiv1.Stage_STAGE_MOUNTS, 3*time.Millisecond), step(apiv1.Stage_STAGE_IMAGE, 0), step(99, 4*time.Millisecond),
	}
	got := map[string]Row{}
	var sum time.Duration
	for _, r := range Sum(Whole(steps, 20*time.Millisecond)) {
		got[r.Stage] = r
		sum += r.Took
	}
	for stage, want := range map[string]time.Duration{"queue": time.Millisecond, "mounts": 5 * time.Millisecond, "image recipe": 0,
		"other": 4 * time.Millisecond, "hand-over": 10 * time.Millisecond} {
		if r := got[stage]; r.Took != want || r.None {
			t.Errorf("%s = %+v, want %v", stage, r, want)
		}
	}
	if sum != 20*time.Millisecond {
		t.Errorf("the sum is %v, the client waited 20ms", sum)
	}
	if !got["first byte"].None || got["pull"] != (Row{}) {
		t.Errorf("first byte %+v, pull %+v: neither was there", got["first byte"], got["pull"])
	}
}

func TestPrint(t *testing.T) {
	var b strings.Builder
	Print(&b, []*apiv1.TraceStep{step(apiv1.Stage_STAGE_EXEC, 3*time.Millisecond), step(apiv1.Stage_STAGE_EXIT, time.Millisecond)}, true)
	for _, want := range []string{"STEP", "exec", "75.0 %", "first byte        -", "total     4000"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestWanted(t *testing.T) {
	for given, want := range map[string]Wanted{"": Nothing, "stages": Stages, "stages stages": Steps, "full": Steps, "stages stages stages": Steps, "full false": Nothing} {
		var w Wanted
		for _, s := range strings.Fields(given) {
			if err := w.Set(s); err != nil {
				t.Fatal(err)
			}
		}
		if w != want {
			t.Errorf("--trace given as %q is %v, want %v", given, w, want)
		}
	}
	if err := new(Wanted).Set("all"); err == nil {
		t.Error("--trace=all was taken")
	}
}
