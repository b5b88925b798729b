package caps

import (
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DropTo turns the whole process, every thread of it, into uid and gid with
// exactly the supplementary groups given and exactly the capabilities in keep:
// effective, permitted and bounding are keep, inheritable and ambient empty,
// so that nothing is handed on over execve. It then reads the state of every
// thread back from /proc and returns an [*Error] if any differs, or if the
// process could become root again. After an error the process must exit.
//
// It is for a daemon's start, before its sockets are open. It needs
// CAP_SETUID, CAP_SETGID and CAP_SETPCAP, except that a process that is
// already what it asks for may call it with no privilege at all. The binary
// must be built without cgo (ENOTSUP otherwise).
//
// A process whose user changes becomes undumpable: its files in /proc belong to
// root until the next execve.
func DropTo(uid, gid int, groups []int, keep Set) error {
	sets := ForContainer(keep, true)
	if err := become(allThreads, Bounding(), uid, gid, groups, sets); err != nil {
		return err
	}
	if err := checkThreads(uid, gid, groups, sets); err != nil {
		return step("check dropped privileges", err)
	}
	if uid != 0 && !keep.Has(unix.CAP_SETUID) {
		if err := thisThread(unix.SYS_SETUID, 0, 0, 0); err == nil {
			return step("check dropped privileges", unix.EPERM)
		}
	}
	return nil
}

func allThreads(trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall(trap, a1, a2, a3); errno != 0 {
		return errno
	}
	return nil
}

// checkThreads compares /proc/self/task/*/status with what was asked for.
func checkThreads(uid, gid int, groups []int, want Sets) error {
	tasks, err := readDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, tid := range tasks {
		status, err := readFile("/proc/self/task/" + tid + "/status")
		if err == unix.ENOENT || err == unix.ESRCH {
			continue // ended meanwhile
		}
		if err != nil {
			return err
		}
		if wrong := compareStatus(status, uid, gid, groups, want); wrong != "" {
			return mismatch("thread " + tid + " still has " + wrong)
		}
	}
	return nil
}

// mismatch says what a thread has that it should not.
type mismatch string

func (m mismatch) Error() string { return string(m) }

// compareStatus returns the first line of a status file (proc_pid_status(5))
// that differs from the given state, or "".
func compareStatus(status string, uid, gid int, groups []int, want Sets) string {
	sets := map[string]Set{
		"CapInh": want.Inheritable, "CapPrm": want.Permitted, "CapEff": want.Effective,
		"CapBnd": want.Bounding, "CapAmb": want.Ambient,
	}
	ids := map[string]int{"Uid": uid, "Gid": gid} // real, effective, saved and file system
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		ok := true
		if set, is := sets[key]; is {
			got, err := strconv.ParseUint(value, 16, 64)
			ok = err == nil && Set(got) == set
		} else if id, is := ids[key]; is {
			same := strconv.Itoa(id)
			ok = strings.Join(strings.Fields(value), " ") == strings.Join([]string{same, same, same, same}, " ")
		} else if key == "Groups" {
			ok = sameMembers(parseInts(value), groups)
		}
		if !ok {
			return key + " " + value
		}
	}
	return ""
}

func parseInts(list string) []int {
	var ints []int
	for _, field := range strings.Fields(list) {
		n, err := strconv.Atoi(field)
		if err != nil {
			n = -1
		}
		ints = append(ints, n)
	}
	return ints
}

// readDir and readFile stand in for package os, which this package avoids; the
// files are procfs's, small and always there.
func readDir(path string) ([]string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var names []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

func readFile(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var text []byte
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return "", err
		}
		if n == 0 {
			return string(text), nil
		}
		text = append(text, buf[:n]...)
	}
}

// Reduce leaves every thread of the process exactly the capabilities in keep,
// effective and permitted; inheritable and ambient sets are emptied. The
// bounding set follows where CAP_SETPCAP allows that; without, it says nothing
// any more to a process that cannot gain privileges (no_new_privs). User and
// groups stay.
func Reduce(keep Set) error {
	have, err := Current()
	if err != nil {
		return err
	}
	if missing := keep &^ have.Permitted; missing != 0 {
		return step("keep "+missing.String(), unix.EPERM)
	}
	if have.Effective.Has(unix.CAP_SETPCAP) {
		if err := lowerBounding(allThreads, have.Bounding&^keep); err != nil {
			return err
		}
	}
	// Ambient capabilities vanish with inheritable ones (capabilities(7)).
	return set(allThreads, Sets{Effective: keep, Permitted: keep})
}

// SetAside takes the capabilities s out of the effective set of every thread.
// They stay permitted: a child can be given them as ambient ones, and [With]
// brings them back for the time of a call.
func SetAside(s Set) error {
	have, err := Current()
	if err != nil {
		return err
	}
	have.Effective &^= s
	return set(allThreads, have)
}

// With calls f on a thread that has the capabilities s effective, of those that
// are permitted. What f starts in other goroutines has not.
func With(s Set, f func() error) error {
	have, err := Current()
	if err != nil {
		return err
	}
	if s&have.Permitted&^have.Effective == 0 {
		return f()
	}
	runtime.LockOSThread()
	raised, err := Current() // of this thread
	if err != nil {
		return err
	}
	before := raised
	raised.Effective |= s & raised.Permitted
	if err := set(thisThread, raised); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if set(thisThread, before) == nil { // else the thread ends with its goroutine
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// set gives one thread or all the sets that capset(2) knows.
func set(call caller, s Sets) error {
	data := s.data()
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	err := call(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data)), 0)
	runtime.KeepAlive(header)
	runtime.KeepAlive(data)
	return step("set capabilities", err)
}
