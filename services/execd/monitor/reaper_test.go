package monitor

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// child starts a shell, and gives a descriptor of it on which goroutines can wait.
func child(t *testing.T, script string) (pid int, pidfd *os.File) {
	t.Helper()
	fd := -1
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{PidFD: &fd}})
	if err != nil {
		t.Fatal(err)
	}
	if fd >= 0 {
		pidfd = pollable(fd, "pidfd")
		t.Cleanup(func() { pidfd.Close() })
	}
	return pid, pidfd
}

// TestReaper: each end is told once, with and without a process descriptor, and for a child that has ended already.
func TestReaper(t *testing.T) {
	for name, with := range map[string]func(*os.File) *os.File{
		"by descriptor":            func(fd *os.File) *os.File { return fd },
		"by signal, before 5.3":    func(*os.File) *os.File { return nil },
		"by signal, without epoll": func(fd *os.File) *os.File { f, _ := os.Open(os.DevNull); return f },
	} {
		t.Run(name, func(t *testing.T) {
			r := newReaper()
			type end struct {
				n      int
				status unix.WaitStatus
			}
			const children = 12
			ended := make(chan end, 2*children)
			for n := range children {
				script := "exit " + string('0'+rune(n%10))
				if n%2 == 1 {
					script = "sleep 0.2; " + script
				}
				pid, pidfd := child(t, script)
				if n%4 == 0 {
					time.Sleep(20 * time.Millisecond)
				}
				r.watch(pid, with(pidfd), func(s unix.WaitStatus) { ended <- end{n, s} })
			}
			seen := make(map[int]bool)
			for range children {
				select {
				case e := <-ended:
					if seen[e.n] || e.status.ExitStatus() != e.n%10 {
						t.Errorf("child %d ended with %v, again: %t", e.n, e.status, seen[e.n])
					}
					seen[e.n] = true
				case <-time.After(10 * time.Second):
					t.Fatalf("of %d ends %d were told", children, len(seen))
				}
			}
			time.Sleep(50 * time.Millisecond)
			if len(ended) > 0 {
				t.Errorf("%d ends were told twice", len(ended))
			}
			if err := r.kill(1<<22-1, unix.SIGTERM); err != unix.ESRCH {
				t.Errorf("signal for nobody: %v", err)
			}
		})
	}
}

// TestSilence: as long as each child has a descriptor the kernel sends no SIGCHLD, and nobody but the reaper reaps.
func TestSilence(t *testing.T) {
	caught := func() bool {
		t.Helper()
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(status), "\nSigCgt:\t")
		line, _, _ := strings.Cut(rest, "\n")
		set, err := strconv.ParseUint(line, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return set&(1<<(unix.SIGCHLD-1)) != 0
	}
	r := newReaper()
	ended := make(chan unix.WaitStatus, 2)
	pid, pidfd := child(t, "exit 3")
	if pidfd == nil {
		t.Skip("no process descriptors before Linux 5.3")
	}
	time.Sleep(50 * time.Millisecond) // it has ended, and waits to be reaped
	r.watch(pid, pidfd, func(s unix.WaitStatus) { ended <- s })
	if s := <-ended; s.ExitStatus() != 3 {
		t.Errorf("ended with %v, want 3", s)
	}
	if caught() {
		t.Error("SIGCHLD has a handler while no child needs it")
	}
	pid, _ = child(t, "exit 4")
	r.watch(pid, nil, func(s unix.WaitStatus) { ended <- s })
	if s := <-ended; s.ExitStatus() != 4 {
		t.Errorf("ended with %v, want 4", s)
	}
	if !caught() {
		t.Error("SIGCHLD has no handler though a child is without descriptor")
	}
}
