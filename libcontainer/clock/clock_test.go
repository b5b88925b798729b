package clock_test

import (
	"testing"
	"time"

	"berth/libcontainer/clock"
)

func TestAt(t *testing.T) {
	before := clock.Now()
	moment := time.Now()
	after := clock.Now()
	time.Sleep(2 * time.Millisecond)
	const slack = int64(100 * time.Microsecond) // At reads two clocks, one after the other
	if at := clock.At(moment); at < before-slack || at > after+slack {
		t.Errorf("At = %d, want between %d and %d", at, before, after)
	}
}
