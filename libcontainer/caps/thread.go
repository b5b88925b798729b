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
		Ambient:     ambient(join(data[0].Inheritable, data[1].Inheritable)),
	}, nil
}

// ambient returns the ambient set, which kernels before 4.3 do not have. The kernel keeps it a
// part of the inheritable set (capabilities(7)), so where that is empty it need not be asked.
func ambient(inheritable Set) Set {
	if inheritable == 0 {
		return 0
	}
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

// Become gives the calling thread, whose bounding set is have, and no other, the
// given identity and sets, and checks that it has them. The caller locked the
// goroutine to its thread and goes on to execve. It needs CAP_SETPCAP, CAP_SETUID
// and CAP_SETGID; sets.Ambient must be empty.
//
// The order is the only one that works: the bounding set can be lowered only
// with SETPCAP, groups changed only with SETGID, and the change of user ID
// takes the capabilities away unless told to keep them for a moment.
func Become(have Set, uid, gid int, groups []int, sets Sets) error {
	if sets.Ambient != 0 {
		return step("set ambient capabilities", unix.EINVAL)
	}
	if err := become(thisThread, have, uid, gid, groups, sets); err != nil {
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

// LowerBounding takes all but keep out of the bounding set of the calling thread, and returns what
// it is then. It needs CAP_SETPCAP if there is anything to take.
func LowerBounding(keep Set) (Set, error) {
	have := Bounding()
	return have & keep, lowerBounding(thisThread, have&^keep)
}

func lowerBounding(call caller, drop Set) error {
	// The kernel has no call for more than one at a time.
	for _, c := range drop.List() {
		if err := call(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0); err != nil {
			return step(dropStep(c), err)
		}
	}
	return nil
}

func dropStep(c Cap) string { return "drop " + c.String() + " from the bounding set" }

// caller makes a system call on one thread or on all.
type caller func(trap, a1, a2, a3 uintptr) error

func thisThread(trap, a1, a2, a3 uintptr) error {
	if _, _, errno := unix.RawSyscall(trap, a1, a2, a3); errno != 0 {
		return errno
	}
	return nil
}

func become(call caller, have Set, uid, gid int, groups []int, sets Sets) error {
	for _, c := range Calls(have, uid, gid, groups, sets) {
		err := call(c.Trap, c.Args[0], c.Args[1], c.Args[2])
		runtime.KeepAlive(c.Held)
		if err != nil && (c.Tolerate == 0 || err != c.Tolerate) {
			return step(c.Step, err)
		}
	}
	return nil
}

// Call is one system call of a change of identity.
type Call struct {
	Step     string // for errors
	Trap     uintptr
	Args     [3]uintptr
	Tolerate unix.Errno // an error to go on after, 0: none
	Held     any        // what the arguments point to
}

// Calls are the calls of [Become], in their order, for a thread that is like the
// calling one and has the bounding set have.
func Calls(have Set, uid, gid int, groups []int, sets Sets) []Call {
	list := make([]Call, 0, 64)
	add := func(step string, trap uintptr, args ...uintptr) *Call {
		c := Call{Step: step, Trap: trap}
		copy(c.Args[:], args)
		list = append(list, c)
		return &list[len(list)-1]
	}
	for _, c := range (have &^ sets.Bounding).List() {
		add(dropStep(c), unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c))
	}
	add("keep capabilities over the change of user", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1)
	if ids := groupList(groups); ids != nil {
		c := add("set supplementary groups", unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&ids[0])))
		c.Held = ids
	}
	add("set group", unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
	add("set user", unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
	add("end keeping capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0)
	c := add("clear ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	c.Tolerate = unix.EINVAL // before Linux 4.3 there are none
	data := sets.data()
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	c = add("set capabilities", unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data)))
	c.Held = [...]any{header, data}
	return list
}

// groupList is a list for setgroups(2), nil where nothing would change: the call
// takes CAP_SETGID, which a process started as the right user has no need of.
func groupList(groups []int) []uint32 {
	if now, err := unix.Getgroups(); err == nil && sameMembers(now, groups) {
		return nil
	}
	list := make([]uint32, len(groups)+1) // one more, so that there is a first to point at
	for i, g := range groups {
		list[i] = uint32(g)
	}
	return list
}

// sameMembers reports whether two lists are the same set.
func sameMembers(a, b []int) bool {
	missing := func(from []int) func(int) bool {
		return func(x int) bool { return !slices.Contains(from, x) }
	}
	return !slices.ContainsFunc(a, missing(b)) && !slices.ContainsFunc(b, missing(a))
}

// data is s as capset(2) and capget(2) have it.
func (s *Sets) data() *[2]unix.CapUserData {
	data := new([2]unix.CapUserData)
	for i := range data {
		shift := 32 * i
		data[i] = unix.CapUserData{
			Effective:   uint32(s.Effective >> shift),
			Permitted:   uint32(s.Permitted >> shift),
			Inheritable: uint32(s.Inheritable >> shift),
		}
	}
	return data
}

// Words are the effective, permitted and inheritable sets as capget(2) writes them,
// taken as words of 64 bits on a machine with the low byte first.
func (s *Sets) Words() [3]uint64 { return *(*[3]uint64)(unsafe.Pointer(s.data())) }
