// Package machine is what the benchmarks share: control groups that count CPU time, and what the machine is.
package machine

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Account counts CPU time by control groups: one that clients and daemons of a peer start in, and one that its
// containers live in. They stand side by side, as v2 allows no processes in a group above others.
type Account struct {
	name       string
	Containers string // path below the root of the hierarchy
	fd         int    // of the first group; v2 only
}

// Top holds the groups of all accounts of this process: two benchmarks may run at once.
var Top = "berth-bench-" + strconv.Itoa(os.Getpid())

// Hierarchy is where CPU time is counted: cpuacct of cgroup v1, or v2.
func Hierarchy() (dir string, v2 bool) {
	for _, d := range []string{"/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct"} {
		if _, err := os.Stat(d + "/cpuacct.usage"); err == nil {
			return d, false
		}
	}
	return "/sys/fs/cgroup", true
}

// NewAccount makes the groups of a peer. Close it in the end.
func NewAccount(name string) (Account, error) {
	a := Account{name: name, Containers: filepath.Join(Top, name+"-containers"), fd: -1}
	if err := os.MkdirAll(a.dir(), 0o755); err != nil {
		return a, err
	}
	if _, v2 := Hierarchy(); !v2 {
		return a, nil
	}
	var err error
	a.fd, err = syscall.Open(a.dir(), syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	return a, os.NewSyscallError("open "+a.dir(), err)
}

func (a Account) dir() string {
	h, _ := Hierarchy()
	return filepath.Join(h, Top, a.name)
}

// Enter has a command begin in the account's group. On v1 it is the calling thread that joins, and its children follow;
// v2 does not part the threads of a process, but lets a process begin elsewhere than its parent (clone3(2), Linux 5.7).
func (a Account) Enter(cmd *exec.Cmd) error {
	if a.fd < 0 {
		return os.WriteFile(a.dir()+"/tasks", []byte(strconv.Itoa(syscall.Gettid())), 0)
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, a.fd
	return nil
}

// Used is the CPU time of the account so far. Groups that are gone have passed theirs on to the group above.
func (a Account) Used() (sum time.Duration) {
	h, v2 := Hierarchy()
	for _, g := range append([]string{filepath.Join(Top, a.name)}, a.Containers) {
		if v2 {
			sum += usageV2(filepath.Join(h, g, "cpu.stat"))
			continue
		}
		b, _ := os.ReadFile(filepath.Join(h, g, "cpuacct.usage"))
		ns, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		sum += time.Duration(ns)
	}
	return sum
}

func usageV2(path string) time.Duration {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if value, ok := strings.CutPrefix(s.Text(), "usage_usec "); ok {
			us, _ := strconv.ParseInt(value, 10, 64)
			return time.Duration(us) * time.Microsecond
		}
	}
	return 0
}

// Close kills what is left in the account's group and removes both groups, in every hierarchy.
func (a Account) Close() (err error) {
	if a.fd >= 0 {
		_ = syscall.Close(a.fd)
	}
	roots, _ := filepath.Glob("/sys/fs/cgroup/*")
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, _ := os.ReadFile(a.dir() + "/cgroup.procs")
		for _, pid := range strings.Fields(string(b)) {
			if n, _ := strconv.Atoi(pid); n != os.Getpid() {
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
		err = nil
		for _, root := range append(roots, "/sys/fs/cgroup") {
			err = errors.Join(err, removeTree(filepath.Join(root, Top, a.name)), removeTree(filepath.Join(root, a.Containers)))
			_ = os.Remove(filepath.Join(root, Top)) // by whoever is last
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// removeTree removes a group and those below it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			_ = removeTree(filepath.Join(dir, e.Name()))
		}
	}
	return os.Remove(dir)
}

// Processes are the ids of all processes in the account's groups and in those below.
func (a Account) Processes() (pids []int) {
	h, _ := Hierarchy()
	for _, group := range []string{a.dir(), filepath.Join(h, a.Containers)} {
		_ = filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return nil // a group that goes is not looked at
			}
			b, _ := os.ReadFile(path)
			for _, field := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(field); err == nil {
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	return pids
}
