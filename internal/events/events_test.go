package events

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
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

// typical is what netd says when a container leaves the default network.
func typical(r *Ring) {
	r.Emit("network", "disconnect", strings.Repeat("1f", 32), map[string]string{"container": strings.Repeat("2e", 32)})
}

// TestFullRingIsSmall: what is kept as long as the daemon lives takes a MiB, not three.
func TestFullRingIsSmall(t *testing.T) {
	r := New("netd")
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for range History {
		typical(r)
	}
	if each := int64(heap()-before) / History; each > 256 {
		t.Errorf("an event that is kept takes %d bytes", each)
	}
	runtime.KeepAlive(r)
}

func TestWhatIsNotUTF8IsReplaced(t *testing.T) {
	r := New("execd")
	r.Emit("container", "exec_start", "a", map[string]string{"command": "ls \xff", "na\xffme": "x"})
	until := Query{Since: time.Unix(1, 0), Until: time.Now().Add(20 * time.Millisecond)}
	var got []*apiv1.Event
	if err := r.Watch(t.Context(), until, func(e *apiv1.Event) error { got = append(got, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Id != "a" || got[0].Attributes["command"] != "ls \uFFFD" || got[0].Attributes["na\uFFFDme"] != "x" {
		t.Errorf("got %v", got)
	}
}

func BenchmarkEmit(b *testing.B) {
	r := New("netd")
	b.ReportAllocs()
	for b.Loop() {
		typical(r)
	}
}

func BenchmarkRead(b *testing.B) {
	r := New("netd")
	typical(r)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := r.get(1); err != nil {
			b.Fatal(err)
		}
	}
}
