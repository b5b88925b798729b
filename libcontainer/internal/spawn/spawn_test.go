//go:build amd64

package spawn

import (
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// start runs a child to its end and returns how it ended.
func start(t *testing.T, c *Child) unix.WaitStatus {
	t.Helper()
	var status unix.WaitStatus
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		pid, fd, err := c.Start()
		if err == nil {
			unix.Close(fd)
			_, err = unix.Wait4(pid, &status, 0, nil)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return status
}

func newChild() *Child {
	c := &Child{Cgroup: -1}
	c.Prepare()
	return c
}

// execute appends a command.
func (c *Child) execute(t *testing.T, args ...string) (index int) {
	t.Helper()
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		t.Fatal(err)
	}
	env := make([]*byte, 1)
	c.Hold(argv)
	c.Hold(env)
	c.Unblock()
	return c.Add("execute", nil, unix.SYS_EXECVE, uintptr(unsafe.Pointer(argv[0])), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])))
}

func TestExecutes(t *testing.T) {
	c := newChild()
	at := c.execute(t, "/bin/sh", "-c", "exit 7")
	status := start(t, c)
	if step, err := c.Failure(at); err != nil || status.ExitStatus() != 7 {
		t.Errorf("exit status %d; %s: %v", status.ExitStatus(), step, err)
	}
}

// TestFailures: the list ends at the first error that is not tolerated.
func TestFailures(t *testing.T) {
	word := new(uint64)
	*word = 5
	for name, add := range map[string]func(c *Child) (step string, err error){
		"error": func(c *Child) (string, error) {
			c.Add("close", nil, unix.SYS_CLOSE, 1<<20)
			return "close", unix.EBADF
		},
		"tolerated": func(c *Child) (string, error) {
			c.Add("close", []unix.Errno{unix.EPERM, unix.ENOENT, unix.EINTR, unix.EBADF}, unix.SYS_CLOSE, 1<<20)
			return "", nil
		},
		"others tolerated": func(c *Child) (string, error) {
			c.Add("close", []unix.Errno{unix.EPERM, unix.ENOENT}, unix.SYS_CLOSE, 1<<20)
			return "close", unix.EBADF
		},
		"as expected":  func(c *Child) (string, error) { c.Expect("compare", word, 5); return "", nil },
		"not expected": func(c *Child) (string, error) { c.Expect("compare", word, 6); return "compare", unix.EPERM },
		"large result": func(c *Child) (string, error) { // a result that is no error though its sign says so
			c.Add("mmap", nil, unix.SYS_BRK, 0)
			return "", nil
		},
	} {
		c := newChild()
		step, want := add(c)
		at := c.execute(t, "/bin/true")
		status := start(t, c)
		if got, err := c.Failure(at); got != step || err != want || (want == nil) != (status.ExitStatus() == 0) {
			t.Errorf("%s: exit status %d, %s: %v; want %s: %v", name, status.ExitStatus(), got, err, step, want)
		}
	}
}

// TestWaitsAlone: a child that does not go on keeps only its caller waiting: neither
// other goroutines nor the collector, which stops all. It can be ended.
func TestWaitsAlone(t *testing.T) {
	c := newChild()
	c.Add("pause", nil, unix.SYS_PAUSE)
	at := c.execute(t, "/bin/true")
	done := make(chan unix.WaitStatus)
	go func() { done <- start(t, c) }()
	for c.pidfd.Load() < 0 {
		time.Sleep(time.Millisecond)
	}
	for range 2 * runtime.GOMAXPROCS(0) {
		runtime.GC()
	}
	select {
	case <-done:
		t.Fatal("the child did not wait")
	default:
	}
	c.Kill()
	if status := <-done; status.Signal() != unix.SIGKILL {
		t.Errorf("ended by %v", status.Signal())
	}
	if step, err := c.Failure(at); step != "pause" || err != ErrEnded {
		t.Errorf("%s: %v", step, err)
	}
}

// TestSignals: what the parent ignores or handles is neither in the child.
func TestSignals(t *testing.T) {
	signal.Ignore(unix.SIGHUP)
	defer signal.Reset(unix.SIGHUP)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := newChild()
	c.Add("stdout", nil, unix.SYS_DUP3, w.Fd(), 1, 0)
	at := c.execute(t, "/bin/cat", "/proc/self/status")
	status := start(t, c)
	w.Close()
	said, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range []string{"SigBlk", "SigIgn", "SigCgt"} {
		if !strings.Contains(string(said), set+":\t0000000000000000\n") {
			step, err := c.Failure(at)
			t.Fatalf("exit status %d, %s %v; %s is not empty:\n%s", status.ExitStatus(), step, err, set, said)
		}
	}
}

// TestMany: children of several threads at once do not mix up.
func TestMany(t *testing.T) {
	const threads, each = 8, 20
	done := make(chan int)
	for n := range threads {
		go func() {
			wrong := 0
			for range each {
				c := newChild()
				c.execute(t, "/bin/sh", "-c", "exit "+string(rune('0'+n)))
				if start(t, c).ExitStatus() != n {
					wrong++
				}
			}
			done <- wrong
		}()
	}
	for range threads {
		if wrong := <-done; wrong > 0 {
			t.Errorf("%d of %d had another's exit status", wrong, each)
		}
	}
}
