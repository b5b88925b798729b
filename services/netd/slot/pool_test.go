package slot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// factory makes slots as a test tells it to.
type factory struct {
	mu      sync.Mutex
	made    int
	batches []int // sizes
	dropped []string
	err     error
	gate    chan struct{} // if not nil, making a slot waits for it
}

func (f *factory) make(ctx context.Context, n int) ([]*Slot, error) {
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
	var made []*Slot
	for range n {
		f.made++
		made = append(made, &Slot{Namespace: fmt.Sprint("s", f.made)})
	}
	f.batches = append(f.batches, n)
	return made, nil
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
		if p.Take(t.Context()) == nil {
			t.Fatal("a full pool has no slot")
		}
	}
	if f.made > 13 {
		t.Errorf("%d slots made, at most 13 are needed", f.made)
	}
}

func TestPoolOfNone(t *testing.T) {
	p := start(t, 0, &factory{})
	if s := p.Take(t.Context()); s != nil {
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
	if s := p.Take(t.Context()); s != nil {
		t.Errorf("got %v from a factory that fails", s)
	}
	f.mu.Lock()
	f.err = nil
	f.mu.Unlock()
	eventually(t, "the pool is full", func() bool { return p.Len() == 1 })
}

// A lone start's slot is not replaced at once; in a burst half the pool is made
// anew in one go.
func TestPoolMakesBatches(t *testing.T) {
	f := &factory{}
	p := start(t, 8, f)
	eventually(t, "a full pool", func() bool { return p.Len() == 8 })
	begin := time.Now()
	p.Take(t.Context())
	eventually(t, "the slot is replaced", func() bool { return p.Len() == 8 })
	if took := time.Since(begin); took < settle {
		t.Errorf("a slot was replaced after %v, want at least %v", took, settle)
	}
	for range 4 {
		p.Take(t.Context())
	}
	eventually(t, "half the pool is replaced", func() bool { return p.Len() == 8 })
	f.mu.Lock()
	defer f.mu.Unlock()
	if want := []int{8, 1, 4}; !slices.Equal(f.batches, want) {
		t.Errorf("batches of %v were made, want %v", f.batches, want)
	}
}

// Who finds the pool empty is given one of the next.
func TestPoolServesThoseWhoWait(t *testing.T) {
	f := &factory{gate: make(chan struct{})}
	p := start(t, 2, f)
	got := make(chan *Slot)
	for range 5 {
		go func() { got <- p.Take(t.Context()) }()
	}
	gaveUp, giveUp := context.WithCancel(t.Context())
	go func() { got <- p.Take(gaveUp) }()
	waiting := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.waiting)
	}
	eventually(t, "all wait", func() bool { return waiting() == 6 })
	giveUp()
	if s := <-got; s != nil {
		t.Errorf("who gave up got %v", s)
	}
	close(f.gate)
	seen := map[string]bool{}
	for range 5 {
		s := <-got
		if s == nil || seen[s.Namespace] {
			t.Errorf("who waited got %v, others %v", s, seen)
			continue
		}
		seen[s.Namespace] = true
	}
	eventually(t, "a full pool", func() bool { return p.Len() == 2 })
}

// When slots cannot be made nobody waits for one.
func TestPoolSendsThoseAwayWhoWait(t *testing.T) {
	f := &factory{gate: make(chan struct{}), err: errors.New("execd is away")}
	p := start(t, 2, f)
	got := make(chan *Slot)
	go func() { got <- p.Take(t.Context()) }()
	f.gate <- struct{}{}
	if s := <-got; s != nil {
		t.Errorf("got %v from a factory that fails", s)
	}
}

func TestPoolLosesOne(t *testing.T) {
	f := &factory{}
	p := start(t, 2, f)
	eventually(t, "a full pool", func() bool { return p.Len() == 2 })
	p.Lost("no such")
	p.mu.Lock()
	p.ready[1].Port = "bv1"
	p.mu.Unlock()
	p.Lost("bv1")
	eventually(t, "a full pool again", func() bool { return p.Len() == 2 })
	if !slices.Equal(f.dropped, []string{"s2"}) {
		t.Errorf("dropped %v, want s2", f.dropped)
	}
}
