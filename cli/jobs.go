package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/format"
	"berth/cli/term"
)

type jobRow struct {
	ID       string `header:"JOB ID"`
	Kind     string
	Target   string
	State    string
	Caller   string
	Created  string
	Took     string
	Progress string
	Error    string
	Result   string
	Steps    []jobStep
}

// jobStep is a step of a job, its times in microseconds.
type jobStep struct {
	Name, Daemon                 string
	OffsetMicros, DurationMicros int64
	Done                         bool
	Error                        string
}

func (a *app) jobsCommand() *cobra.Command {
	var active, quiet, noTrunc bool
	var filters []string
	var layout string
	var last int32
	c := &cobra.Command{
		Use: "jobs [OPTIONS]", Aliases: []string{"job"}, Short: "List what the engine does and has done", Args: needArgs(0, 0),
		Example: "  berth jobs --active\n  berth jobs show 3f2a91c0d4e5\n  berth jobs watch 3f2a\n  berth jobs cancel 3f2a",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.jobs.List(cmd.Context(), &apiv1.JobServiceListRequest{Active: active, Filters: filters, PageSize: last})
			if err != nil {
				return err
			}
			var rows []jobRow
			for _, j := range r.GetJobs() {
				rows = append(rows, newJobRow(j, noTrunc))
			}
			if quiet {
				for _, r := range rows {
					fmt.Fprintln(cmd.OutOrStdout(), r.ID)
				}
				return nil
			}
			return format.Rows(cmd.OutOrStdout(), layout, []string{"ID", "Kind", "Target", "State", "Created", "Took", "Progress"}, rows)
		}),
	}
	f := c.Flags()
	f.BoolVar(&active, "active", false, "only those that have not ended")
	f.BoolVarP(&quiet, "quiet", "q", false, "only ids")
	f.BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
	f.Int32VarP(&last, "last", "n", 50, "at most n")
	flags.Array(f, &filters, "filter", "f", "only those that match: kind=, state=, target=")
	f.StringVar(&layout, "format", "", "table, json, or a template")
	c.AddCommand(a.jobShowCommand(), a.jobWatchCommand(), a.jobCancelCommand())
	return c
}

func newJobRow(j *apiv1.Job, noTrunc bool) jobRow {
	target := j.GetTarget()
	if r := []rune(target); !noTrunc && len(r) > 40 {
		target = string(r[:39]) + "…"
	}
	p := ""
	if pr := j.GetProgress(); pr.GetJobTotalBytes() > 0 {
		p = fmt.Sprintf("%s / %s", format.Bytes(pr.GetJobCurrentBytes()), format.Bytes(pr.GetJobTotalBytes()))
	}
	steps := []jobStep{}
	for _, t := range j.GetSteps() {
		steps = append(steps, jobStep{t.GetName(), t.GetDaemon(), t.GetOffset().AsDuration().Microseconds(),
			t.GetDuration().AsDuration().Microseconds(), t.GetDone(), t.GetError()})
	}
	return jobRow{
		Steps: steps,
		ID:    j.GetId(), Kind: j.GetKind(), Target: target, State: jobState(j), Caller: callerText(j.GetCaller()),
		Created: format.Ago(j.GetCreatedAt().AsTime()), Took: jobTook(j), Progress: p, Error: j.GetError(), Result: j.GetResult(),
	}
}

func callerText(c *apiv1.JobCaller) string {
	return fmt.Sprintf("uid=%d pid=%d", c.GetUid(), c.GetPid())
}

func jobState(j *apiv1.Job) string {
	return strings.ToLower(strings.TrimPrefix(j.GetState().String(), "JOB_STATE_"))
}

func jobTook(j *apiv1.Job) string {
	end := time.Now()
	if j.GetEndedAt() != nil {
		end = j.GetEndedAt().AsTime()
	}
	return roundTook(end.Sub(j.GetCreatedAt().AsTime()))
}

