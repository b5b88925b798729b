// Package processors is how the daemons of one engine get along on a machine.
package processors

import (
	"os"
	"runtime"
)

// Share has the Go runtime use half of the processors it would. A request goes through several
// processes, and in each of them from goroutine to goroutine, of which hardly ever two can run. With a
// processor to spare the runtime wakes a thread for it each time a goroutine becomes ready, which finds
// nothing to do and keeps the next process from that processor. GOMAXPROCS in the environment comes
// before it.
func Share() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}
}
