//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	apiv1 "berth/proto/berth/api/v1"
	"berth/test/harness"
)

// tracedRun runs a container over gRPC, and measures it as a client does.
func tracedRun(t *testing.T, client apiv1.ContainerServiceClient, spec *apiv1.ContainerSpec) (steps []*apiv1.TraceStep, waited time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	began := time.Now()
	stream, err := client.Run(ctx)
	if err == nil {
		err = stream.Send(&apiv1.RunRequest{Message: &apiv1.RunRequest_Open_{Open: &apiv1.RunRequest_Open{
			Spec: spec, Attach: &apiv1.AttachOptions{Stdout: true, Stderr: true}, Trace: true,
		}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF && steps != nil {
			return steps, waited
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.GetExited() != nil {
			steps, waited = m.Trace, time.Since(began)
		}
	}
}

func byStage(steps []*apiv1.TraceStep) (took map[apiv1.Stage]time.Duration, sum time.Duration) {
	took = map[apiv1.Stage]time.Duration{}
	for _, s := range steps {
		took[s.Stage] += s.Counted.AsDuration()
		sum += s.Counted.AsDuration()
	}
	return took, sum
}

// TestStagesAddUp: the stages of a run are the time that the client waited. What the engine cannot see is the way of
// the first message to it and of the last from it, which on a machine that has time for them is little; so the best of
// some runs counts.
func TestStagesAddUp(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	client := apiv1.NewContainerServiceClient(e.Dial(t))
	named := func() *apiv1.ContainerSpec { // a host name: no parts of an earlier run are used
		return &apiv1.ContainerSpec{Image: img, Args: []string{"sh", "-c", "sleep 0.05; echo hello; sleep 0.05"}, AutoRemove: true, Hostname: "staged"}
	}
	tracedRun(t, client, named())
	const least = 0.95
	var shares []float64
	for range 20 {
		steps, waited := tracedRun(t, client, named())
		took, sum := byStage(steps)
		for stage := apiv1.Stage_STAGE_QUEUE; stage <= apiv1.Stage_STAGE_HANDOVER; stage++ {
			if _, there := took[stage]; !there && stage != apiv1.Stage_STAGE_PULL {
				t.Errorf("no step of %v in %v", stage, steps)
			}
		}
		if n, there := took[apiv1.Stage_STAGE_UNSPECIFIED]; there {
			t.Errorf("steps without a stage took %v: %v", n, steps)
		}
		if took[apiv1.Stage_STAGE_FIRST_BYTE] < 45*time.Millisecond || took[apiv1.Stage_STAGE_EXIT] < 45*time.Millisecond {
			t.Errorf("first byte %v, exit %v: the command sleeps 50 ms before its output and 50 ms after it",
				took[apiv1.Stage_STAGE_FIRST_BYTE], took[apiv1.Stage_STAGE_EXIT])
		}
		if sum > waited {
			t.Errorf("the stages are %v, the client waited only %v", sum, waited)
		}
		if shares = append(shares, float64(sum)/float64(waited)); t.Failed() || slices.Max(shares) >= least {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if slices.Max(shares) < least {
		t.Errorf("the stages are %.3f of what the client waited, want at least %.2f once", shares, least)
	}
}

// TestStagesStandby: with all parts at hand image and network are there, and took nothing.
func TestStagesStandby(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	client := apiv1.NewContainerServiceClient(e.Dial(t))
	for range 20 {
		steps, _ := tracedRun(t, client, &apiv1.ContainerSpec{Image: img, Args: []string{"true"}, AutoRemove: true})
		took, _ := byStage(steps)
		if _, spoke := took[apiv1.Stage_STAGE_FIRST_BYTE]; spoke {
			t.Errorf("true wrote something: %v", steps)
		}
		standby := slices.ContainsFunc(steps, func(s *apiv1.TraceStep) bool { return s.Name == "standby" })
		if image, there := took[apiv1.Stage_STAGE_IMAGE]; standby && there && image < 100*time.Microsecond {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error("no run of 20 in a row used parts that were at hand")
}

// table reads what --trace prints: stage or step, and the number behind it in the column.
func table(t *testing.T, text, heading string, column int) map[string]int {
	t.Helper()
	_, text, found := strings.Cut(text, heading)
	if !found {
		t.Fatalf("no table with %s in\n%s", heading, text)
	}
	out := map[string]int{}
	for _, line := range strings.Split(text, "\n")[1:] {
		fields := strings.Fields(line)
		for i := range fields {
			if n, err := strconv.Atoi(fields[i]); err == nil && i > 0 {
				if column < 0 {
					n, _ = strconv.Atoi(fields[len(fields)+column])
				}
				out[strings.Join(fields[:i], " ")] = n
				break
			}
		}
	}
	return out
}

func TestTraceTable(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	// With a tmpfs of its own it is not built ahead, and has all stages.
	r := e.Try("run", "--rm", "--trace", "--tmpfs", "/scratch", img, "sh", "-c", "echo hello")
	want(t, "output", r.Out, "hello\n")
	rows := table(t, r.Err, "STAGE", 0)
	sum := 0
	for _, stage := range []string{"queue", "image recipe", "network", "record", "cgroup", "clone", "mounts", "security", "exec", "first byte", "exit", "cleanup", "hand-over"} {
		n, there := rows[stage]
		if !there {
			t.Errorf("no row %q in\n%s", stage, r.Err)
		}
		sum += n
	}
	total := rows["total"]
	if total-sum > len(rows) || sum > total { // each row is rounded down
		t.Errorf("the rows add up to %d µs, the total is %d µs:\n%s", sum, total, r.Err)
	}
	if took := r.Took.Microseconds(); int64(total) > took {
		t.Errorf("total %d µs, the whole command took %d µs", total, took)
	}
	const single = "enter working directory" // a step of every start, built ahead or not
	if strings.Contains(r.Err, single) {
		t.Errorf("--trace alone shows single steps:\n%s", r.Err)
	}
	for _, full := range [][]string{{"--trace", "--trace"}, {"--trace=full"}} {
		r = e.Try(append(append([]string{"run", "--rm"}, full...), img, "true")...)
		if steps := table(t, r.Err, "STEP", -1); len(steps) < 15 || !strings.Contains(r.Err, single) || !strings.Contains(r.Err, "total") {
			t.Errorf("%v shows %d steps:\n%s", full, len(steps), r.Err)
		}
	}
	e.Fails(t, 125, []string{"--trace", "all", "full"}, "run", "--trace=all", img, "true")
}

// inspected is what inspect knows of the last start.
type inspected struct {
	Berth struct {
		Stages []struct {
			Name   string
			Micros int
		}
		Trace []inspectedStep
	}
}

type inspectedStep struct {
	Name, Stage                                 string
	OffsetMicros, DurationMicros, CountedMicros int
}

func stagesOf(t *testing.T, e *harness.Engine, name string) (stages map[string]int, i inspected) {
	t.Helper()
	var list []inspected
	if err := json.Unmarshal([]byte(e.Berth(t, "inspect", name)), &list); err != nil || len(list) != 1 {
		t.Fatalf("inspect: %v, %d containers", err, len(list))
	}
	stages = map[string]int{}
	for _, s := range list[0].Berth.Stages {
		stages[s.Name] = s.Micros
	}
	return stages, list[0]
}

// TestInspectStages: a container that stays keeps the stages of its last start, and of its end.
func TestInspectStages(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	// With a tmpfs of its own it is not built ahead, and has all stages.
	r := e.Try("run", "-d", "--trace", "--name", "kept", "--tmpfs", "/scratch", img, "sh", "-c", "sleep 0.2; echo hello; sleep 0.2")
	defer e.Try("rm", "-f", "kept")
	if rows := table(t, r.Err, "STAGE", 0); rows["exec"] == 0 || rows["exit"] != 0 {
		t.Errorf("run -d --trace:\n%s", r.Err)
	}
	start := []string{"queue", "image recipe", "network", "record", "cgroup", "clone", "mounts", "security", "exec", "hand-over"}
	stages, i := stagesOf(t, e, "kept")
	// The last that the client waits for is the disk; the command runs meanwhile.
	if last := i.Berth.Trace[len(i.Berth.Trace)-1]; last.Name != "confirm" && last.Name != "record on disk" || last.Stage != "record" {
		t.Errorf("the last step is %+v", last)
	}
	for _, s := range start {
		if _, there := stages[s]; !there {
			t.Errorf("while it runs: no %q in %v", s, stages)
		}
	}
	e.Berth(t, "wait", "kept")
	stages, i = stagesOf(t, e, "kept")
	for _, s := range append(start, "first byte", "exit", "cleanup") {
		if _, there := stages[s]; !there {
			t.Errorf("after its end: no %q in %v", s, stages)
		}
	}
	if stages["first byte"] < 190e3 || stages["exit"] < 190e3 {
		t.Errorf("first byte %d µs, exit %d µs; it sleeps 200 ms before each", stages["first byte"], stages["exit"])
	}
	sum, end := 0, 0
	for _, s := range i.Berth.Trace {
		sum += s.CountedMicros
		end = max(end, s.OffsetMicros+s.DurationMicros)
	}
	if end-sum > 2*len(i.Berth.Trace) || sum > end+2 { // each is rounded
		t.Errorf("the steps count %d µs, the last one ended after %d µs", sum, end)
	}
	r = e.Try("start", "--trace", "kept")
	if rows := table(t, r.Err, "STAGE", 0); rows["exec"] == 0 || rows["total"] == 0 {
		t.Errorf("start --trace:\n%s", r.Err)
	}
	if again, _ := stagesOf(t, e, "kept"); again["exit"] != 0 || again["exec"] == 0 {
		t.Errorf("after the second start: %v", again)
	}
}

// TestStagesOfADetachedRun: what inspect shows of a start adds up to what its client waited for, whether the container was
// built ahead or not.
func TestStagesOfADetachedRun(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	shares := map[bool][]float64{} // by whether it was built ahead
	// What the engine does not see, the way of the question and of the answer, takes as long for the shorter start.
	least := map[bool]float64{false: 0.85, true: 0.7}
	enough := func(ahead bool) bool { return len(shares[ahead]) > 0 && slices.Max(shares[ahead]) >= least[ahead] }
	for n := 0; n < 40 && (!enough(false) || !enough(true)); n++ {
		args := []string{"run", "-d", "--trace", "--name", "waited", "-p", "127.0.0.1::80"}
		if n%4 == 0 {
			args = append(args, "--hostname", "own")
		}
		r := e.Try(append(args, img, "sleep", "100")...)
		total := table(t, r.Err, "STAGE", 0)["total"]
		stages, i := stagesOf(t, e, "waited")
		e.Berth(t, "rm", "-f", "waited")
		sum := 0
		for _, micros := range stages {
			sum += micros
		}
		ahead := slices.ContainsFunc(i.Berth.Trace, func(s inspectedStep) bool { return s.Name == "standby" })
		if sum > total+len(i.Berth.Trace) {
			t.Errorf("the stages are %d µs, the client waited %d µs", sum, total)
		}
		shares[ahead] = append(shares[ahead], float64(sum)/float64(total))
		time.Sleep(50 * time.Millisecond)
	}
	if !enough(false) || !enough(true) {
		t.Errorf("the stages are at best %.3f and, built ahead, %.3f of what the client waited for", slices.Max(append(shares[false], 0)), slices.Max(append(shares[true], 0)))
	}
}
