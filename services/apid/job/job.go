// Package job keeps the table of what the engine does and has done. A job is a
// piece of work that spans daemons: it has a kind, a target, a caller, steps
// with their times, progress, and in the end a result or an error. It lives as
// long as its work, not as long as the client that asked for it, can be watched
// and cancelled by others, and stays in a bounded history.
//
// The table is written to a journal without waiting for the disk: a container's
// start must not. What a power cut takes from the history is lost; what work it
// cuts short is put right by the engine's reconciler, which compares what the
// daemons have and needs no job for that.
package job

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/fault"
	"berth/internal/faultpoint"
	"berth/internal/journal"
	apiv1 "berth/proto/berth/api/v1"
)

var (
	pointBegun = faultpoint.Declare("apid.job-begun", "a job is in the journal, its work not begun")
	pointEnded = faultpoint.Declare("apid.job-ended", "a job's work is done, its end not in the journal")
)

var (
	errCancelled = fault.Cancelled.Errorf("JOB_CANCELLED", "the job was cancelled")
	errStopping  = fault.Unavailable.Errorf("DAEMON_STOPPING", "apid is stopping")
)

// interrupted is the error of jobs that the previous apid did not finish.
const interrupted = "apid was restarted"

// Table holds all jobs. Its methods may be called from any goroutine.
type Table struct {
	log     hclog.Logger
	journal *journal.Journal
	history int // ended jobs to remember
	notify  func(*apiv1.Job)

	mu     sync.Mutex
	jobs   map[string]*Job
	ended  []*Job // oldest first
	closed bool
	wg     sync.WaitGroup
}

// Open reads the table from j, which it does not close. Jobs that were running
// when the last process ended are now failed. notify, if not nil, hears of each
// begin and end; it must not block.
func Open(j *journal.Journal, history int, log hclog.Logger, notify func(*apiv1.Job)) (*Table, error) {
	if notify == nil {
		notify = func(*apiv1.Job) {}
	}
	t := &Table{log: log, journal: j, history: history, notify: notify, jobs: map[string]*Job{}}
	var batch journal.Batch
	for key, value := range j.Range(keyPrefix) {
		record := new(apiv1.Job)
		if err := proto.Unmarshal(value, record); err != nil {
			return nil, fault.DataLoss.Errorf("JOB_DAMAGED", "record %s: %w", key, err)
		}
		if !Ended(record) {
			record.State = apiv1.JobState_JOB_STATE_FAILED
			record.Error = interrupted
			record.EndedAt = timestamppb.Now()
			if err := put(&batch, record); err != nil {
				return nil, err
			}
			log.Warn("job was interrupted", "job", record.Id, "kind", record.Kind, "target", record.Target)
		}
		done := make(chan struct{})
		close(done)
		t.jobs[record.Id] = &Job{table: t, record: record, done: done, changed: make(chan struct{})}
		t.ended = append(t.ended, t.jobs[record.Id])
	}
	slices.SortFunc(t.ended, func(a, b *Job) int { return newer(b.record, a.record) })
	t.trim(&batch)
	return t, j.Commit(&batch, false)
}

// Close cancels what runs and waits for it for at most patience.
func (t *Table) Close(patience time.Duration) {
	t.mu.Lock()
	t.closed = true
	for _, j := range t.jobs {
		j.stop(errStopping)
	}
	t.mu.Unlock()
	idle := make(chan struct{})
	go func() { t.wg.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-time.After(patience):
		t.log.Warn("jobs did not end in time")
	}
}

// Spec says what a job is.
type Spec struct {
	Kind, Target string
	Caller       *apiv1.JobCaller
	RequestID    string
}

// Begin enters a job that runs in the caller's goroutine. The context ends with
// ctx and when the job is cancelled, then with a fault as its cause. The caller
// must call End.
func (t *Table) Begin(ctx context.Context, spec Spec) (*Job, context.Context, error) {
	j := &Job{
		table: t,
		begun: time.Now(),
		record: &apiv1.Job{
			Id:        newID(),
			Kind:      spec.Kind,
			Target:    spec.Target,
			State:     apiv1.JobState_JOB_STATE_RUNNING,
			Caller:    spec.Caller,
			CreatedAt: timestamppb.Now(),
			RequestId: spec.RequestID,
		},
		done:    make(chan struct{}),
		changed: make(chan struct{}),
	}
	ctx, j.cancel = context.WithCancelCause(ctx)

	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		j.cancel(nil)
		return nil, nil, errStopping
	}
	t.jobs[j.record.Id] = j
	t.wg.Add(1)
	t.mu.Unlock()

	if err := t.save(j.Snapshot()); err != nil {
		// A full disk must not keep anybody from stopping a container.
		t.log.Warn("job not recorded", "job", j.ID(), "error", err)
	}
	if err := pointBegun.Hit(); err != nil {
		j.End("", err)
		return nil, nil, err
	}
	t.notify(j.Snapshot())
	return j, ctx, nil
}

