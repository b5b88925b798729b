package feature

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Release is a kernel version. It orders releases; whether a feature is there, only trying tells.
type Release struct{ Major, Minor, Patch int }

// Oldest is the kernel of CentOS 7, below which nothing is promised.
var Oldest = Release{3, 10, 0}

// Kernel is the running kernel's release, and as uname(2) has it.
func Kernel() (Release, string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Release{}, "", os.NewSyscallError("uname", err)
	}
	text := unix.ByteSliceToString(u.Release[:])
	r, ok := ParseRelease(text)
	if !ok {
		return r, text, fmt.Errorf("kernel release %q is not understood", text)
	}
	return r, text, nil
}

// ParseRelease reads "3.10.0-1160.el7.x86_64", "6.12-rc3", "5.15.167.4-microsoft-standard-WSL2".
func ParseRelease(s string) (Release, bool) {
	if i := strings.IndexFunc(s, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }); i >= 0 {
		s = s[:i]
	}
	parts := strings.Split(s, ".")
	var n [3]int
	for i := range min(len(parts), 3) {
		v, err := strconv.Atoi(parts[i])
		if err != nil {
			return Release{}, false
		}
		n[i] = v
	}
	return Release{n[0], n[1], n[2]}, len(parts) >= 2
}

// Before reports whether r is older than other.
func (r Release) Before(other Release) bool {
	if r.Major != other.Major {
		return r.Major < other.Major
	}
	if r.Minor != other.Minor {
		return r.Minor < other.Minor
	}
	return r.Patch < other.Patch
}

func (r Release) String() string { return fmt.Sprintf("%d.%d.%d", r.Major, r.Minor, r.Patch) }

func basics() []probe {
	return []probe{{
		Feature{Name: "kernel", Needed: true, Since: "3.10",
			Lost: "Nothing is tested on older kernels.",
			Do:   "Upgrade the kernel or the distribution."},
		func(*host) (State, string) {
			r, text, err := Kernel()
			switch {
			case err != nil:
				return Unknown, err.Error()
			case r.Before(Oldest):
				return No, text
			}
			return Yes, text
		},
	}, {
		Feature{Name: "64-bit", Needed: true,
			Lost: "The engine and its images are made for amd64 and arm64.",
			Do:   "Install a 64-bit system."},
		func(*host) (State, string) {
			var u unix.Utsname
			if err := unix.Uname(&u); err != nil {
				return Unknown, err.Error()
			}
			machine := unix.ByteSliceToString(u.Machine[:])
			if machine == "x86_64" || machine == "aarch64" {
				return Yes, machine
			}
			return No, machine
		},
	}, {
		Feature{Name: "root", Needed: true,
			Lost: "The daemons that make containers cannot work.",
			Do:   "Start the engine as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN."},
		func(*host) (State, string) {
			switch {
			case hasCapability(unix.CAP_SYS_ADMIN) && hasCapability(unix.CAP_NET_ADMIN):
				return Yes, ""
			case os.Geteuid() != 0:
				return Unknown, "asked as uid " + strconv.Itoa(os.Geteuid()) + "; ask again as root"
			}
			return No, "root without CAP_SYS_ADMIN or CAP_NET_ADMIN"
		},
	}, {
		Feature{Name: "CAP_SYS_RESOURCE",
			Lost: "Hard resource limits cannot be raised above the daemon's own and oom_score_adj cannot be lowered; such requests are met as far as possible, with a warning.",
			Do:   "Start the engine with CAP_SYS_RESOURCE in its bounding set."},
		func(*host) (State, string) {
			switch {
			case hasCapability(unix.CAP_SYS_RESOURCE):
				return Yes, ""
			case os.Geteuid() != 0:
				return Unknown, "asked as uid " + strconv.Itoa(os.Geteuid()) + "; ask again as root"
			}
			return No, "root without CAP_SYS_RESOURCE"
		},
	}}
}

// hasCapability looks into the effective set.
func hasCapability(c int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}
