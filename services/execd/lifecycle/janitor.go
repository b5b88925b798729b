package lifecycle

import (
	"context"
	"sync"
	"time"
)

// janitor does what nobody waits for: two things at a time, so that the end of a
// thousand containers does not take the machine from those that start.
type janitor struct {
	mu    sync.Mutex
	queue []func()
	wake  chan struct{}
	busy  int // things that are being done
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
	j.busy++
	return func() {
		f()
		j.mu.Lock()
		defer j.mu.Unlock()
		j.busy--
	}
}

// drain waits until nothing is left to do, or ctx ends.
func (j *janitor) drain(ctx context.Context) {
	const look = 5 * time.Millisecond
	for ctx.Err() == nil {
		j.mu.Lock()
		idle := len(j.queue) == 0 && j.busy == 0
		j.mu.Unlock()
		if idle {
			return
		}
		time.Sleep(look)
	}
}

// settle is how long the janitor lets a container's end go on its way to those
// who wait for it: they need the processors more.
const settle = 20 * time.Millisecond

// work ends with ctx.
func (j *janitor) work(ctx context.Context) {
	for ctx.Err() == nil {
		if f := j.next(); f != nil {
			f()
			continue
		}
		select {
		case <-j.wake:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(settle):
		case <-ctx.Done():
		}
	}
}

// lastRound is how long the end may be held up by what is left to do.
const lastRound = 2 * time.Second

// wait finishes what is left, for a short while: a next start, whose sweep would find it, may not come soon.
func (j *janitor) wait() {
	j.done.Wait()
	for deadline := time.Now().Add(lastRound); time.Now().Before(deadline); {
		f := j.next()
		if f == nil {
			return
		}
		f()
	}
}