// roundTook keeps three digits or so: "4.21ms", "3.5s".
func roundTook(d time.Duration) string {
	switch {
	case d > 10*time.Second:
		d = d.Round(time.Second)
	case d > time.Second:
		d = d.Round(10 * time.Millisecond)
	case d > time.Millisecond:
		d = d.Round(10 * time.Microsecond)
	default:
		d = d.Round(time.Microsecond)
	}
	return d.String()
}

func (a *app) jobShowCommand() *cobra.Command {
	var layout string
	c := &cobra.Command{
		Use: "show [OPTIONS] JOB", Aliases: []string{"inspect"}, Short: "Show a job with the time of each step", Args: needArgs(1, 1), Example: "  berth jobs show 3f2a",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.jobs.Get(cmd.Context(), &apiv1.JobServiceGetRequest{Id: args[0]})
			if err != nil {
				return err
			}
			if layout != "" {
				return format.Rows(cmd.OutOrStdout(), layout, nil, []jobRow{newJobRow(r.GetJob(), true)})
			}
			printJob(cmd.OutOrStdout(), r.GetJob())
			return nil
		}),
	}
	c.Flags().StringVar(&layout, "format", "", "json or a template")
	return c
}

func printJob(w io.Writer, j *apiv1.Job) {
	fmt.Fprintf(w, "Job %s: %s %s\n", j.GetId(), j.GetKind(), j.GetTarget())
	fmt.Fprintf(w, "  state    %s\n  caller   %s\n  created  %s\n  took     %s\n", jobState(j), callerText(j.GetCaller()),
		j.GetCreatedAt().AsTime().Local().Format(time.RFC3339), jobTook(j))
	if j.GetResult() != "" {
		fmt.Fprintf(w, "  result   %s\n", j.GetResult())
	}
	if j.GetError() != "" {
		fmt.Fprintf(w, "  error    %s\n", j.GetError())
	}
	if len(j.GetSteps()) == 0 {
		return
	}
	lines := [][]string{{"  STEP", "DAEMON", "AT", "TOOK", ""}}
	for _, s := range j.GetSteps() {
		took := roundTook(s.GetDuration().AsDuration())
		if !s.GetDone() {
			took = "…"
		}
		lines = append(lines, []string{"  " + s.GetName(), s.GetDaemon(), roundTook(s.GetOffset().AsDuration()), took, s.GetError()})
	}
	_ = writeColumns(w, lines)
}

func (a *app) jobWatchCommand() *cobra.Command {
	return &cobra.Command{
		Use: "watch JOB", Short: "Follow a job until it ends", Args: needArgs(1, 1), Example: "  berth jobs watch 3f2a",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			stream, err := e.jobs.Watch(cmd.Context(), &apiv1.JobServiceWatchRequest{Id: args[0]})
			if err != nil {
				return err
			}
			var last *apiv1.Job
			redraw := term.IsTerminal(os.Stderr)
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					return err
				}
				last = m.GetJob()
				row := newJobRow(last, true)
				text := strings.TrimSpace(fmt.Sprintf("%s %s %s %s", row.Kind, row.Target, row.State, row.Progress))
				if redraw {
					fmt.Fprintf(cmd.ErrOrStderr(), "\r\x1b[2K%s", text)
				} else {
					fmt.Fprintln(cmd.ErrOrStderr(), text)
				}
			}
			if redraw {
				fmt.Fprintln(cmd.ErrOrStderr())
			}
			if last == nil {
				return nil
			}
			printJob(cmd.OutOrStdout(), last)
			if last.GetState() != apiv1.JobState_JOB_STATE_SUCCEEDED {
				return exitCode(1)
			}
			return nil
		}),
	}
}

func (a *app) jobCancelCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cancel JOB [JOB...]", Short: "Cancel jobs and undo what they did", Args: needArgs(1, -1), Example: "  berth jobs cancel 3f2a",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			return each(cmd, args, func(id string) (string, error) {
				r, err := e.jobs.Cancel(cmd.Context(), &apiv1.JobServiceCancelRequest{Id: id})
				return r.GetJob().GetId(), err
			})
		}),
	}
}
