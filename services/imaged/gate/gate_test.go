package gate

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestLimitChanges(t *testing.T) {
	g := New(2)
	var inside, most atomic.Int32
	hold := make(chan struct{})
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if err := g.Enter(context.Background()); err != nil {
				t.Error(err)
				return
			}
			defer g.Leave()
			n := inside.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-hold
			inside.Add(-1)
		})
	}
	reach := func(n int32) {
		t.Helper()
		for range 1000 {
			if inside.Load() == n {
				return
			}
			time.Sleep(time.Millisecond)
		}
		t.Errorf("%d are inside, want %d", inside.Load(), n)
	}
	reach(2)
	g.SetLimit(5)
	reach(5)
	g.SetLimit(1) // nobody is thrown out, and nobody comes in until there is room
	hold <- struct{}{}
	reach(4)
	for n := int32(3); n >= 1; n-- {
		hold <- struct{}{}
		reach(n)
	}
	hold <- struct{}{}
	reach(1) // the next one
	close(hold)
	all.Wait()
	if most.Load() != 5 || g.Limit() != 1 {
		t.Errorf("at most %d were inside, limit %d", most.Load(), g.Limit())
	}
}

func TestEnterEnds(t *testing.T) {
	g := New(0) // one
	if err := g.Enter(context.Background()); err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(gone)
	if err := g.Enter(ctx); !errors.Is(err, gone) {
		t.Error(err)
	}
	g.Leave()
	if err := g.Enter(context.Background()); err != nil { // the one that gave up holds no place
		t.Error(err)
	}
}
