package slot

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// factory makes slots as a test tells it to.
type factory struct {
	mu      sync.Mutex
	made    int
	dropped []string
	err     error
	gate    chan struct{} // if not nil, making a slot waits for it
}

func (f *factory) make(ctx context.Context) (*Slot, error) {
	if f.gate != nil {
		select {
		case <-f.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	f.made++
	return &Slot{Namespace: fmt.Sprint("s", f.made)}, nil
}

func (f *factory) drop(s *Slot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropped = append(f.dropped, s.Namespace)
}

func start(t *testing.T, size int, f *factory) *Pool {
	t.Helper()
	p := NewPool(size, f.make, f.drop, hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return p
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("not within 5 s: ", what)
}

func TestPoolRefills(t *testing.T) {
	f := &factory{}
	p := start(t, 3, f)
	for range 10 {
		eventually(t, "a full pool", func() bool { return p.Len() == 3 })
		if p.Take() == nil {
			t.Fatal("a full pool has no slot")
		}
	}
	if f.made > 13 {
		t.Errorf("%d slots made, at most 13 are needed", f.made)
	}
}

func TestPoolOfNone(t *testing.T) {
	p := start(t, 0, &factory{})
	if s := p.Take(); s != nil {
		t.Errorf("an empty pool gave %v", s)
	}
}

// What was begun before a Discard is not kept either: its namespace may be gone.
func TestPoolDiscardsWhatIsBeingMade(t *testing.T) {
	f := &factory{gate: make(chan struct{})}
	p := start(t, 1, f)
	time.Sleep(10 * time.Millisecond) // the first slot is being made
	p.Discard()
	f.gate <- struct{}{}
	eventually(t, "the slot begun before is dropped", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.dropped) == 1
	})
	f.gate <- struct{}{}
	eventually(t, "the next one is kept", func() bool { return p.Len() == 1 })
	p.Discard()
	if p.Len() != 0 || len(f.dropped) != 2 {
		t.Errorf("after Discard: %d ready, dropped %v", p.Len(), f.dropped)
	}
}

func TestPoolSurvivesFailure(t *testing.T) {
	f := &factory{err: errors.New("execd is away")}
	p := start(t, 1, f)
	time.Sleep(20 * time.Millisecond)
	if s := p.Take(); s != nil {
		t.Errorf("got %v from a factory that fails", s)
	}
	f.mu.Lock()
	f.err = nil
	f.mu.Unlock()
	eventually(t, "the pool is full", func() bool { return p.Len() == 1 })
}
