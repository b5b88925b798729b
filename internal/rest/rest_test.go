package rest

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fake is a trimmer whose process has allocated what the test says.
func fake() (t *trimmer, heap *atomic.Uint64, trims *atomic.Int32) {
	heap, trims = new(atomic.Uint64), new(atomic.Int32)
	return &trimmer{
		after: time.Second, worthwhile: 100, allocated: heap.Load, trim: func() { trims.Add(1) },
	}, heap, trims
}

func TestOnceAfterABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, heap, trims := fake()
		for range 50 { // 4.5 s of work without a pause of a second
			heap.Add(10)
			tr.worked()
			time.Sleep(90 * time.Millisecond)
		}
		if n := trims.Load(); n != 0 {
			t.Fatalf("%d trims during the burst", n)
		}
		time.Sleep(time.Hour)
		if n := trims.Load(); n != 1 {
			t.Fatalf("%d trims after the burst and an idle hour, want 1", n)
		}
		if tr.waiting.Load() {
			t.Error("a timer is still set")
		}
	})
}

func TestLittleWorkIsNotWorthIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, heap, trims := fake()
		for want, add := range []uint64{50, 60, 50, 50} { // trims are due after 110 and 210
			heap.Add(add)
			tr.worked()
			time.Sleep(5 * time.Second)
			if n := trims.Load(); int(n) != (want+1)/2 {
				t.Errorf("after %d bytes: %d trims", heap.Load(), n)
			}
		}
	})
}

func TestNotWhileBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, heap, trims := fake()
		tr.busy.Add(1)
		heap.Add(1000)
		tr.worked() // some other call
		time.Sleep(time.Minute)
		if n := trims.Load(); n != 0 {
			t.Fatalf("%d trims while work goes on", n)
		}
		tr.busy.Add(-1)
		tr.worked()
		time.Sleep(time.Minute)
		if n := trims.Load(); n != 1 {
			t.Fatalf("%d trims after the work, want 1", n)
		}
	})
}

// TestMemoryGoesBack: after work that took 64 MiB, this process holds little more than before.
func TestMemoryGoesBack(t *testing.T) {
	trim()
	before := resident(t)
	Begin()
	blocks := make([][]byte, 64)
	for i := range blocks {
		blocks[i] = make([]byte, 1<<20)
		for j := 0; j < len(blocks[i]); j += 4096 {
			blocks[i][j] = 1
		}
	}
	during := resident(t)
	if during-before < 60<<10 {
		t.Fatalf("resident %d KiB before, %d with 64 MiB in use: the measure is wrong", before, during)
	}
	clear(blocks)
	End()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		after := resident(t)
		if after-before < 4<<10 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("resident %d KiB before, %d with 64 MiB in use, %d long after", before, during, after)
		}
	}
}

// TestAllocated: were it not to grow, memory would never be given back.
func TestAllocated(t *testing.T) {
	before := allocated()
	keep = make([]byte, 10<<20)
	if grown := allocated() - before; grown < 10<<20 {
		t.Errorf("allocated 10 MiB, the counter grew by %d", grown)
	}
}

var keep []byte

// resident is this process's anonymous memory in KiB.
func resident(t *testing.T) int { return status(t, "RssAnon:") }

// status is a number of /proc/self/status.
func status(t *testing.T, key string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kib
		}
	}
	t.Skipf("SKIP: this kernel does not tell %s (Linux 4.5)", strings.TrimSuffix(key, ":"))
	return 0
}
