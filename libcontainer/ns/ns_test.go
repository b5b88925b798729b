package ns

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEnter makes namespaces on one thread and enters them on another; both are
// thrown away.
func TestEnter(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	for _, kind := range []Kind{Net, UTS, IPC, Mount} {
		own, err := OpenPath("/proc/thread-self/ns/" + string(kind))
		if err != nil {
			t.Fatal(err)
		}
		made := onThread(t, func() (int, error) {
			flags := kind.Flag()
			if kind == Mount {
				flags |= unix.CLONE_FS
			}
			if err := unix.Unshare(int(flags)); err != nil {
				return -1, err
			}
			return OpenPath("/proc/thread-self/ns/" + string(kind))
		})
		entered := onThread(t, func() (int, error) {
			if err := Enter(made, kind); err != nil {
				return -1, err
			}
			return OpenPath("/proc/thread-self/ns/" + string(kind))
		})
		ids := make([]ID, 3)
		for i, fd := range []int{own, made, entered} {
			if ids[i], err = Identify(fd); err != nil {
				t.Error(err)
			}
			unix.Close(fd)
		}
		if ids[0] == ids[1] || ids[1] != ids[2] {
			t.Errorf("%s: own %v, made %v, entered %v", kind, ids[0], ids[1], ids[2])
		}
	}
}

func onThread(t *testing.T, f func() (int, error)) int {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, err := f()
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.fd
}

func TestEnterRefuses(t *testing.T) {
	if err := Enter(0, "nonsense"); err != ErrUnknown {
		t.Errorf("unknown kind: %v", err)
	}
	fd, err := Open(os.Getpid(), Net)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := Enter(fd, UTS); err != unix.EINVAL && err != unix.EPERM {
		t.Errorf("a network namespace as uts: %v", err)
	}
	if _, err := Open(0, Net); err == nil {
		t.Error("process 0 has a namespace")
	}
}

func TestKinds(t *testing.T) {
	seen := map[uintptr]bool{}
	for _, k := range Kinds() {
		if k.Flag() == 0 || seen[k.Flag()] {
			t.Errorf("%s has flag %#x", k, k.Flag())
		}
		seen[k.Flag()] = true
		if !strings.HasSuffix(k.Path(1), "/1/ns/"+string(k)) {
			t.Errorf("path %s", k.Path(1))
		}
	}
	if Kinds()[0] != User || Kinds()[len(Kinds())-1] != Mount {
		t.Error("User is to be joined first and Mount last")
	}
	if !Net.Supported() || Kind("x").Supported() {
		t.Error("Supported")
	}
}
