package devices

import "encoding/binary"

// insn is one eBPF instruction, struct bpf_insn of linux/bpf.h.
type insn struct {
	op       uint8
	dst, src uint8
	off      int16
	imm      int32
}

// The few operations needed, linux/bpf_common.h and linux/bpf.h: class | mode | source.
const (
	ldxw   = 0x61 // dst = *(u32 *)(src + off)
	movImm = 0xb7 // dst = imm, 64 bits
	movReg = 0xbf // dst = src, 64 bits
	andImm = 0x57 // dst &= imm, 64 bits
	rshImm = 0x77 // dst >>= imm, 64 bits
	jneImm = 0x55 // if dst != imm goto off
	jneReg = 0x5d // if dst != src goto off
	exit   = 0x95 // return r0
)

// What the kernel hands the program, struct bpf_cgroup_dev_ctx: three u32, of which the first holds the
// access in its upper half and the type in its lower.
const (
	ctxAccessType = 0
	ctxMajor      = 4
	ctxMinor      = 8

	devBlock = 1
	devChar  = 2
)

// The registers, as the prologue of program fills them.
const (
	rResult = iota // r0: 1 allows, 0 denies
	rCtx           // r1: context, then scratch
	rType          // r2
	rAccess        // r3
	rMajor         // r4
	rMinor         // r5
)

// program compiles a policy: load what is asked for, compare with rule after rule, deny in the end.
//
//	type, access, major, minor = ...
//	if type == 'c' && access within "rw" && major == 1 && minor == 3 { return 1 }
//	...
//	return 0
func program(p Policy) []insn {
	prog := []insn{
		{op: ldxw, dst: rType, src: rCtx, off: ctxAccessType},
		{op: movReg, dst: rAccess, src: rType},
		{op: rshImm, dst: rAccess, imm: 16},
		{op: andImm, dst: rType, imm: 0xffff},
		{op: ldxw, dst: rMajor, src: rCtx, off: ctxMajor},
		{op: ldxw, dst: rMinor, src: rCtx, off: ctxMinor},
	}
	if p.AllowAll {
		return append(prog, verdict(1)...)
	}
	for _, r := range p.Allow {
		prog = append(prog, allow(r)...)
	}
	return append(prog, verdict(0)...)
}

// allow is the block of one rule. Each comparison that fails jumps behind the block.
func allow(r Rule) []insn {
	var block []insn
	switch r.Type {
	case 'b':
		block = append(block, insn{op: jneImm, dst: rType, imm: devBlock})
	case 'c':
		block = append(block, insn{op: jneImm, dst: rType, imm: devChar})
	}
	switch r.Access {
	case All:
	case Mknod: // just that: open(2) can ask for no access at all, which is part of any
		block = append(block, insn{op: jneImm, dst: rAccess, imm: int32(Mknod)})
	default:
		block = append(block, // asked & allowed == asked
			insn{op: movReg, dst: rCtx, src: rAccess},
			insn{op: andImm, dst: rCtx, imm: int32(r.Access)},
			insn{op: jneReg, dst: rCtx, src: rAccess})
	}
	if r.Major != Any {
		block = append(block, insn{op: jneImm, dst: rMajor, imm: int32(r.Major)})
	}
	if r.Minor != Any {
		block = append(block, insn{op: jneImm, dst: rMinor, imm: int32(r.Minor)})
	}
	block = append(block, verdict(1)...)
	for i := range block {
		if block[i].op == jneImm || block[i].op == jneReg {
			block[i].off = int16(len(block) - i - 1)
		}
	}
	return block
}

func verdict(result int32) []insn {
	return []insn{{op: movImm, dst: rResult, imm: result}, {op: exit}}
}

// encode lays instructions out as the kernel reads them: native byte order, which is little-endian on all
// machines we run on, with the registers in one byte.
func encode(prog []insn) []byte {
	b := make([]byte, 0, 8*len(prog))
	for _, in := range prog {
		b = append(b, in.op, in.src<<4|in.dst)
		b = binary.NativeEndian.AppendUint16(b, uint16(in.off))
		b = binary.NativeEndian.AppendUint32(b, uint32(in.imm))
	}
	return b
}
