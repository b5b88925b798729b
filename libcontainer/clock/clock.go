// Package clock tells the time that all processes of a host share, so that what one of them measures can be put beside
// what another does.
package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now is CLOCK_MONOTONIC in nanoseconds (clock_gettime(2)). It is the same in all processes that are in the host's time
// namespace, and nobody can set it.
func Now() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// At is what Now was at t, a moment that this process took with [time.Now].
func At(t time.Time) int64 { return Now() - int64(time.Since(t)) }
