#include "textflag.h"

// func vfork(args *cloneArgs, size uintptr, ops *op) (r uintptr)
//
// The parent returns what clone3 does. The child never returns: it has the
// parent's stack and must not touch it. R12 is the call to make next; the
// kernel keeps it, and clobbers RCX and R11 (syscall(2)).
TEXT ·vfork(SB),NOSPLIT,$0-32
	MOVQ args+0(FP), DI
	MOVQ size+8(FP), SI
	MOVQ ops+16(FP), R12
	MOVL $435, AX             // clone3
	SYSCALL
	TESTQ AX, AX
	JEQ next
	MOVQ AX, r+24(FP)
	RET

next:
	MOVQ 0(R12), AX           // op.trap
	CMPQ AX, $-1              // trapEnd
	JEQ end
	CMPQ AX, $-2              // trapCompare
	JEQ compare
	MOVQ 8(R12), DI           // op.args
	MOVQ 16(R12), SI
	MOVQ 24(R12), DX
	MOVQ 32(R12), R10
	MOVQ 40(R12), R8
	MOVQ 48(R12), R9
	SYSCALL

check:
	MOVQ AX, 64(R12)          // op.result
	CMPQ AX, $-4095
	JCS advance               // not an error
	NEGQ AX
	MOVQ 56(R12), CX          // op.tolerate

tolerated:
	MOVWLZX CX, DX
	CMPQ DX, AX
	JEQ advance
	SHRQ $16, CX
	JNE tolerated

exit:
	MOVL $231, AX             // exit_group
	MOVL $125, DI
	SYSCALL
	JMP exit

end:
	MOVQ $0, 64(R12)
	JMP exit

compare:
	MOVQ 8(R12), BX
	MOVQ 0(BX), BX
	XORL AX, AX
	CMPQ BX, 16(R12)
	JEQ check
	MOVQ $-1, AX              // EPERM
	JMP check

advance:
	ADDQ $72, R12             // sizeof(op)
	JMP next
