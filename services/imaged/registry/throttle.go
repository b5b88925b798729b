package registry

import (
	"context"
	"sync"
	"time"
)

// throttle spreads what all transfers of a direction move, so that together they keep to so many bytes a second.
type throttle struct {
	mu   sync.Mutex
	rate int64     // bytes a second; 0 for no limit
	free time.Time // when what was let through so far has had its time
}

func (t *throttle) set(rate int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rate, t.free = max(rate, 0), time.Time{}
}

func (t *throttle) limit() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rate
}

// portion is how much of n bytes to move at once: a tenth of a second's worth, so that a changed rate is soon obeyed.
func (t *throttle) portion(n int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rate == 0 {
		return n
	}
	return min(n, int(max(t.rate/10, 1<<10)))
}

// wait returns when n bytes that were moved have had their time, or ctx ends.
func (t *throttle) wait(ctx context.Context, n int) {
	t.mu.Lock()
	if t.rate == 0 || n == 0 {
		t.mu.Unlock()
		return
	}
	now := time.Now()
	if t.free.Before(now) {
		t.free = now
	}
	t.free = t.free.Add(time.Duration(float64(n) / float64(t.rate) * float64(time.Second)))
	pause := t.free.Sub(now)
	t.mu.Unlock()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// SetBandwidth limits what all transfers together move, in bytes a second for each direction; 0 for no limit. It holds
// at once, for transfers under way too.
func (c *Client) SetBandwidth(bytesPerSecond int64) {
	c.down.set(bytesPerSecond)
	c.up.set(bytesPerSecond)
}

// Bandwidth is what SetBandwidth has set.
func (c *Client) Bandwidth() int64 { return c.down.limit() }

type noticeKey struct{}

// WithNotice has tell called, with a few words for the user, when a call made with the context has to wait for longer
// than a moment before it tries again, as when a registry limits requests. From the goroutine of the call.
func WithNotice(ctx context.Context, tell func(text string)) context.Context {
	return context.WithValue(ctx, noticeKey{}, tell)
}

func notice(ctx context.Context, text string) {
	if tell, ok := ctx.Value(noticeKey{}).(func(string)); ok {
		tell(text)
	}
}
