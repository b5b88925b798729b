package seccomp

import (
	"slices"

	"golang.org/x/sys/unix"

	"berth/libcontainer/caps"
)

// Profile says what each system call is answered with.
type Profile struct {
	// Fallback answers calls that no rule is about.
	Fallback Action

	// Arches are, by native architecture, the further ones whose programs
	// may run. Calls of any other are denied with EPERM.
	Arches map[Arch][]Arch

	// Rules may be several for one call: the first whose arguments match
	// decides, and only if none does, the first without arguments.
	Rules []Rule
}

// Rule gives the calls Names the answer Action, if the arguments match all of
// Args, on targets for which If holds and Unless does not.
type Rule struct {
	Names  []string
	Action Action
	Args   []Arg
	If     If
	Unless Unless
}

// If lists what a rule needs; the zero value needs nothing.
type If struct {
	Caps   caps.Set // all of these
	Arches []string // one of these is native, by GOARCH ("x86" for 386)
	Kernel Version  // this or later
}

// Unless lists what makes a rule void; the zero value does not.
type Unless struct {
	Caps   caps.Set // any of these
	Arches []string // any of these is native
	Kernel Version  // this or later
}

// Arg is a comparison of argument Index, counted from 0, all 64 bits of it.
type Arg struct {
	Index int
	Op    Op
	Value uint64
	Mask  uint64 // for MaskedEqual
}

// Op is an unsigned comparison "argument Op Value".
type Op int

const (
	Equal Op = iota
	NotEqual
	Less
	LessOrEqual
	Greater
	GreaterOrEqual
	MaskedEqual // argument & Mask == Value
)

// Action is an answer, as the value that the BPF program returns: a
// SECCOMP_RET_* action with its data (seccomp(2)).
type Action uint32

const (
	Allow       Action = unix.SECCOMP_RET_ALLOW
	Log         Action = unix.SECCOMP_RET_LOG
	Trap        Action = unix.SECCOMP_RET_TRAP
	KillThread  Action = unix.SECCOMP_RET_KILL_THREAD
	KillProcess Action = unix.SECCOMP_RET_KILL_PROCESS
)

// Errno answers with an error number and does nothing.
func Errno(e unix.Errno) Action { return unix.SECCOMP_RET_ERRNO | Action(e) }

// Trace hands the call to a tracer, with data for it; ENOSYS without one.
func Trace(data uint16) Action { return unix.SECCOMP_RET_TRACE | Action(data) }

// permits reports whether the call is carried out, maybe with a note of it.
func (a Action) permits() bool {
	kind := a & unix.SECCOMP_RET_ACTION_FULL
	return kind == Allow || kind == Log || kind == unix.SECCOMP_RET_TRACE
}

// Target is what a profile is compiled for.
type Target struct {
	Arch   Arch     // AMD64 or ARM64
	Caps   caps.Set // the container's bounding set
	Kernel Version
	NoX32  bool // the kernel has no x32 calls, so a search among them would be in vain
}

// applies reports whether the rule is in force on t.
func (r *Rule) applies(t Target) bool {
	name := t.Arch.String()
	switch {
	case r.If.Caps&^t.Caps != 0,
		len(r.If.Arches) > 0 && !slices.Contains(r.If.Arches, name),
		t.Kernel.before(r.If.Kernel),
		r.Unless.Caps&t.Caps != 0,
		slices.Contains(r.Unless.Arches, name),
		r.Unless.Kernel != (Version{}) && !t.Kernel.before(r.Unless.Kernel):
		return false
	}
	return true
}

// capsThatMatter are the capabilities that any rule asks about. Targets that
// differ only in others share a program.
func (p *Profile) capsThatMatter() caps.Set {
	var s caps.Set
	for i := range p.Rules {
		s |= p.Rules[i].If.Caps | p.Rules[i].Unless.Caps
	}
	return s
}

// UnknownNames returns the names in the profile that are no system call's on
// any architecture known here. Their rules have no effect, which matters when
// they were meant to deny something: worth a warning to the user.
func (p *Profile) UnknownNames() []string {
	var unknown []string
	for _, r := range p.Rules {
		for _, name := range r.Names {
			if _, ok := lookup(name); !ok && !slices.Contains(unknown, name) {
				unknown = append(unknown, name)
			}
		}
	}
	return unknown
}
