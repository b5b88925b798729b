package engine

import "testing"

// TestLocksTellThatOneWasGivenBack: who looked at something before can tell that it may have changed.
func TestLocksTellThatOneWasGivenBack(t *testing.T) {
	var l locks
	before := l.ended()
	a := l.lock("a")
	if l.ended() != before {
		t.Error("a lock that is held counts as given back")
	}
	waiting := make(chan uint64)
	go func() {
		unlock := l.lock("a")
		waiting <- l.ended()
		unlock()
	}()
	l.lock("b")()
	if l.ended() == before {
		t.Error("one was given back, which is not told")
	}
	now := l.ended()
	a()
	if seen := <-waiting; seen == now {
		t.Error("who waited for a lock is not told that it was given back")
	}
}
