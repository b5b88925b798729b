package spawn

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// op is a call as the child's instructions read it (spawn_amd64.s).
type op struct {
	trap     uintptr
	args     [6]uintptr
	tolerate uint64 // errnos after which the list goes on, 16 bits each
	result   uintptr
}

// What may stand in place of a number of a system call.
const (
	trapEnd     = ^uintptr(0)     // the child ends
	trapCompare = ^uintptr(0) - 1 // the word at args[0] is to be args[1], else EPERM
)

// unset is the result of a call that was not made. No call returns it.
const unset = uintptr(1) << 63

// maxErrno bounds the negative numbers that are errors (MAX_ERRNO).
const maxErrno = 4095

// List is what a child does, in this order. The zero List is empty.
type List struct {
	ops   []op
	steps []string
	held  []any
}

// Add appends a call. Arguments that are addresses are kept alive by Hold. After
// an error that is tolerated, four at most, the list goes on. step names the call
// in errors.
func (l *List) Add(step string, tolerate []unix.Errno, trap uintptr, args ...uintptr) (index int) {
	o := op{trap: trap, result: unset}
	copy(o.args[:], args)
	for i, errno := range tolerate {
		o.tolerate |= uint64(errno) << (16 * i)
	}
	l.ops, l.steps = append(l.ops, o), append(l.steps, step)
	return len(l.ops) - 1
}

// Expect appends a check that the word at p has a value when the list gets there.
// p is kept alive.
func (l *List) Expect(step string, p *uint64, want uint64) {
	l.Hold(p)
	l.Add(step, nil, trapCompare, uintptr(unsafe.Pointer(p)), uintptr(want))
}

// Hold keeps what v points to alive for as long as the list, and where it is. Go
// moves nothing that is on the heap, and what is kept in v is.
func (l *List) Hold(v any) { l.held = append(l.held, v) }

// ErrEnded is the error of a child that was ended before it was through.
var ErrEnded = errors.New("it was ended")

// Failure tells the step that ended the list. Without error the command runs, or
// did: the last calls, from index commands on, execute it, each in another place.
func (l *List) Failure(commands int) (step string, err error) {
	for i := range l.ops {
		o := &l.ops[i]
		if o.result == unset {
			if i < commands {
				return l.steps[i], ErrEnded
			}
			return "", nil
		}
		if errno := l.Errno(i); errno != 0 && !o.tolerates(errno) {
			return l.steps[i], errno
		}
	}
	return l.steps[len(l.ops)-1], unix.ENOENT
}

func (o *op) tolerates(errno unix.Errno) bool {
	for t := o.tolerate; t != 0; t >>= 16 {
		if unix.Errno(t&0xffff) == errno {
			return true
		}
	}
	return false
}

// Errno is the error of a call that was made, 0 if it went well or was not.
func (l *List) Errno(index int) unix.Errno {
	r := l.ops[index].result
	if r == unset || -r > maxErrno {
		return 0
	}
	return unix.Errno(-r)
}

// Unblock appends the call that lets all signals in.
func (l *List) Unblock() {
	none := new(uint64)
	l.Hold(none)
	l.Add("reset signals", nil, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(none)), 0, sigsetSize)
}

const sigsetSize = 8

// Len is the number of calls so far.
func (l *List) Len() int { return len(l.ops) }