// Go runs work as a job of its own goroutine, which no client's leaving ends.
// The values of ctx are kept.
func (t *Table) Go(ctx context.Context, spec Spec, work func(ctx context.Context, j *Job) (result string, err error)) (*Job, error) {
	j, ctx, err := t.Begin(context.WithoutCancel(ctx), spec)
	if err != nil {
		return nil, err
	}
	go func() {
		var result string
		var err error
		defer func() {
			if r := recover(); r != nil {
				t.log.Error("panic in a job", "job", j.ID(), "kind", spec.Kind, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
				err = fault.Internal.Errorf("PANIC", "internal error in job %s", spec.Kind).
					Hint("this is a bug: please report it with the daemon's log")
			}
			j.End(result, err)
		}()
		result, err = work(ctx, j)
	}()
	return j, nil
}

// Get finds a job by its id or an unambiguous prefix of it.
func (t *Table) Get(id string) (*Job, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j := t.jobs[id]; j != nil {
		return j, nil
	}
	var found *Job
	for full, j := range t.jobs {
		if id != "" && strings.HasPrefix(full, id) {
			if found != nil {
				return nil, fault.FailedPrecondition.Errorf("AMBIGUOUS_ID", "several jobs' ids start with %q", id).With("job", id)
			}
			found = j
		}
	}
	if found == nil {
		return nil, fault.NotFound.Errorf("JOB_NOT_FOUND", "no such job: %s", id).With("job", id)
	}
	return found, nil
}

// List is every job, newest first.
func (t *Table) List() []*apiv1.Job {
	t.mu.Lock()
	jobs := make([]*Job, 0, len(t.jobs))
	for _, j := range t.jobs {
		jobs = append(jobs, j)
	}
	t.mu.Unlock()
	records := make([]*apiv1.Job, len(jobs))
	for i, j := range jobs {
		records[i] = j.Snapshot()
	}
	slices.SortFunc(records, newer)
	return records
}

// finish moves j to the history.
func (t *Table) finish(j *Job) {
	record := j.Snapshot()
	if err := pointEnded.Hit(); err != nil {
		t.log.Warn("job's end not recorded", "job", record.Id, "error", err)
	}
	var batch journal.Batch
	err := put(&batch, record)
	t.mu.Lock()
	t.ended = append(t.ended, j)
	t.trim(&batch)
	t.mu.Unlock()
	if err == nil {
		err = t.journal.Commit(&batch, false)
	}
	if err != nil {
		t.log.Warn("job's end not recorded", "job", record.Id, "error", err)
	}
	t.notify(record)
	t.wg.Done()
}

// trim forgets the oldest ended jobs; it needs mu.
func (t *Table) trim(batch *journal.Batch) {
	for len(t.ended) > t.history {
		id := t.ended[0].record.Id
		delete(t.jobs, id)
		batch.Delete(keyPrefix + id)
		t.ended[0] = nil
		t.ended = t.ended[1:]
	}
}

func (t *Table) save(record *apiv1.Job) error {
	var batch journal.Batch
	if err := put(&batch, record); err != nil {
		return err
	}
	return t.journal.Commit(&batch, false)
}

const keyPrefix = "job/"

func put(batch *journal.Batch, record *apiv1.Job) error {
	value, err := proto.Marshal(record)
	if err == nil {
		batch.Put(keyPrefix+record.Id, value)
	}
	return err
}

// Ended reports whether nothing more will happen to a job.
func Ended(record *apiv1.Job) bool {
	return record.State != apiv1.JobState_JOB_STATE_RUNNING && record.State != apiv1.JobState_JOB_STATE_QUEUED
}

func newer(a, b *apiv1.Job) int {
	if c := b.CreatedAt.AsTime().Compare(a.CreatedAt.AsTime()); c != 0 {
		return c
	}
	return strings.Compare(a.Id, b.Id)
}

func newID() string {
	var b [6]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Job is one job. Its methods may be called from any goroutine.
type Job struct {
	table *Table
	begun time.Time // monotonic; zero for a job of an earlier process
	done  chan struct{}

	mu sync.Mutex
	// cancel is nil once the job has ended: the history must not keep the context,
	// with all that the call had.
	cancel   context.CancelCauseFunc
	record   *apiv1.Job
	err      error
	progress []progressItem
	version  uint64        // of progress
	changed  chan struct{} // closed and replaced at each change
}

type progressItem struct {
	latest  *apiv1.JobProgress
	version uint64
}

// ID is the job's id, 12 hex digits.
func (j *Job) ID() string { return j.record.Id }

// Begun is when the job began.
func (j *Job) Begun() time.Time { return j.begun }

// Snapshot is the job as it is now; the caller owns it.
func (j *Job) Snapshot() *apiv1.Job {
	j.mu.Lock()
	defer j.mu.Unlock()
	return proto.CloneOf(j.record)
}

// Done is closed when the job has ended.
func (j *Job) Done() <-chan struct{} { return j.done }

// Err is the error of an ended job of this process.
func (j *Job) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// Wait waits for the end of the job or of ctx, and returns that one's error.
func (j *Job) Wait(ctx context.Context) error {
	select {
	case <-j.done:
		return j.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Cancel asks the work to end; it is undone before the job is.
func (j *Job) Cancel() error {
	select {
	case <-j.done:
		return fault.FailedPrecondition.Errorf("JOB_ENDED", "job %s has ended", j.ID()).With("job", j.ID())
	default:
		j.stop(errCancelled)
		return nil
	}
}

// stop ends the context of the work with a cause.
func (j *Job) stop(cause error) {
	j.mu.Lock()
	cancel := j.cancel
	j.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
}

// update changes the record and wakes who watches.
func (j *Job) update(change func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change()
	close(j.changed)
	j.changed = make(chan struct{})
}

// Target replaces the job's target when a better name is known.
func (j *Job) Target(name string) { j.update(func() { j.record.Target = name }) }

// Step does one step of the work and notes how long it took. Steps may overlap.
func (j *Job) Step(name, daemon string, work func() error) error {
	step := &apiv1.JobStep{Name: name, Daemon: daemon, Offset: durationpb.New(time.Since(j.begun))}
	j.update(func() { j.record.Steps = append(j.record.Steps, step) })
	begin := time.Now()
	err := work()
	j.update(func() {
		step.Duration = durationpb.New(time.Since(begin))
		step.Done = err == nil
		if err != nil {
			step.Error = err.Error()
		}
	})
	return err
}

// Note adds a step that has been done since begin.
func (j *Job) Note(name, daemon string, begin time.Time) {
	j.update(func() {
		j.record.Steps = append(j.record.Steps, &apiv1.JobStep{
			Name: name, Daemon: daemon, Done: true,
			Offset: durationpb.New(begin.Sub(j.begun)), Duration: durationpb.New(time.Since(begin)),
		})
	})
}

// Trace is the steps so far, as a start's answer shows them.
func (j *Job) Trace() []*apiv1.TraceStep {
	j.mu.Lock()
	defer j.mu.Unlock()
	var trace []*apiv1.TraceStep
	for _, s := range j.record.Steps {
		if s.Done {
			trace = append(trace, &apiv1.TraceStep{Name: s.Name, Offset: s.Offset, Duration: s.Duration})
		}
	}
	return trace
}

// Progress notes how far an item of the work is. Of each item only the latest
// is kept, so that a watcher who is slow costs nothing.
func (j *Job) Progress(p *apiv1.JobProgress) {
	j.update(func() {
		j.record.Progress = p
		j.version++
		for i := range j.progress {
			if old := j.progress[i].latest; old.Item == p.Item && old.Step == p.Step {
				j.progress[i] = progressItem{p, j.version}
				return
			}
		}
		const most = 4096 // items; an image has at most 1,000 layers
		if len(j.progress) < most {
			j.progress = append(j.progress, progressItem{p, j.version})
		}
	})
}

// Follow calls send for each item of progress that is new since the last call,
// until the job or ctx ends, and returns the job's error or why it stopped
// following. The work does not wait for send.
func (j *Job) Follow(ctx context.Context, send func(*apiv1.JobProgress) error) error {
	var seen uint64
	for {
		j.mu.Lock()
		var fresh []*apiv1.JobProgress
		for _, item := range j.progress {
			if item.version > seen {
				fresh = append(fresh, item.latest)
			}
		}
		seen = j.version
		changed := j.changed
		j.mu.Unlock()
		for _, p := range fresh {
			if err := send(p); err != nil {
				return err
			}
		}
		select {
		case <-j.done:
			j.mu.Lock()
			all := j.version == seen
			j.mu.Unlock()
			if all {
				return j.Err()
			}
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// End ends the job: succeeded without an error, cancelled if that is the error,
// else failed. Only the first call counts.
func (j *Job) End(result string, err error) {
	first := false
	j.update(func() {
		if Ended(j.record) {
			return
		}
		first = true
		j.err = err
		j.record.EndedAt = timestamppb.Now()
		switch {
		case err == nil:
			j.record.State = apiv1.JobState_JOB_STATE_SUCCEEDED
			j.record.Result = result
		case errors.Is(err, fault.Cancelled) || errors.Is(err, context.Canceled):
			j.record.State = apiv1.JobState_JOB_STATE_CANCELLED
			j.record.Error = err.Error()
		default:
			j.record.State = apiv1.JobState_JOB_STATE_FAILED
			j.record.Error = err.Error()
		}
	})
	if !first {
		return
	}
	j.table.finish(j)
	j.stop(nil)
	close(j.done)
	j.update(func() { j.cancel = nil })
}
