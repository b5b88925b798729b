package caps

import (
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sets are the five capability sets of a thread.
type Sets struct {
	Effective, Permitted, Inheritable, Bounding, Ambient Set
}

// ForContainer returns what the command of a container holds that was allowed
// the given set. Only root holds it outright. Another user begins with
// nothing, but may regain up to the bounding set through set-user-ID files and
// file capabilities. Inheritable and ambient are empty always: inheritable
// leftovers once gave unprivileged users file capabilities (CVE-2022-24769).
func ForContainer(allowed Set, root bool) Sets {
	s := Sets{Bounding: allowed}
	if root {
		s.Effective, s.Permitted = allowed, allowed
	}
	return s
}

// Error tells which step of a change of identity went wrong. The thread or
// process is then somewhere half-way, and must exit.
type Error struct {
	Step string
	Err  error
}

func (e *Error) Error() string { return e.Step + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func step(name string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{name, err}
}

// Last returns the highest capability the running kernel knows. It asks by
// prctl rather than in /proc, which a container may not have yet.
func Last() Cap {
	low, high := 0, 63 // PR_CAPBSET_READ is EINVAL beyond the last
	for low < high {
		middle := (low + high + 1) / 2
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(middle), 0, 0, 0); err == nil {
			low = middle
		} else {
			high = middle - 1
		}
	}
	return Cap(low)
}

// Known returns all capabilities of the running kernel.
func Known() Set { return 1<<(Last()+1) - 1 }

// Bounding returns the bounding set of the calling thread: all that it and its
// children can ever hold.
func Bounding() Set {
	var s Set
	for c := range Cap(64) {
		in, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil {
			break
		}
		s |= Set(in) << c
	}
	return s
}

// Current returns the sets of the calling thread.
func Current() (Sets, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return Sets{}, step("capget", err)
	}
	join := func(low, high uint32) Set { return Set(high)<<32 | Set(low) }
	return Sets{
		Effective:   join(data[0].Effective, data[1].Effective),
		Permitted:   join(data[0].Permitted, data[1].Permitted),
		Inheritable: join(data[0].Inheritable, data[1].Inheritable),
		Bounding:    Bounding(),
		Ambient:     ambient(),
	}, nil
}

// ambient returns the ambient set, which kernels before 4.3 do not have.
func ambient() Set {
	var s Set
	for c := range Cap(64) {
		in, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, uintptr(c), 0, 0)
		if err != nil {
			break
		}
		s |= Set(in) << c
	}
	return s
}

// Become gives the calling thread, and no other, the given identity and sets,
// and checks that it has them. The caller locked the goroutine to its thread
// and goes on to execve. It needs CAP_SETPCAP, CAP_SETUID and CAP_SETGID;
// sets.Ambient must be empty.
//
// The order is the only one that works: the bounding set can be lowered only
// with SETPCAP, groups changed only with SETGID, and the change of user ID
// takes the capabilities away unless told to keep them for a moment.
func Become(uid, gid int, groups []int, sets Sets) error {
	if sets.Ambient != 0 {
		return step("set ambient capabilities", unix.EINVAL)
	}
	if err := become(thisThread, uid, gid, groups, sets); err != nil {
		return err
	}
	got, err := Current()
	if err != nil {
		return err
	}
	if got != sets {
		return step("check capabilities", unix.EPERM)
	}
	return nil
}

// caller makes a system call on one thread or on all.
type caller func(trap, a1, a2, a3 uintptr) error

func thisThread(trap, a1, a2, a3 uintptr) error {
	if _, _, errno := unix.RawSyscall(trap, a1, a2, a3); errno != 0 {
		return errno
	}
	return nil
}

func become(call caller, uid, gid int, groups []int, sets Sets) error {
	if err := dropBounding(call, sets.Bounding); err != nil {
		return err
	}
	prctl := func(option, arg uintptr) error { return call(unix.SYS_PRCTL, option, arg, 0) }
	if err := prctl(unix.PR_SET_KEEPCAPS, 1); err != nil {
		return step("keep capabilities over the change of user", err)
	}
	if err := setGroups(call, groups); err != nil {
		return step("set supplementary groups", err)
	}
	id := uintptr(gid)
	if err := call(unix.SYS_SETRESGID, id, id, id); err != nil {
		return step("set group", err)
	}
	id = uintptr(uid)
	if err := call(unix.SYS_SETRESUID, id, id, id); err != nil {
		return step("set user", err)
	}
	if err := prctl(unix.PR_SET_KEEPCAPS, 0); err != nil {
		return step("end keeping capabilities", err)
	}
	if err := prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL); err != nil && err != unix.EINVAL {
		return step("clear ambient capabilities", err) // EINVAL: before Linux 4.3, there are none
	}
	return capset(call, sets)
}

// dropBounding removes all but keep from the bounding set. The kernel has no
// call for more than one at a time.
func dropBounding(call caller, keep Set) error {
	for _, c := range (Bounding() &^ keep).List() {
		if err := call(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0); err != nil {
			return step("drop "+c.String()+" from the bounding set", err)
		}
	}
	return nil
}

// setGroups is setgroups(2) with the list as the kernel wants it. Where nothing
// would change it makes no call, for that takes CAP_SETGID, which a process
// started as the right user has no need of.
func setGroups(call caller, groups []int) error {
	if now, err := unix.Getgroups(); err == nil && sameMembers(now, groups) {
		return nil
	}
	list := make([]uint32, len(groups)+1) // one more, so that there is a first to point at
	for i, g := range groups {
		list[i] = uint32(g)
	}
	var pin runtime.Pinner // the calls take addresses as plain numbers
	pin.Pin(&list[0])
	defer pin.Unpin()
	return call(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0])), 0)
}

// sameMembers reports whether two lists are the same set.
func sameMembers(a, b []int) bool {
	missing := func(from []int) func(int) bool {
		return func(x int) bool { return !slices.Contains(from, x) }
	}
	return !slices.ContainsFunc(a, missing(b)) && !slices.ContainsFunc(b, missing(a))
}

func capset(call caller, s Sets) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		shift := 32 * i
		data[i] = unix.CapUserData{
			Effective:   uint32(s.Effective >> shift),
			Permitted:   uint32(s.Permitted >> shift),
			Inheritable: uint32(s.Inheritable >> shift),
		}
	}
	var pin runtime.Pinner
	pin.Pin(&header)
	pin.Pin(&data[0])
	defer pin.Unpin()
	err := call(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	return step("set capabilities", err)
}
