// Package gate bounds how many do something at once, by a limit that may change while they do.
package gate

import (
	"context"
	"sync"
)

// Gate lets at most so many in. Its methods may be called from any goroutine.
type Gate struct {
	mu      sync.Mutex
	limit   int
	inside  int
	waiting []chan struct{} // closed when let in; oldest first
}

// New makes a gate that lets limit in, at least one.
func New(limit int) *Gate { return &Gate{limit: max(limit, 1)} }

// Enter waits for a place. Who was let in calls Leave. The error is the context's cause.
func (g *Gate) Enter(ctx context.Context) error {
	g.mu.Lock()
	if g.inside < g.limit && len(g.waiting) == 0 {
		g.inside++
		g.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	g.waiting = append(g.waiting, turn)
	g.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	for i, w := range g.waiting {
		if w == turn {
			g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
			g.mu.Unlock()
			return context.Cause(ctx)
		}
	}
	g.mu.Unlock()
	g.Leave() // let in at the same moment
	return context.Cause(ctx)
}

// Leave gives a place back.
func (g *Gate) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.admit()
}

// SetLimit changes how many are let in, at least one. Who is inside stays.
func (g *Gate) SetLimit(limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = max(limit, 1)
	g.admit()
}

// Limit is how many are let in.
func (g *Gate) Limit() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.limit
}

// admit lets in whoever there is a place for. The caller holds mu.
func (g *Gate) admit() {
	for g.inside < g.limit && len(g.waiting) > 0 {
		close(g.waiting[0])
		g.waiting = g.waiting[1:]
		g.inside++
	}
}
