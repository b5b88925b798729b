package keeper

import (
	"sync"

	"berth/services/execd/monitor/wire"
)

// answer is a message with its descriptors.
type answer struct {
	msg *wire.Message
	fds []int
}

type result struct {
	answer
	err error
}

// forgetSeq marks requests whose answer nobody waits for.
const forgetSeq = 1

// broker matches answers to requests. The zero value is ready.
type broker struct {
	mu      sync.Mutex
	seq     uint64
	waiting map[uint64]waiter
}

// waiter is who asked.
type waiter struct {
	ch chan result
	// seen is called with a good answer before anything that the monitor sent
	// after it is looked at.
	seen func(answer)
}

// ask makes a sequence number and the channel its answer comes on.
func (b *broker) ask(seen func(answer)) (uint64, <-chan result) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting == nil {
		b.waiting = make(map[uint64]waiter)
		b.seq = forgetSeq
	}
	b.seq++
	ch := make(chan result, 1)
	b.waiting[b.seq] = waiter{ch, seen}
	return b.seq, ch
}

func (b *broker) forget(seq uint64) {
	b.mu.Lock()
	w, waits := b.waiting[seq]
	delete(b.waiting, seq)
	b.mu.Unlock()
	if !waits {
		return
	}
	select {
	case r := <-w.ch: // it came just now
		wire.CloseAll(r.fds)
	default:
	}
}

// deliver reports whether somebody waited.
func (b *broker) deliver(a answer) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	w, ok := b.waiting[a.msg.Seq]
	if !ok {
		return false
	}
	delete(b.waiting, a.msg.Seq)
	if w.seen != nil && a.msg.Error == nil {
		w.seen(a)
	}
	w.ch <- result{answer: a}
	return true
}

func (b *broker) failAll(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for seq, w := range b.waiting {
		delete(b.waiting, seq)
		w.ch <- result{err: err}
	}
}
