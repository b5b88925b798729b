package execd

import (
	"os"
	"os/signal"
	"syscall"

	"berth/internal/faultpoint"
)

func notifySignals(c chan os.Signal) { signal.Notify(c, syscall.SIGTERM) }

func armFaults() error { return faultpoint.Arm(os.Getenv(faultpoint.Env)) }
