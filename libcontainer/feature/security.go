package feature

import (
	"fmt"

	"golang.org/x/sys/unix"

	"berth/libcontainer/landlock"
)

func security() []probe {
	return []probe{{
		Feature{Name: "seccomp filter", Since: "3.5",
			Lost: "Containers can make every system call: one layer of defence less.",
			Do:   "Run a kernel with CONFIG_SECCOMP_FILTER."},
		func(*host) (State, string) {
			// A null filter: EFAULT where filters are known, EINVAL where they are not.
			err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0)
			if err == unix.EFAULT {
				return Yes, ""
			}
			return No, err.Error()
		},
	}, {
		Feature{Name: "no_new_privs", Since: "3.5",
			Lost: "The security option no-new-privileges is refused.",
			Do:   "Run Linux 3.5 or later."},
		func(*host) (State, string) {
			_, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
			return verdict(err)
		},
	}, {
		Feature{Name: "Landlock", Since: "5.19",
			Lost: "Unpacking of layers is shut in by chroot, capabilities and seccomp alone.",
			Do:   "Run a kernel with CONFIG_SECURITY_LANDLOCK, and landlock among the modules of lsm= where that is set."},
		func(*host) (State, string) {
			switch v := landlock.Version(); {
			case v == 0:
				return No, "not in this kernel, or switched off"
			case v < landlock.Least:
				return No, fmt.Sprintf("version %d cannot allow hard links between directories", v)
			default:
				return Yes, fmt.Sprintf("version %d", v)
			}
		},
	}, {
		Feature{Name: "AppArmor", Since: "2.6.36",
			Lost: "Containers are not confined by an AppArmor profile; SELinux does the same job where it is on.",
			Do:   "On Debian, Ubuntu and SUSE boot with apparmor=1 security=apparmor; elsewhere nothing."},
		func(*host) (State, string) {
			if firstLine("/sys/module/apparmor/parameters/enabled") != "Y" {
				return No, "not in this kernel, or switched off"
			}
			return exists("/sys/kernel/security/apparmor")
		},
	}, {
		Feature{Name: "SELinux", Since: "2.6",
			Lost: "Containers are not confined by an SELinux label; AppArmor does the same job where it is on.",
			Do:   "On Fedora and CentOS set SELINUX=enforcing in /etc/selinux/config; elsewhere nothing."},
		func(*host) (State, string) {
			switch firstLine("/sys/fs/selinux/enforce") {
			case "1":
				return Yes, "enforcing"
			case "0":
				return Yes, "permissive"
			}
			return No, "not in this kernel, or switched off"
		},
	}}
}
