package lifecycle

import (
	"context"
	"sync"
)

// janitor does what nobody waits for: two things at a time, so that the end of a
// thousand containers does not take the machine from those that start.
type janitor struct {
	mu    sync.Mutex
	queue []func()
	wake  chan struct{}
	done  sync.WaitGroup
}

const janitors = 2

func (j *janitor) start(ctx context.Context) {
	j.wake = make(chan struct{}, janitors)
	for range janitors {
		j.done.Go(func() { j.work(ctx) })
	}
}

func (j *janitor) later(f func()) {
	j.mu.Lock()
	j.queue = append(j.queue, f)
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

func (j *janitor) next() func() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.queue) == 0 {
		return nil
	}
	f := j.queue[0]
	j.queue = j.queue[1:]
	return f
}

// work ends with ctx; what is left then is found by the sweep of the next start.
func (j *janitor) work(ctx context.Context) {
	for ctx.Err() == nil {
		if f := j.next(); f != nil {
			f()
			continue
		}
		select {
		case <-j.wake:
		case <-ctx.Done():
		}
	}
}

func (j *janitor) wait() { j.done.Wait() }
