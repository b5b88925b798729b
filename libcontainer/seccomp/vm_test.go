package seccomp

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"berth/libcontainer/seccomp/filter"
)

// machine runs a program as the kernel would.
type machine struct{ vm *bpf.VM }

func newMachine(tb testing.TB, code []byte) machine {
	tb.Helper()
	var program []bpf.Instruction
	for ; len(code) > 0; code = code[filter.InstructionSize:] {
		raw := bpf.RawInstruction{
			Op: binary.NativeEndian.Uint16(code), Jt: code[2], Jf: code[3], K: binary.NativeEndian.Uint32(code[4:]),
		}
		program = append(program, raw.Disassemble())
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		tb.Fatalf("the program is malformed: %v", err)
	}
	return machine{vm}
}

// run is the answer to one call. The virtual machine is one for packets, whose
// words are big-endian.
func (m machine) run(tb testing.TB, arch Arch, nr uint32, args ...uint64) Action {
	tb.Helper()
	if arch == X32 {
		nr |= x32Bit
	}
	data := make([]byte, 64) // struct seccomp_data
	binary.BigEndian.PutUint32(data[0:], nr)
	binary.BigEndian.PutUint32(data[4:], archInfo[arch].audit)
	for i, arg := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(arg))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(arg>>32))
	}
	action, err := m.vm.Run(data)
	if err != nil {
		tb.Fatal(err)
	}
	return Action(action)
}

func compile(tb testing.TB, p *Profile, t Target) machine {
	tb.Helper()
	code, err := p.Compile(t)
	if err != nil {
		tb.Fatal(err)
	}
	return newMachine(tb, code)
}

// abis are the architectures a target runs.
func abis(native Arch) []Arch { return append([]Arch{native}, family[native]...) }

var (
	eperm  = Errno(unix.EPERM)
	enosys = Errno(unix.ENOSYS)
)
