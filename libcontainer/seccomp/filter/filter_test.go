package filter

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// program encodes instructions as Load takes them.
func program(instructions ...unix.SockFilter) []byte {
	var code []byte
	for _, i := range instructions {
		code = binary.NativeEndian.AppendUint16(code, i.Code)
		code = append(code, i.Jt, i.Jf)
		code = binary.NativeEndian.AppendUint32(code, i.K)
	}
	return code
}

func ret(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}

func TestLoadRefuses(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	allow := program(ret(unix.SECCOMP_RET_ALLOW))
	for name, code := range map[string][]byte{
		"nothing":          nil,
		"half of one":      allow[:4],
		"one and a half":   append(program(ret(unix.SECCOMP_RET_ALLOW)), 0, 0, 0, 0),
		"too many":         make([]byte, InstructionSize*(MaxInstructions+1)),
		"jump into nought": program(unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: 9}, ret(unix.SECCOMP_RET_ALLOW)),
		"no return":        program(unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}),
	} {
		if err := Load(code); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v, want EINVAL", name, err)
		}
	}
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil || mode != 0 {
		t.Errorf("something was loaded all the same: mode %d, %v", mode, err)
	}
}

// TestLoad checks that the filter holds for the thread and its children, and
// for no other thread.
func TestLoad(t *testing.T) {
	const mark = unix.Errno(3999)
	nice := program(
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_GETPRIORITY, Jt: 0, Jf: 1},
		ret(unix.SECCOMP_RET_ERRNO|uint32(mark)),
		ret(unix.SECCOMP_RET_ALLOW),
	)
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			done <- err
			return
		}
		if err := Load(nice); err != nil {
			done <- err
			return
		}
		if _, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err != mark {
			t.Errorf("under the filter: %v, want %d", err, mark)
		}
		out, err := exec.Command("/bin/grep", "Seccomp:", "/proc/self/status").Output()
		if string(out) != "Seccomp:\t2\n" {
			t.Errorf("a child has %q", out)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Getpriority(unix.PRIO_PROCESS, os.Getpid()); err != nil {
		t.Errorf("another thread: %v", err)
	}
}

func TestLoadNeedsPrivilege(t *testing.T) {
	if os.Getenv("BERTH_FILTER_CHILD") == "" {
		if os.Geteuid() != 0 {
			t.Skip("SKIPPED: needs root, to lose it")
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestLoadNeedsPrivilege$")
		cmd.Env = append(os.Environ(), "BERTH_FILTER_CHILD=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if err := unix.Setuid(65534); err != nil {
		t.Fatal(err)
	}
	if err := Load(program(ret(unix.SECCOMP_RET_ALLOW))); !errors.Is(err, unix.EACCES) {
		t.Errorf("without privilege and no_new_privs: %v, want EACCES", err)
	}
}
