package monitor

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"berth/services/execd/monitor/wire"
)

// held are the descriptors of a process besides its outputs.
type held struct {
	pidfd *os.File
	// mounts is the mount namespace of a container of whose mounts nothing is the
	// user's. No second copy exists: without it the mounts go at the exit.
	mounts *os.File
}

// mountsLinger is how long mounts stay after the exit, so that nobody waits for
// their end: the kernel takes them down within the close of mounts.
const mountsLinger = 10 * time.Millisecond

// dropMounts lets go of the mounts, soon.
func (h held) dropMounts() {
	if h.mounts != nil {
		time.AfterFunc(mountsLinger, func() { h.mounts.Close() })
	}
}

// list gives the descriptors as wire.Held orders them. They are valid while the
// process is not released.
func (h held) list(s *stdio) (wire.Held, []int) {
	var have wire.Held
	var fds []int
	add := func(flag *bool, f *os.File) {
		if fd := wire.FD(f); fd >= 0 {
			*flag = true
			fds = append(fds, fd)
		}
	}
	add(&have.PidFD, h.pidfd)
	s.stdinMu.Lock()
	add(&have.Stdin, s.stdin)
	s.stdinMu.Unlock()
	for _, o := range s.outputs {
		switch {
		case s.terminal != nil:
		case o.kind == wire.KindStdout:
			add(&have.Stdout, o.f)
		default:
			add(&have.Stderr, o.f)
		}
	}
	add(&have.Terminal, s.terminal)
	return have, fds
}

// takeHeld reverses list and takes the descriptors over.
func takeHeld(have wire.Held, fds []int) (h held, stdin, stdout, stderr, terminal *os.File) {
	take := func(flag bool, name string) *os.File {
		if !flag || len(fds) == 0 {
			return nil
		}
		fd := fds[0]
		fds = fds[1:]
		return pollable(fd, name)
	}
	h.pidfd = take(have.PidFD, "pidfd")
	stdin = take(have.Stdin, "stdin")
	stdout = take(have.Stdout, "stdout")
	stderr = take(have.Stderr, "stderr")
	terminal = take(have.Terminal, "terminal")
	wire.CloseAll(fds)
	return h, stdin, stdout, stderr, terminal
}

// pollable makes a file of fd on which a goroutine can wait without a thread.
func pollable(fd int, name string) *os.File {
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

// pipe makes the two ends of a standard stream: ours, on which goroutines wait,
// and the process's, which must be an ordinary blocking one. [os.Pipe] would
// make both non-blocking.
func pipe(oursReads bool) (ours, theirs *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	if oursReads {
		return pollable(p[0], "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
	}
	return pollable(p[1], "pipe"), os.NewFile(uintptr(p[0]), "pipe"), nil
}
