package job

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"berth/internal/fault"
	"berth/internal/journal"
	apiv1 "berth/proto/berth/api/v1"
)

func openTable(t *testing.T, dir string, history int) (*Table, *journal.Journal) {
	t.Helper()
	j, err := journal.Open(dir, journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	table, err := Open(j, history, hclog.NewNullLogger(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return table, j
}

func TestHistoryIsBoundedAndKept(t *testing.T) {
	dir := t.TempDir()
	table, records := openTable(t, dir, 3)
	for i := range 5 {
		j, err := table.Go(context.Background(), Spec{Kind: "k", Target: fmt.Sprint(i)}, func(context.Context, *Job) (string, error) {
			return "r", nil
		})
		if err != nil {
			t.Fatal(err)
		}
		<-j.Done()
	}
	check := func(table *Table) {
		t.Helper()
		var targets []string
		for _, j := range table.List() {
			targets = append(targets, j.Target+j.Result)
		}
		if got := fmt.Sprint(targets); got != "[4r 3r 2r]" {
			t.Errorf("jobs = %s", got)
		}
	}
	check(table)
	if records.Len() != 3 {
		t.Errorf("%d records", records.Len())
	}
	records.Close()
	table, _ = openTable(t, dir, 3)
	check(table)
}

func TestF01RunningJobsOfADeadProcessHaveFailed(t *testing.T) {
	dir := t.TempDir()
	table, records := openTable(t, dir, 10)
	j, _, err := table.Begin(context.Background(), Spec{Kind: "run", Caller: &apiv1.JobCaller{Uid: 7}})
	if err != nil {
		t.Fatal(err)
	}
	records.Close() // the process dies: no End
	table, _ = openTable(t, dir, 10)
	got, err := table.Get(j.ID())
	if err != nil {
		t.Fatal(err)
	}
	r := got.Snapshot()
	if r.State != apiv1.JobState_JOB_STATE_FAILED || r.Error != "apid was restarted" || r.Caller.Uid != 7 {
		t.Errorf("job = %v", r)
	}
	if err := got.Cancel(); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("cancel: %v", err)
	}
}

func TestEndings(t *testing.T) {
	table, _ := openTable(t, t.TempDir(), 10)
	for _, c := range []struct {
		err  error
		want apiv1.JobState
	}{
		{nil, apiv1.JobState_JOB_STATE_SUCCEEDED},
		{errors.New("x"), apiv1.JobState_JOB_STATE_FAILED},
		{fault.Unavailable.Errorf("R", "x"), apiv1.JobState_JOB_STATE_FAILED},
		{fault.Cancelled.Errorf("R", "x"), apiv1.JobState_JOB_STATE_CANCELLED},
		{context.Canceled, apiv1.JobState_JOB_STATE_CANCELLED},
	} {
		j, err := table.Go(context.Background(), Spec{}, func(context.Context, *Job) (string, error) { return "r", c.err })
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Wait(context.Background()); err != c.err {
			t.Errorf("Wait = %v, want %v", err, c.err)
		}
		if got := j.Snapshot(); got.State != c.want || got.EndedAt == nil {
			t.Errorf("%v: %v", c.err, got)
		}
	}
	j, err := table.Go(context.Background(), Spec{}, func(context.Context, *Job) (string, error) { panic("boom") })
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Wait(context.Background()); !errors.Is(err, fault.Internal) {
		t.Errorf("after a panic: %v", err)
	}
}

func TestCancelReachesTheWorkWithItsReason(t *testing.T) {
	table, _ := openTable(t, t.TempDir(), 10)
	caller, leave := context.WithCancel(context.Background())
	j, err := table.Go(caller, Spec{}, func(ctx context.Context, _ *Job) (string, error) {
		<-ctx.Done()
		return "", context.Cause(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	leave()
	select {
	case <-j.Done():
		t.Fatal("ended with its caller")
	case <-time.After(20 * time.Millisecond):
	}
	if err := j.Cancel(); err != nil {
		t.Fatal(err)
	}
	if err := j.Wait(context.Background()); fault.ReasonOf(err) != "JOB_CANCELLED" {
		t.Errorf("err = %v", err)
	}
}

func TestCloseEndsJobsAndRefusesNewOnes(t *testing.T) {
	table, _ := openTable(t, t.TempDir(), 10)
	j, err := table.Go(context.Background(), Spec{}, func(ctx context.Context, _ *Job) (string, error) {
		<-ctx.Done()
		return "", context.Cause(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	table.Close(5 * time.Second)
	if err := j.Wait(context.Background()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("running job: %v", err)
	}
	if _, _, err := table.Begin(context.Background(), Spec{}); !errors.Is(err, fault.Unavailable) {
		t.Errorf("new job: %v", err)
	}
}

func TestFollowSkipsButNeverLosesTheLatest(t *testing.T) {
	table, _ := openTable(t, t.TempDir(), 10)
	release := make(chan struct{})
	j, err := table.Go(context.Background(), Spec{}, func(_ context.Context, j *Job) (string, error) {
		<-release
		for n := range 1000 {
			for _, item := range []string{"a", "b"} {
				j.Progress(&apiv1.JobProgress{Item: item, CurrentBytes: int64(n)})
			}
		}
		return "", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	latest := map[string]int64{}
	sent := 0
	close(release)
	err = j.Follow(context.Background(), func(p *apiv1.JobProgress) error {
		time.Sleep(time.Millisecond) // slower than the work
		sent++
		if p.CurrentBytes < latest[p.Item] {
			t.Errorf("%s went back from %d to %d", p.Item, latest[p.Item], p.CurrentBytes)
		}
		latest[p.Item] = p.CurrentBytes
		return nil
	})
	if err != nil || latest["a"] != 999 || latest["b"] != 999 || sent > 1500 {
		t.Errorf("%v, %v, %d messages", err, latest, sent)
	}
}

func TestStepsAreTimed(t *testing.T) {
	table, _ := openTable(t, t.TempDir(), 10)
	j, _, err := table.Begin(context.Background(), Spec{})
	if err != nil {
		t.Fatal(err)
	}
	j.Step("slow", "netd", func() error { time.Sleep(20 * time.Millisecond); return nil })
	j.Step("bad", "execd", func() error { return errors.New("no") })
	j.End("", nil)
	steps := j.Snapshot().Steps
	if len(steps) != 2 || steps[0].Duration.AsDuration() < 20*time.Millisecond || !steps[0].Done || steps[1].Done || steps[1].Error != "no" ||
		steps[1].Offset.AsDuration() < 20*time.Millisecond {
		t.Errorf("steps = %v", steps)
	}
	if trace := j.Trace(); len(trace) != 1 || trace[0].Name != "slow" {
		t.Errorf("trace = %v", trace)
	}
}

func TestListFiltersAndPages(t *testing.T) {
	table, _ := openTable(t, t.TempDir(), 100)
	for i := range 7 {
		j, _, err := table.Begin(context.Background(), Spec{Kind: []string{"run", "pull"}[i%2], Target: fmt.Sprint(i)})
		if err != nil {
			t.Fatal(err)
		}
		if i < 5 {
			j.End("", nil)
		}
	}
	s := &Service{Table: table}
	list := func(req *apiv1.JobServiceListRequest) (targets string) {
		t.Helper()
		for {
			resp, err := s.List(context.Background(), req)
			if err != nil {
				t.Fatal(err)
			}
			for _, j := range resp.Jobs {
				targets += j.Target
			}
			if req.PageToken = resp.NextPageToken; req.PageToken == "" {
				return targets
			}
			targets += "|"
		}
	}
	for _, c := range []struct {
		req  *apiv1.JobServiceListRequest
		want string
	}{
		{&apiv1.JobServiceListRequest{}, "6543210"},
		{&apiv1.JobServiceListRequest{PageSize: 3}, "654|321|0"},
		{&apiv1.JobServiceListRequest{Active: true}, "65"},
		{&apiv1.JobServiceListRequest{Filters: []string{"kind=pull"}}, "531"},
		{&apiv1.JobServiceListRequest{Filters: []string{"kind=pull", "state=succeeded"}, PageSize: 1}, "3|1"},
		{&apiv1.JobServiceListRequest{Filters: []string{"target=1", "target=2"}}, "21"},
	} {
		name := fmt.Sprint(c.req)
		if got := list(c.req); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	if _, err := s.List(context.Background(), &apiv1.JobServiceListRequest{Filters: []string{"color=red"}}); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("unknown filter: %v", err)
	}
}
