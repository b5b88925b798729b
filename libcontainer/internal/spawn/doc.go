// Package spawn makes a process whose whole life before its command is a list of
// system calls, worked out beforehand.
//
// The child is one as of vfork(2): it shares the parent's memory, so that none of
// it is copied and a program of any size forks equally fast, and the calling
// thread waits until the child has executed something or ended. No Go runs in it:
// a few instructions (spawn_amd64.s) walk the list and use no stack. Nor does the
// wait keep Go's scheduler from anything: to it the thread is in a system call,
// so a child that is frozen or stopped half-way delays its own caller only.
//
// What it means that memory is shared:
//
//   - Who may trace the child could reach the parent. The parent is to be
//     undumpable (PR_SET_DUMPABLE, prctl(2)), which leaves those with
//     CAP_SYS_PTRACE in the parent's user namespace. The caller keeps the child
//     out of their sight.
//   - No signal may be handled in it: the clone resets all handlers
//     (CLONE_CLEAR_SIGHAND, Linux 5.5), and what was ignored is reset first.
//   - The kernel does not choose it when memory is short (in_vfork in
//     mm/oom_kill.c, Linux 4.10), for that would end the parent too.
package spawn
