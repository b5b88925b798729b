// Package events tells what happens to a daemon's objects, and for a while what
// has happened: the ring that keeps it, and EventService over the ring.
//
// The last events are kept in a ring, encoded: as a message with a map an event
// takes four times as much, for as long as the daemon lives. Each has a sequence
// number, so that a reader that was cut off can go on without a gap. A reader
// reads the ring at its own pace; when what it wants next has been overwritten it is cut off. So
// a reader that never reads costs nothing and delays nobody.
package events

import (
	"context"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
)

// History is how many events are kept.
const History = 4096

// Ring has the events. Its methods may be called from any goroutine.
type Ring struct {
	daemon string

	mu    sync.Mutex
	ring  []string      // encoded events; that of sequence number s is at s % History
	next  uint64        // sequence number of the next event; the first is 1
	grown chan struct{} // closed by the next event
}

// New makes a ring of events that the daemon tells.
func New(daemon string) *Ring {
	return &Ring{daemon: daemon, ring: make([]string, History), next: 1, grown: make(chan struct{})}
}

// Emit adds an event about an object: a "container", "image", "network" or
// "volume".
func (r *Ring) Emit(kind, action, id string, attributes map[string]string) {
	e := &apiv1.Event{
		Time: timestamppb.Now(), Type: kind, Action: action, Id: id,
		Attributes: attributes, Daemon: r.daemon,
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Sequence = r.next
	r.ring[r.next%History] = encode(e)
	r.next++
	close(r.grown)
	r.grown = make(chan struct{})
}

// encode fails for strings that are not UTF-8, as a file system's names may be:
// what cannot be told is replaced.
func encode(e *apiv1.Event) string {
	b, err := proto.Marshal(e)
	if err != nil {
		attributes := map[string]string{}
		for k, v := range e.Attributes {
			attributes[strings.ToValidUTF8(k, "\uFFFD")] = strings.ToValidUTF8(v, "\uFFFD")
		}
		e.Id, e.Attributes = strings.ToValidUTF8(e.Id, "\uFFFD"), attributes
		b, _ = proto.Marshal(e)
	}
	return string(b)
}

// Last is the sequence number of the newest event, 0 before the first.
func (r *Ring) Last() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next - 1
}

// Query selects events.
type Query struct {
	// After is the sequence number to go on behind; 0: see Since.
	After uint64
	// Since gives what is kept from then on first; zero: only new ones.
	Since time.Time
	// Until ends the stream; zero: never.
	Until time.Time
	Match func(*apiv1.Event) bool
}

// Watch calls emit for each event until ctx ends or Until has passed.
// ResourceExhausted: the reader did not keep up.
func (r *Ring) Watch(ctx context.Context, q Query, emit func(*apiv1.Event) error) error {
	if !q.Until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, q.Until, errUntil)
		defer cancel()
	}
	at := r.begin(q)
	for {
		e, grown, err := r.get(at)
		if err != nil {
			return err
		}
		if e == nil {
			select {
			case <-grown:
				continue
			case <-ctx.Done():
				if context.Cause(ctx) == errUntil {
					return nil
				}
				return ctx.Err()
			}
		}
		at++
		t := e.Time.AsTime()
		if !q.Until.IsZero() && !t.Before(q.Until) {
			return nil
		}
		if t.Before(q.Since) || (q.Match != nil && !q.Match(e)) {
			continue
		}
		if err := emit(e); err != nil {
			return err
		}
	}
}

var errUntil = fault.DeadlineExceeded.Errorf("UNTIL", "the asked time has passed")

// begin is the sequence number of the first event to look at. A number from
// before a restart may lie in the future; the history then begins anew.
func (r *Ring) begin(q Query) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	oldest := uint64(1)
	if r.next > History {
		oldest = r.next - History
	}
	switch {
	case q.After >= r.next:
		return oldest
	case q.After > 0:
		return q.After + 1
	case !q.Since.IsZero():
		return oldest
	}
	return r.next
}

// get is the event of a sequence number, nil when it is yet to come.
func (r *Ring) get(seq uint64) (*apiv1.Event, <-chan struct{}, error) {
	r.mu.Lock()
	next, encoded, grown := r.next, r.ring[seq%History], r.grown
	r.mu.Unlock()
	switch {
	case seq >= next:
		return nil, grown, nil
	case next-seq > History:
		return nil, nil, fault.ResourceExhausted.Errorf("EVENTS_LOST", "the reader did not keep up with the events")
	}
	e := new(apiv1.Event)
	if err := proto.Unmarshal([]byte(encoded), e); err != nil {
		return nil, nil, fault.Internal.Errorf("EVENT", "decode event %d: %w", seq, err)
	}
	return e, nil, nil
}
