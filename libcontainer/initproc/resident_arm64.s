#include "textflag.h"

// See resident_amd64.s.

// func residentProgram() *byte
TEXT ·residentProgram(SB),NOSPLIT,$0-8
	MOVD $residentText<>(SB), R0
	MOVD R0, ret+0(FP)
	RET

TEXT residentText<>(SB),NOSPLIT|NOFRAME,$0
	MOVD $167, R8       // prctl
	MOVD $15, R0        // PR_SET_NAME
	MOVZ $(0x40<<16), R1
	MOVK $0xb4, R1
	SVC
	MOVZ $(0x40<<16), R1
	MOVK $0xb0, R1
	MOVWU (R1), R19     // the command
	SUB $32, RSP        // 0: set of signals, 8: status
	MOVD $-1, R0
	MOVD R0, 0(RSP)
reap:
	MOVD $260, R8       // wait4
	MOVD $-1, R0
	ADD $8, RSP, R1
	MOVD $1, R2         // WNOHANG
	MOVD $0, R3
	SVC
	CMPW $0, R0
	BLE next
	CMPW R19, R0
	BNE reap
	MOVWU 8(RSP), R1
	ANDW $0x7f, R1, R0  // WTERMSIG
	CBNZW R0, signalled
	LSRW $8, R1, R0
	ANDW $0xff, R0, R0  // WEXITSTATUS
	B exit
signalled:
	ADDW $128, R0, R0
exit:
	MOVD $94, R8        // exit_group
	SVC
next:
	MOVD $137, R8       // rt_sigtimedwait
	MOVD RSP, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $8, R3
	SVC
	CMN $4, R0          // EINTR
	BEQ next
	CMP $17, R0         // SIGCHLD
	BEQ reap
	CMPW $0, R0
	BLE broken
	MOVD R0, R1
	MOVD R19, R0
	MOVD $129, R8       // kill
	SVC
	B next
broken:
	MOVD $125, R0
	B exit
	WORD $0x444e4521    // residentEnd
	WORD $0x42525448
