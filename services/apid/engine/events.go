package engine

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/events"
	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/apid/backend"
	"berth/services/apid/job"
)

// JobEvents turns changes of jobs into events and keeps the last of them.
type JobEvents struct {
	mu       sync.Mutex
	sequence uint64
	history  []*apiv1.Event // oldest first
	changed  chan struct{}  // closed and replaced at each event
}

const jobEventHistory = 1024

// NewJobEvents makes an empty history.
func NewJobEvents() *JobEvents { return &JobEvents{changed: make(chan struct{})} }

// Notify is for job.Open: it hears of each begin and end of a job.
func (l *JobEvents) Notify(j *apiv1.Job) {
	event := &apiv1.Event{
		Time:   timestamppb.Now(),
		Type:   "job",
		Action: "begin",
		Id:     j.Id,
		Attributes: map[string]string{
			"kind": j.Kind, "target": j.Target,
		},
		Daemon: "apid",
	}
	if job.Ended(j) {
		event.Action = job.StateName(j.State)
		if j.Error != "" {
			event.Attributes["error"] = j.Error
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sequence++
	event.Sequence = l.sequence
	if len(l.history) == jobEventHistory {
		l.history = slices.Delete(l.history, 0, jobEventHistory/2)
	}
	l.history = append(l.history, event)
	close(l.changed)
	l.changed = make(chan struct{})
}

// after is what happened after a sequence number, and a channel that is closed
// when there is more.
func (l *JobEvents) after(sequence uint64) ([]*apiv1.Event, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, _ := slices.BinarySearchFunc(l.history, sequence+1, func(e *apiv1.Event, n uint64) int { return cmp.Compare(e.Sequence, n) })
	return slices.Clone(l.history[i:]), l.changed
}

// Events is EventService: the events of all daemons in one stream.
type Events struct {
	apiv1.UnimplementedEventServiceServer
	*Engine
}

// eventBacklog is how many events a reader may be behind.
const eventBacklog = 1024

// Watch is EventService.Watch. A daemon that is away, or goes away, is left out
// until it is back; its events of the meantime follow then.
func (s *Events) Watch(req *apiv1.EventServiceWatchRequest, client grpc.ServerStreamingServer[apiv1.EventServiceWatchResponse]) error {
	if err := events.CheckFilters(req.GetFilters()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(client.Context())
	defer cancel(nil)
	if req.Until != nil {
		var done context.CancelFunc
		ctx, done = context.WithDeadline(ctx, req.Until.AsTime().Add(endSlack))
		defer done()
	}
	past := req.Until != nil && req.Until.AsTime().Before(time.Now())
	events := make(chan *apiv1.Event, eventBacklog)
	emit := func(e *apiv1.Event) {
		if req.Until != nil && e.GetTime().AsTime().After(req.Until.AsTime()) {
			return
		}
		if past { // nobody waits: no limit but the daemons' own histories
			select {
			case events <- e:
			case <-ctx.Done():
			}
			return
		}
		select {
		case events <- e:
		default:
			cancel(fault.ResourceExhausted.Errorf("READER_TOO_SLOW", "more than %d events behind", eventBacklog).
				Hint("watch again with --since"))
		}
	}
	var sources sync.WaitGroup
	for _, b := range s.Backends.Each() {
		sources.Go(func() { watchBackend(ctx, b, req, past, emit) })
	}
	sources.Go(func() { s.watchJobs(ctx, req, past, emit) })
	go func() { sources.Wait(); close(events) }()

	if past {
		return sendSorted(client, events)
	}
	for {
		select {
		case e, open := <-events:
			if !open {
				return endOf(ctx, client.Context())
			}
			if err := client.Send(&apiv1.EventServiceWatchResponse{Event: e}); err != nil {
				return err
			}
		case <-ctx.Done():
			return endOf(ctx, client.Context())
		}
	}
}

// endSlack lets events of the last moment arrive, and a past window be read.
const endSlack = 2 * time.Second

// endOf is nil when the stream ended because its time was over.
func endOf(ctx, client context.Context) error {
	if cause := context.Cause(ctx); fault.ReasonOf(cause) != "" {
		return cause
	}
	return client.Err()
}

// sendSorted sends a window of the past in the order of time.
func sendSorted(client grpc.ServerStreamingServer[apiv1.EventServiceWatchResponse], events <-chan *apiv1.Event) error {
	var all []*apiv1.Event
	for e := range events {
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b *apiv1.Event) int { return a.GetTime().AsTime().Compare(b.GetTime().AsTime()) })
	for _, e := range all {
		if err := client.Send(&apiv1.EventServiceWatchResponse{Event: e}); err != nil {
			return err
		}
	}
	return nil
}

// watchBackend emits one daemon's events, across its restarts, until ctx is done
// or, for a window of the past, until it has told all.
func watchBackend(ctx context.Context, b *backend.Backend, req *apiv1.EventServiceWatchRequest, past bool, emit func(*apiv1.Event)) {
	ask := &apiv1.EventServiceWatchRequest{Since: req.Since, Until: req.Until, Filters: req.Filters}
	begin := time.Now()
	for ctx.Err() == nil {
		stream, err := apiv1.NewEventServiceClient(b.Conn).Watch(ctx, ask)
		for err == nil {
			var m *apiv1.EventServiceWatchResponse
			if m, err = stream.Recv(); err == nil && m.Event != nil {
				if m.Event.Daemon == "" {
					m.Event.Daemon = b.Name
				}
				emit(m.Event)
				ask.Since = timestamppb.New(m.Event.GetTime().AsTime().Add(1))
			}
		}
		if past || fault.Is(err, fault.Unimplemented) || fault.Is(err, fault.InvalidArgument) {
			return
		}
		if ask.Since == nil { // what happens before it is back counts
			ask.Since = timestamppb.New(begin)
		}
		pause(ctx, 300*time.Millisecond)
	}
}

func (s *Events) watchJobs(ctx context.Context, req *apiv1.EventServiceWatchRequest, past bool, emit func(*apiv1.Event)) {
	if !wantsJobs(req.Filters) {
		return
	}
	var seen uint64
	first := true
	for {
		fresh, changed := s.Needs.Events.after(seen)
		for _, e := range fresh {
			seen = e.Sequence
			old := first && (req.Since == nil || e.Time.AsTime().Before(req.Since.AsTime()))
			if !old && wantsAction(req.Filters, e.Action) {
				emit(e)
			}
		}
		if first = false; past {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// wantsJobs reports whether filters let events of jobs through: those about
// other objects' names and labels do not.
func wantsJobs(filters []string) bool {
	typed, job := false, false
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "type":
			typed, job = true, job || value == "job"
		case "event":
		default:
			return false
		}
	}
	return !typed || job
}

func wantsAction(filters []string, action string) bool {
	any, match := false, false
	for _, f := range filters {
		if value, ok := strings.CutPrefix(f, "event="); ok {
			any, match = true, match || value == action
		}
	}
	return !any || match
}
