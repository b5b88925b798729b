package initproc

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is init where it stays (Command.Init): process 1 of the container, whose
// only child of its own is the command. It passes signals on to that, reaps what
// others leave, and ends as the command ends, which ends everything else in the
// container's PID namespace.
//
// What stays is no Go program: a runtime would cost every container a megabyte and four
// threads, and take signals for itself while it starts. It is a few dozen instructions
// (resident_amd64.s), one page of code and one or two of stack. They become an executable
// file in memory; the command is forked (fork.go) and waits; this process executes that
// file; then the child executes the command. Signals are blocked from before the fork on
// and stay so, as the program takes them one by one: none gets lost in between. Nothing
// is left of this process when the command runs: no thread, no memory and no descriptor
// beyond the command's, and its rights are the command's.

// The executable is one segment: ELF header, two program headers, data, code.
const (
	residentBase  = 0x400000
	elfHeaderSize = 64
	progHeadSize  = 56
	residentData  = elfHeaderSize + 2*progHeadSize // pid of the command, and name: see resident_amd64.s
	residentName  = "berth-init\x00"
	residentText  = residentData + 16
	maxResident   = 4096
)

// residentEnd follows the last instruction.
var residentEnd = []byte{0x21, 0x45, 0x4e, 0x44, 0x48, 0x54, 0x52, 0x42}

// residentImage is the executable for a command.
func residentImage(command int) ([]byte, error) {
	machine, ok := residentMachine[runtime.GOARCH]
	if !ok {
		return nil, unix.ENOSYS
	}
	code := unsafe.Slice(residentProgram(), maxResident)
	end := bytes.Index(code, residentEnd)
	if end < 0 {
		return nil, unix.ENOEXEC
	}
	le, size := binary.LittleEndian, uint64(residentText+end)
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...) // 64 bits, little-endian, version 1
	b = le.AppendUint16(b, 2)                                      // ET_EXEC
	b = le.AppendUint16(b, machine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, residentBase+residentText) // entry
	b = le.AppendUint64(b, elfHeaderSize)             // program headers
	b = le.AppendUint64(b, 0)                         // no sections
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{elfHeaderSize, progHeadSize, 2, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	const (
		load, stack    = 1, 0x6474e551 // PT_LOAD, PT_GNU_STACK
		read, write, x = 4, 2, 1
	)
	for _, h := range []struct {
		kind, flags uint32
		at, size    uint64
	}{{load, read | x, residentBase, size}, {stack, read | write, 0, 0}} {
		b = le.AppendUint32(b, h.kind)
		b = le.AppendUint32(b, h.flags)
		for _, v := range []uint64{0, h.at, h.at, h.size, h.size, 0x10000} { // aligned for every page size
			b = le.AppendUint64(b, v)
		}
	}
	b = le.AppendUint32(b, uint32(command))
	b = append(b, residentName...)
	b = append(b, make([]byte, residentText-len(b))...)
	return append(b, code[:end]...), nil
}

// reside starts the command and becomes the resident init, which runs in file. It
// returns only with an error.
func (r *runner) reside(c *Command, argv, envp []*byte) error {
	pid, err := r.fork(c, argv, envp)
	if err != nil {
		return err
	}
	err = r.residentExec(pid, argv, envp)
	unix.Kill(pid, unix.SIGKILL)
	return &stepError{step: "start resident init", err: err}
}

// openResident makes the file for the program, while this process has the rights to.
func (r *runner) openResident() (err error) {
	// Where the container shares a PID namespace, what it leaves would go to another
	// init. This outlasts an execve.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	r.resident, err = unix.MemfdCreate("berth-init", flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		r.resident, err = unix.MemfdCreate("berth-init", flags)
	}
	if err != nil {
		return err
	}
	return unix.Fchmod(r.resident, 0o755)
}

func (r *runner) residentExec(command int, argv, envp []*byte) error {
	image, err := residentImage(command)
	if err != nil {
		return err
	}
	if n, err := unix.Write(r.resident, image); err != nil || n < len(image) {
		return unix.ENOSPC
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(r.resident), unix.F_ADD_SEALS, seals); err != nil {
		return err
	}
	// What ps shows, as Docker's init has it.
	name, err := syscall.SlicePtrFromStrings([]string{"berth-init", "--"})
	if err != nil {
		return err
	}
	argv, empty := append(name[:2:2], argv...), new(byte)
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(r.resident), uintptr(unsafe.Pointer(empty)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])), unix.AT_EMPTY_PATH, 0)
	return errno
}

// signalSet is the kernel's sigset_t, for sigsetSize.
type signalSet uint64

const allSignals = ^signalSet(0)
