// Package rest gives memory back to the kernel once a burst of work is over.
//
// The Go runtime lets a heap grow to 4 MiB before it collects for the first
// time, collects an idle process every two minutes, and keeps what it freed for
// longer. A daemon that mostly waits would hold several times what it needs.
package rest

import (
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	// after is how long nothing must have happened: well above the pauses
	// between the calls of one piece of work.
	after = time.Second

	// worthwhile is how many bytes must have been allocated since the last
	// time: a collection costs a millisecond or two, and somebody may be
	// looking at us every few seconds.
	worthwhile = 1 << 20
)

// burst is of the whole process, as the memory is.
var burst = trimmer{after: after, worthwhile: worthwhile, allocated: allocated, trim: trim}

// Worked notes that some work has just been done, at the cost of a clock
// reading and two atomic operations. It may be called from any goroutine.
func Worked() { burst.worked() }

// Begin notes that work has begun. Until each Begin has had its [End] memory is
// kept. Not for what may wait for days, such as a stream.
func Begin() { burst.busy.Add(1) }

// End notes that work begun with [Begin] is done.
func End() {
	burst.busy.Add(-1)
	burst.worked()
}

type trimmer struct {
	after      time.Duration
	worthwhile uint64
	allocated  func() uint64 // bytes, since the process began
	trim       func()

	busy    atomic.Int32
	last    atomic.Int64 // when work was noted, in nanoseconds since start
	waiting atomic.Bool  // look will be called
	trimmed uint64       // what allocated said then; only look uses it
}

var start = time.Now()

func (t *trimmer) worked() {
	t.last.Store(int64(time.Since(start)))
	if t.waiting.CompareAndSwap(false, true) {
		time.AfterFunc(t.after, t.look)
	}
}

// look runs after the pause: there is no timer while nothing happens, and none
// is set anew for each call while much does.
func (t *trimmer) look() {
	last := t.last.Load()
	if left := t.after - (time.Since(start) - time.Duration(last)); left > 0 {
		time.AfterFunc(left, t.look)
		return
	}
	if t.busy.Load() == 0 { // else End calls again
		if now := t.allocated(); now-t.trimmed >= t.worthwhile {
			t.trim()
			t.trimmed = now
		}
	}
	t.waiting.Store(false)
	// Work that was noted meanwhile found us waiting.
	if t.last.Load() != last && t.waiting.CompareAndSwap(false, true) {
		time.AfterFunc(t.after, t.look)
	}
}

// trim collects twice: what lies in a sync.Pool, such as gRPC's buffers, is
// garbage only when two collections in a row found it unused.
func trim() {
	runtime.GC()
	debug.FreeOSMemory()
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
