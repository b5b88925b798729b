package seccomp

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"berth/libcontainer/seccomp/filter"
)

// assembler builds a BPF program from its end to its beginning. Jumps only
// lead forward, so whatever an instruction may jump to is there already, and
// distances are known when it is written.
type assembler struct {
	reversed []unix.SockFilter
	returns  map[Action]label
}

// label is an instruction's place, counted from the end of the program.
type label int

// reach is how far a conditional jump leads; its offsets are bytes.
const reach = 255

// Offsets in struct seccomp_data (seccomp(2)).
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

func newAssembler() *assembler {
	return &assembler{returns: make(map[Action]label)}
}

func (a *assembler) emit(code uint16, jt, jf uint8, k uint32) label {
	a.reversed = append(a.reversed, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
	return label(len(a.reversed) - 1)
}

// distance is the offset of a jump from the next instruction written to l.
func (a *assembler) distance(l label) int {
	return len(a.reversed) - 1 - int(l)
}

// ret is a place that returns action: one written before, if it is near.
func (a *assembler) ret(action Action) label {
	if l, ok := a.returns[action]; ok && a.distance(l) < reach-2 {
		return l
	}
	l := a.emit(unix.BPF_RET|unix.BPF_K, 0, 0, uint32(action))
	a.returns[action] = l
	return l
}

// near is a place within reach that leads to l. The room of two is for the
// other branch's detour and the jump itself.
func (a *assembler) near(l label) label {
	if a.distance(l) <= reach-2 {
		return l
	}
	return a.emit(unix.BPF_JMP|unix.BPF_JA, 0, 0, uint32(a.distance(l)))
}

// jump tests the loaded value against k by test (BPF_JEQ, …).
func (a *assembler) jump(test uint16, k uint32, yes, no label) label {
	if yes == no {
		return yes
	}
	yes, no = a.near(yes), a.near(no)
	return a.emit(unix.BPF_JMP|unix.BPF_K|test, uint8(a.distance(yes)), uint8(a.distance(no)), k)
}

// load is a load of the 32 bits at offset, before what stands at next.
func (a *assembler) load(offset uint32, next label) label {
	a.before(next)
	return a.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, offset)
}

// and masks the loaded value, before what stands at next.
func (a *assembler) and(mask uint32, next label) label {
	if mask == 0xffffffff {
		return next
	}
	a.before(next)
	return a.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0, 0, mask)
}

// before makes sure that an instruction written now runs into next.
func (a *assembler) before(next label) {
	if d := a.distance(next); d > 0 {
		a.emit(unix.BPF_JMP|unix.BPF_JA, 0, 0, uint32(d))
	}
}

var errTooLong = errors.New("seccomp profile needs more than 4096 instructions")

// program returns what was assembled, entered at its last written place.
func (a *assembler) program() ([]byte, error) {
	n := len(a.reversed)
	if n > filter.MaxInstructions {
		return nil, errTooLong
	}
	code := make([]byte, 0, n*filter.InstructionSize)
	for i := n - 1; i >= 0; i-- {
		ins := a.reversed[i]
		code = binary.NativeEndian.AppendUint16(code, ins.Code)
		code = append(code, ins.Jt, ins.Jf)
		code = binary.NativeEndian.AppendUint32(code, ins.K)
	}
	return code, nil
}
