package initproc

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxProcessors is the most that Linux can be built for (NR_CPUS in
// arch/x86/Kconfig).
const maxProcessors = 8192

// AllProcessors lets the calling thread run wherever its control group allows. The
// mask has all bits and not those of the processors there are, so that it takes
// nothing away when the group is given others later.
func AllProcessors() error {
	var all [maxProcessors / 8]byte
	for i := range all {
		all[i] = 0xff
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(len(all)), uintptr(unsafe.Pointer(&all)))
	if errno != 0 {
		return errno
	}
	return nil
}
