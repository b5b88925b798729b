#include "textflag.h"

// The program that resident.go speaks of. It is copied into an executable file of its
// own and never runs in here: it may refer to nothing but itself and the data at
// residentData (0x4000b0): the pid of the command, 4 bytes, and the name, from 0x4000b4.
//
//	prctl(PR_SET_NAME, name)
//	reap: while (pid = wait4(-1, &status, WNOHANG)) > 0
//	          if pid == command: exit_group(as it ended)
//	next: signal = rt_sigtimedwait(all)
//	      SIGCHLD: goto reap; EINTR: goto next; another: kill(command, signal), goto next

// func residentProgram() *byte
TEXT ·residentProgram(SB),NOSPLIT,$0-8
	LEAQ residentText<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

TEXT residentText<>(SB),NOSPLIT|NOFRAME,$0
	MOVL $157, AX       // prctl
	MOVL $15, DI        // PR_SET_NAME
	MOVL $0x4000b4, SI
	SYSCALL
	MOVL $0x4000b0, BX
	MOVL (BX), R12      // the command
	SUBQ $32, SP        // 0: set of signals, 8: status
	MOVQ $-1, AX
	MOVQ AX, 0(SP)
reap:
	MOVL $61, AX        // wait4
	MOVQ $-1, DI
	LEAQ 8(SP), SI
	MOVL $1, DX         // WNOHANG
	XORL R10, R10
	SYSCALL
	TESTL AX, AX
	JLE next
	CMPL AX, R12
	JNE reap
	MOVL 8(SP), AX
	MOVL AX, DI
	ANDL $0x7f, DI      // WTERMSIG
	JNE signalled
	MOVL AX, DI
	SHRL $8, DI
	ANDL $0xff, DI      // WEXITSTATUS
	JMP exit
signalled:
	ADDL $128, DI
exit:
	MOVL $231, AX       // exit_group
	SYSCALL
next:
	MOVL $128, AX       // rt_sigtimedwait
	LEAQ 0(SP), DI
	XORL SI, SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL
	CMPQ AX, $-4        // EINTR
	JEQ next
	CMPQ AX, $17        // SIGCHLD
	JEQ reap
	TESTL AX, AX
	JLE broken
	MOVL AX, SI
	MOVL R12, DI
	MOVL $62, AX        // kill
	SYSCALL
	JMP next
broken:
	MOVL $125, DI
	JMP exit
	LONG $0x444e4521    // residentEnd
	LONG $0x42525448
