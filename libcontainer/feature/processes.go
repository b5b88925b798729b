package feature

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func processes() []probe {
	return []probe{{
		Feature{Name: "clone3", Since: "5.3",
			Lost: "Processes are made with clone and moved into cgroup v2 afterwards, which takes longer.",
			Do:   "Run Linux 5.7 or later."},
		func(*host) (State, string) {
			_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0) // EINVAL: no arguments
			return known(errno)
		},
	}, {
		Feature{Name: "CLONE_INTO_CGROUP", Since: "5.7",
			Lost: "Processes are moved into their cgroup v2 after they were made: some 10 ms more for each start.",
			Do:   "Run Linux 5.7 or later, with cgroup v2 mounted."},
		tryCloneIntoCgroup,
	}, {
		Feature{Name: "pidfd_open", Since: "5.3",
			Lost: "Processes are signalled by number, with a small risk that the number has a new owner.",
			Do:   "Run Linux 5.3 or later."},
		func(*host) (State, string) {
			fd, err := unix.PidfdOpen(os.Getpid(), 0)
			if err == nil {
				unix.Close(fd)
			}
			return verdict(os.NewSyscallError("pidfd_open", err))
		},
	}, {
		Feature{Name: "pidfd exit information", Since: "6.15",
			Lost: "The exit status of a container whose parent was killed at the same moment is not known.",
			Do:   "Run Linux 6.15 or later."},
		func(*host) (State, string) { return verdict(tryExitInfo()) },
	}, {
		Feature{Name: "close_range", Since: "5.9",
			Lost: "Descriptors are closed one by one before a container's command is started.",
			Do:   "Run Linux 5.9 or later."},
		func(*host) (State, string) {
			const unused = 1 << 30 // above any possible descriptor, fs.nr_open
			return verdict(os.NewSyscallError("close_range", unix.CloseRange(unused, unused, 0)))
		},
	}}
}

// tryCloneIntoCgroup clones a child into the cgroup we are in anyway.
func tryCloneIntoCgroup(h *host) (State, string) {
	v2, ok := h.layout.Unified()
	if !ok {
		return No, "cgroup v2 is not mounted"
	}
	dir, err := v2.OwnDir()
	if err != nil {
		return Unknown, err.Error()
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Unknown, dir + ": " + err.Error()
	}
	defer unix.Close(fd)
	return verdict(stillborn(&syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}))
}

// tryExitInfo asks a pidfd for the exit status of a child that is reaped already.
func tryExitInfo() error {
	pidfd := -1
	err := embryo(syscall.SysProcAttr{}, func(pid int) (err error) {
		pidfd, err = unix.PidfdOpen(pid, 0)
		return os.NewSyscallError("pidfd_open", err)
	})
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	// struct pidfd_info, linux/pidfd.h, and what asks for it.
	const (
		pidfdGetInfo  = 0xc040ff0b // _IOWR(0xff, 11, struct pidfd_info)
		pidfdInfoExit = 1 << 3
	)
	info := struct {
		mask uint64
		_    [13]uint32
		exit int32
	}{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 {
		return os.NewSyscallError("ioctl(PIDFD_GET_INFO)", errno)
	}
	if info.mask&pidfdInfoExit == 0 || !syscall.WaitStatus(info.exit).Signaled() {
		return fmt.Errorf("the kernel does not tell an exit status")
	}
	return nil
}

// embryo makes a child that is stopped before its first instruction, hands it to f, and kills and reaps it.
// A traced process stops at execve, ptrace(2) PTRACE_TRACEME; only its parent thread can wait for that.
func embryo(attr syscall.SysProcAttr, f func(pid int) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	attr.Ptrace = true
	attr.Pdeathsig = syscall.SIGKILL
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"embryo"}, &syscall.ProcAttr{Sys: &attr})
	if err != nil {
		return os.NewSyscallError("clone", err)
	}
	defer func() {
		syscall.Kill(pid, syscall.SIGKILL)
		for {
			var status syscall.WaitStatus
			_, err := syscall.Wait4(pid, &status, 0, nil)
			if err != nil && err != syscall.EINTR || status.Exited() || status.Signaled() {
				return
			}
		}
	}()
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		return os.NewSyscallError("wait4", err)
	}
	if !status.Stopped() {
		return fmt.Errorf("a traced child did not stop: status %#x", int(status))
	}
	return f(pid)
}
