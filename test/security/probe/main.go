// Probe runs inside a container and tells, one line each, what the kernel answers to calls that a container has no
// business making. Output: "name errno", errno 0 for success.
package main

import (
	"fmt"
	"os"
	"syscall"
)

// call is a system call with arguments that would be harmless if it were allowed.
type call struct {
	name string
	nr   uintptr
	args [3]uintptr
}

// Numbers of arch/x86/entry/syscalls/syscall_64.tbl.
var calls = []call{
	{"kexec_load", 246, [3]uintptr{0, 0, 0}},
	{"init_module", 175, [3]uintptr{0, 0, 0}},
	{"delete_module", 176, [3]uintptr{0, 0, 0}},
	{"mount", 165, [3]uintptr{0, 0, 0}},
	{"umount2", 166, [3]uintptr{0, 0, 0}},
	{"pivot_root", 155, [3]uintptr{0, 0, 0}},
	{"fsopen", 430, [3]uintptr{0, 0, 0}},
	{"move_mount", 429, [3]uintptr{^uintptr(0), 0, ^uintptr(0)}},
	{"open_tree", 428, [3]uintptr{^uintptr(0), 0, 0}},
	{"unshare(CLONE_NEWUSER)", 272, [3]uintptr{0x10000000, 0, 0}},
	{"unshare(CLONE_NEWNS)", 272, [3]uintptr{0x20000, 0, 0}},
	{"setns", 308, [3]uintptr{^uintptr(0), 0, 0}},
	{"clone(CLONE_NEWUSER)", 56, [3]uintptr{0x10000000 | 17, 0, 0}},
	{"clone3", 435, [3]uintptr{0, 0, 0}},
	{"bpf", 321, [3]uintptr{0, 0, 0}},
	{"perf_event_open", 298, [3]uintptr{0, 0, 0}},
	{"userfaultfd", 323, [3]uintptr{0, 0, 0}},
	{"io_uring_setup", 425, [3]uintptr{1, 0, 0}},
	{"io_uring_enter", 426, [3]uintptr{^uintptr(0), 0, 0}},
	{"keyctl", 250, [3]uintptr{0, 0, 0}},
	{"add_key", 248, [3]uintptr{0, 0, 0}},
	{"request_key", 249, [3]uintptr{0, 0, 0}},
	{"open_by_handle_at", 304, [3]uintptr{^uintptr(0), 0, 0}},
	{"reboot", 169, [3]uintptr{0, 0, 0}},
	{"swapon", 167, [3]uintptr{0, 0, 0}},
	{"settimeofday", 164, [3]uintptr{0, 0, 0}},
	{"acct", 163, [3]uintptr{0, 0, 0}},
	{"quotactl", 179, [3]uintptr{0, 0, 0}},
	{"syslog", 103, [3]uintptr{10, 0, 0}},
	{"iopl", 172, [3]uintptr{3, 0, 0}},
	{"socket(AF_ALG)", 41, [3]uintptr{38, 5, 0}},
	{"socket(AF_VSOCK)", 41, [3]uintptr{40, 1, 0}},
}

func main() {
	for _, c := range calls {
		r, _, errno := syscall.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], 0, 0, 0)
		if errno == 0 && c.name == "clone(CLONE_NEWUSER)" && r == 0 {
			os.Exit(0) // the child of a clone that should not have been
		}
		fmt.Println(c.name, int(errno))
	}
	devices()
}

// devices makes nodes of host devices and opens them; mknod needs CAP_MKNOD, the open must fail all the same.
func devices() {
	for _, d := range []struct {
		name         string
		mode         uint32
		major, minor int
	}{
		{"sda", syscall.S_IFBLK, 8, 0}, {"nvme", syscall.S_IFBLK, 259, 0}, {"vda", syscall.S_IFBLK, 254, 0},
		{"mem", syscall.S_IFCHR, 1, 1}, {"fuse", syscall.S_IFCHR, 10, 229}, {"kmsg", syscall.S_IFCHR, 1, 11},
	} {
		path := "/probe-" + d.name
		err := syscall.Mknod(path, d.mode|0o600, d.major<<8|d.minor)
		fmt.Println("mknod", d.name, number(err))
		if err != nil {
			continue
		}
		fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			syscall.Close(fd)
		}
		fmt.Println("open", d.name, number(err))
	}
}

func number(err error) int {
	if e, ok := err.(syscall.Errno); ok {
		return int(e)
	}
	return 0
}
