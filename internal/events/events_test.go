package events

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
)

func TestWatchFromSequence(t *testing.T) {
	r := New("execd")
	for i := range 10 {
		r.Emit("container", "start", fmt.Sprint(i), nil)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []uint64
	err := r.Watch(ctx, Query{After: 7}, func(e *apiv1.Event) error {
		if got = append(got, e.Sequence); len(got) == 3 {
			r.Emit("container", "die", "x", nil)
		}
		if len(got) == 4 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || fmt.Sprint(got) != "[8 9 10 11]" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestSlowReaderIsCutOff(t *testing.T) {
	r := New("execd")
	r.Emit("container", "start", "x", nil)
	err := r.Watch(t.Context(), Query{Since: time.Unix(1, 0)}, func(*apiv1.Event) error {
		for range History + 1 {
			r.Emit("container", "start", "x", nil)
		}
		return nil
	})
	if !errors.Is(err, fault.ResourceExhausted) {
		t.Errorf("got %v", err)
	}
}

func TestUntilAndMatch(t *testing.T) {
	r := New("execd")
	r.Emit("container", "start", "a", nil)
	r.Emit("container", "die", "b", nil)
	n := 0
	q := Query{Since: time.Unix(1, 0), Until: time.Now().Add(50 * time.Millisecond), Match: func(e *apiv1.Event) bool { return e.Action == "die" }}
	if err := r.Watch(t.Context(), q, func(*apiv1.Event) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d events, %v", n, err)
	}
}
