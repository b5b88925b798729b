// Package stages shows what the time of a start went into.
package stages

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"berth/cli/apiv1"
	"berth/cli/wire"
)

// Row is a stage's share of a start.
type Row struct {
	Stage string
	Took  time.Duration
	// None: the container had no such stage, as one that has written nothing.
	None bool
}

// names are the stages in the order of a start. The last is between all others.
var names = []struct {
	stage apiv1.Stage
	name  string
	rare  bool // shown only if it was there
}{
	{stage: apiv1.Stage_STAGE_QUEUE, name: "queue"},
	{stage: apiv1.Stage_STAGE_PULL, name: "pull", rare: true},
	{stage: apiv1.Stage_STAGE_IMAGE, name: "image recipe"},
	{stage: apiv1.Stage_STAGE_NETWORK, name: "network"},
	{stage: apiv1.Stage_STAGE_RECORD, name: "record"},
	{stage: apiv1.Stage_STAGE_CGROUP, name: "cgroup"},
	{stage: apiv1.Stage_STAGE_CLONE, name: "clone"},
	{stage: apiv1.Stage_STAGE_MOUNTS, name: "mounts"},
	{stage: apiv1.Stage_STAGE_SECURITY, name: "security"},
	{stage: apiv1.Stage_STAGE_EXEC, name: "exec"},
	{stage: apiv1.Stage_STAGE_FIRST_BYTE, name: "first byte"},
	{stage: apiv1.Stage_STAGE_EXIT, name: "exit"},
	{stage: apiv1.Stage_STAGE_CLEANUP, name: "cleanup"},
	{stage: apiv1.Stage_STAGE_HANDOVER, name: "hand-over"},
}

// Name is what a stage is called.
func Name(s apiv1.Stage) string {
	for _, n := range names {
		if n.stage == s {
			return n.name
		}
	}
	return "other"
}

// Sum is how long each stage took. The rows of steps that have an end add up to that.
func Sum(steps []*apiv1.TraceStep) []Row {
	took := map[apiv1.Stage]time.Duration{}
	for _, s := range steps {
		took[s.GetStage()] += s.GetCounted().AsDuration()
	}
	var rows []Row
	for _, n := range names {
		d, there := took[n.stage]
		if there || !n.rare {
			rows = append(rows, Row{Stage: n.name, Took: d, None: !there})
		}
		delete(took, n.stage)
	}
	for s, d := range took { // of a newer engine
		rows = append(rows, Row{Stage: Name(s), Took: d})
	}
	return rows
}

// Whole adds what passed before and after the engine's steps, of a client who waited for all that time.
func Whole(steps []*apiv1.TraceStep, waited time.Duration) []*apiv1.TraceStep {
	rest := waited
	for _, s := range steps {
		rest -= s.GetCounted().AsDuration()
	}
	if rest <= 0 {
		return steps
	}
	d := wire.NewDuration(rest)
	return append(steps[:len(steps):len(steps)], &apiv1.TraceStep{
		Name: "to the engine and back", Stage: apiv1.Stage_STAGE_HANDOVER, Offset: wire.NewDuration(0), Duration: d, Counted: d,
	})
}

// Print writes a table of the stages, preceded, with single, by one of the steps.
func Print(w io.Writer, steps []*apiv1.TraceStep, single bool) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer t.Flush()
	if single {
		fmt.Fprintln(t, "STEP\tSTAGE\tAT µs\tTOOK µs\tCOUNTED µs\t")
		for _, s := range steps {
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t\n", s.GetName(), Name(s.GetStage()), s.GetOffset().AsDuration().Microseconds(),
				s.GetDuration().AsDuration().Microseconds(), s.GetCounted().AsDuration().Microseconds())
		}
		fmt.Fprintln(t, "\t\t\t\t\t")
	}
	var whole time.Duration
	rows := Sum(steps)
	for _, r := range rows {
		whole += r.Took
	}
	fmt.Fprintln(t, "STAGE\tTOOK µs\tSHARE\t")
	for _, r := range rows {
		if r.None {
			fmt.Fprintf(t, "%s\t-\t-\t\n", r.Stage)
		} else {
			fmt.Fprintf(t, "%s\t%d\t%.1f %%\t\n", r.Stage, r.Took.Microseconds(), share(r.Took, whole))
		}
	}
	fmt.Fprintf(t, "total\t%d\t100.0 %%\t\n", whole.Microseconds())
}

func share(part, whole time.Duration) float64 {
	if whole <= 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}

// Wanted is the value of the flag --trace: not, the stages, or every step.
type Wanted int

// What can be wanted.
const (
	Nothing Wanted = iota
	Stages
	Steps
)

// Set is called for each time the flag is given; twice is more.
func (w *Wanted) Set(s string) error {
	switch s {
	case "true", "stages":
		*w = min(*w+1, Steps)
	case "full":
		*w = Steps
	case "false":
		*w = Nothing
	default:
		return fmt.Errorf("%q is neither stages nor full", s)
	}
	return nil
}

func (w *Wanted) String() string { return [...]string{"", "stages", "full"}[*w] }

// Type is what help shows for the value.
func (w *Wanted) Type() string { return "what" }
