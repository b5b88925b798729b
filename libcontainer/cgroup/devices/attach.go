package devices

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Program is a policy in the kernel. It may be attached to any number of cgroups and closed afterwards:
// a cgroup keeps what is attached to it until its directory is removed.
type Program struct{ fd int }

// Load has the kernel verify and compile a policy. It needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN, and
// Linux 4.15; errors.ErrUnsupported tells that the kernel has no such programs.
func Load(p Policy) (*Program, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	code := encode(program(p))
	fd, err := load(code)
	if err == unix.EPERM {
		// Before 5.11 programs count against RLIMIT_MEMLOCK, 64 KiB unless the daemon was given more.
		fd, err = withMemlock(func() (int, error) { return load(code) })
	}
	if err == unix.EINVAL || err == unix.ENOSYS {
		err = errors.Join(errors.ErrUnsupported, err)
	}
	if err != nil {
		return nil, fmt.Errorf("load eBPF device filter: %w", err)
	}
	return &Program{fd}, nil
}

// Close gives the descriptor up; cgroups the program is attached to keep it.
func (p *Program) Close() error { return unix.Close(p.fd) }

// Attach makes the program the only device filter of the cgroup v2 directory that dirfd is open on. Filters
// that were there are taken off after the new one is on, so that at no time less is denied than either
// denies. Those of ancestors stay in force: a group can never allow what its parent denies.
func (p *Program) Attach(dirfd int) error {
	if err := p.AttachFirst(dirfd); err != nil {
		return err
	}
	old, err := attached(dirfd)
	if err != nil {
		return err
	}
	own, err := p.id()
	if err != nil {
		return err
	}
	for _, id := range old {
		if id != own {
			err = errors.Join(err, detach(dirfd, id))
		}
	}
	return err
}

// AttachFirst is Attach for a directory just made, which has no filter yet: one call instead of four.
func (p *Program) AttachFirst(dirfd int) error {
	attr := attachAttr{target: uint32(dirfd), prog: uint32(p.fd), kind: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI}
	_, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err == unix.EEXIST {
		return nil // this very program is attached already
	}
	return os.NewSyscallError("bpf(BPF_PROG_ATTACH)", err)
}

// attached returns the ids of the device filters of one directory, without those of its ancestors.
func attached(dirfd int) ([]uint32, error) {
	var pins runtime.Pinner
	defer pins.Unpin()
	ids := make([]uint32, 64) // BPF_CGROUP_MAX_PROGS, kernel/bpf/cgroup.c
	attr := queryAttr{target: uint32(dirfd), kind: unix.BPF_CGROUP_DEVICE, ids: pointer(&pins, &ids[0]), count: uint32(len(ids))}
	_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return nil, os.NewSyscallError("bpf(BPF_PROG_QUERY)", err)
	}
	return ids[:min(int(attr.count), len(ids))], nil
}

func detach(dirfd int, id uint32) error {
	get := struct{ id, next, flags uint32 }{id: id}
	fd, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&get), unsafe.Sizeof(get))
	if err != nil {
		return os.NewSyscallError("bpf(BPF_PROG_GET_FD_BY_ID)", err)
	}
	defer unix.Close(fd)
	attr := attachAttr{target: uint32(dirfd), prog: uint32(fd), kind: unix.BPF_CGROUP_DEVICE}
	_, err = bpf(unix.BPF_PROG_DETACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return os.NewSyscallError("bpf(BPF_PROG_DETACH)", err)
}

// id is the kernel's number of the program: the second word of struct bpf_prog_info.
func (p *Program) id() (uint32, error) {
	var pins runtime.Pinner
	defer pins.Unpin()
	info := new([2]uint32)
	attr := struct {
		fd, length uint32
		info       uint64
	}{fd: uint32(p.fd), length: uint32(unsafe.Sizeof(*info)), info: pointer(&pins, info)}
	_, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return info[1], os.NewSyscallError("bpf(BPF_OBJ_GET_INFO_BY_FD)", err)
}

func load(code []byte) (int, error) {
	var pins runtime.Pinner
	defer pins.Unpin()
	license := new(byte) // "": no helper is called that would ask for the GPL
	attr := loadAttr{
		kind:    unix.BPF_PROG_TYPE_CGROUP_DEVICE,
		count:   uint32(len(code) / 8),
		insns:   pointer(&pins, &code[0]),
		license: pointer(&pins, license),
		name:    [16]byte{'b', 'e', 'r', 't', 'h', '_', 'd', 'e', 'v', 'i', 'c', 'e', 's'},
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return fd, err
}

// withMemlock runs f with as much locked memory as may be had.
func withMemlock(f func() (int, error)) (int, error) {
	var old unix.Rlimit
	raised := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &raised, &old); err != nil {
		return -1, unix.EPERM // no CAP_SYS_RESOURCE; or it was EPERM for another reason
	}
	defer unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &old, nil)
	return f()
}

// The leading members of union bpf_attr, linux/bpf.h, one struct a command. The kernel takes the rest for zero.
type (
	loadAttr struct {
		kind, count        uint32
		insns, license     uint64
		logLevel, logSize  uint32
		log                uint64
		kernVersion, flags uint32
		name               [16]byte // 4.15, as are the programs themselves
	}
	attachAttr struct{ target, prog, kind, flags uint32 }
	queryAttr  struct {
		target, kind, queryFlags, attachFlags uint32
		ids                                   uint64
		count, _                              uint32
	}
)

// pointer is an address inside an attr, where Go does not see it: pinned, so that neither the collector nor a
// growing stack moves what it points to.
func pointer[T any](pins *runtime.Pinner, p *T) uint64 {
	pins.Pin(p)
	return uint64(uintptr(unsafe.Pointer(p)))
}

func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		switch errno {
		case 0:
			return int(fd), nil
		case unix.EINTR, unix.EAGAIN: // EAGAIN: the verifier was interrupted by a signal
			continue
		}
		return -1, errno
	}
}
