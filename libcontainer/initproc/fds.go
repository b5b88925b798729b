package initproc

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// closeOnExec marks every descriptor from first on close-on-exec. Whatever the
// launcher, or what started it, left open ends there (CVE-2024-21626).
func closeOnExec(first int, byProc bool) error {
	if !byProc {
		err := unix.CloseRange(uint(first), ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC)
		if err == nil || (err != unix.ENOSYS && err != unix.EINVAL && err != unix.EPERM) {
			return err
		}
	}
	// Before Linux 5.11.
	dir, err := unix.Open("/proc/self/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	buf := make([]byte, 4096)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil || n <= 0 {
			return err
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			if fd, err := strconv.Atoi(name); err == nil && fd >= first {
				unix.CloseOnExec(fd)
			}
		}
	}
}
