package feature

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func namespaces() []probe {
	ns := func(name, file, since string, flag uintptr, needed bool, lost, do string) probe {
		return probe{
			Feature{Name: name + " namespace", Needed: needed, Since: since, Lost: lost, Do: do},
			func(h *host) (State, string) { return tryNamespace(h, file, flag) },
		}
	}
	const rebuild = "Run a kernel that has it; all of the distributions' do."
	return []probe{
		ns("mount", "mnt", "2.4.19", unix.CLONE_NEWNS, true, "Containers cannot have a root file system of their own.", rebuild),
		ns("pid", "pid", "2.6.24", unix.CLONE_NEWPID, true, "Containers would see and signal the host's processes.", rebuild),
		ns("network", "net", "2.6.29", unix.CLONE_NEWNET, true, "Containers cannot have a network of their own.", rebuild),
		ns("uts", "uts", "2.6.19", unix.CLONE_NEWUTS, true, "Containers cannot have a host name of their own.", rebuild),
		ns("ipc", "ipc", "2.6.19", unix.CLONE_NEWIPC, true, "Containers would share System V IPC and message queues with the host.", rebuild),
		ns("user", "user", "3.8", unix.CLONE_NEWUSER, false,
			"Root in a container is root of the host, held back by capabilities and seccomp only.",
			"Set the sysctl user.max_user_namespaces to 65536 or so; on CentOS 7 it is 0."),
		ns("cgroup", "cgroup", "4.6", unix.CLONE_NEWCGROUP, false,
			"Containers see the host's cgroup paths.",
			"Run Linux 4.6 or later."),
		ns("time", "time", "5.6", unix.CLONE_NEWTIME, false,
			"Containers share the host's monotonic and boot clocks.",
			"Run Linux 5.6 or later."),
	}
}

// tryNamespace clones a child into a new namespace which is to execute a file that does not exist. If clone
// fails we get its error, and if the namespace was made the child's ENOENT.
func tryNamespace(h *host, file string, flag uintptr) (State, string) {
	if state, detail := exists("/proc/self/ns/" + file); state != Yes {
		return state, detail
	}
	if file == "user" && firstLine("/proc/sys/user/max_user_namespaces") == "0" {
		return No, "sysctl user.max_user_namespaces is 0"
	}
	if !h.root {
		return Yes, "not tried, for want of root; the kernel has it"
	}
	attr := syscall.SysProcAttr{Cloneflags: flag}
	if flag == unix.CLONE_NEWTIME { // its bit is part of the exit signal in clone(2)
		attr = syscall.SysProcAttr{Unshareflags: flag}
	}
	return verdict(stillborn(&attr))
}

// stillborn clones a child that cannot live. Nil: it was born, and died of its lack of a program.
func stillborn(attr *syscall.SysProcAttr) error {
	pid, err := syscall.ForkExec("/proc/self/does-not-exist", []string{"none"}, &syscall.ProcAttr{Sys: attr})
	if err == nil {
		syscall.Kill(pid, syscall.SIGKILL)
		_, err = syscall.Wait4(pid, nil, 0, nil)
		return err
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return os.NewSyscallError("clone", err)
}
