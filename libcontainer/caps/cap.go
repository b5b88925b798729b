package caps

import (
	"math/bits"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Cap is a capability by its number in linux/capability.h.
type Cap uint8

// Set is a set of capabilities, bit n standing for Cap n.
type Set uint64

// Default is what a container's root holds unless told otherwise.
const Default Set = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER |
	1<<unix.CAP_FSETID | 1<<unix.CAP_KILL | 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SETFCAP |
	1<<unix.CAP_SETGID | 1<<unix.CAP_SETPCAP | 1<<unix.CAP_SETUID | 1<<unix.CAP_SYS_CHROOT

// Docker is the wider default of Docker, for installations that ask for it.
// NET_RAW forges packets, MKNOD makes device nodes, AUDIT_WRITE writes to the
// host's audit log: few images need them.
const Docker = Default | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_MKNOD | 1<<unix.CAP_AUDIT_WRITE

// names are the capabilities by number, without "CAP_", as of Linux 6.18.
var names = [...]string{
	unix.CAP_CHOWN:              "CHOWN",
	unix.CAP_DAC_OVERRIDE:       "DAC_OVERRIDE",
	unix.CAP_DAC_READ_SEARCH:    "DAC_READ_SEARCH",
	unix.CAP_FOWNER:             "FOWNER",
	unix.CAP_FSETID:             "FSETID",
	unix.CAP_KILL:               "KILL",
	unix.CAP_SETGID:             "SETGID",
	unix.CAP_SETUID:             "SETUID",
	unix.CAP_SETPCAP:            "SETPCAP",
	unix.CAP_LINUX_IMMUTABLE:    "LINUX_IMMUTABLE",
	unix.CAP_NET_BIND_SERVICE:   "NET_BIND_SERVICE",
	unix.CAP_NET_BROADCAST:      "NET_BROADCAST",
	unix.CAP_NET_ADMIN:          "NET_ADMIN",
	unix.CAP_NET_RAW:            "NET_RAW",
	unix.CAP_IPC_LOCK:           "IPC_LOCK",
	unix.CAP_IPC_OWNER:          "IPC_OWNER",
	unix.CAP_SYS_MODULE:         "SYS_MODULE",
	unix.CAP_SYS_RAWIO:          "SYS_RAWIO",
	unix.CAP_SYS_CHROOT:         "SYS_CHROOT",
	unix.CAP_SYS_PTRACE:         "SYS_PTRACE",
	unix.CAP_SYS_PACCT:          "SYS_PACCT",
	unix.CAP_SYS_ADMIN:          "SYS_ADMIN",
	unix.CAP_SYS_BOOT:           "SYS_BOOT",
	unix.CAP_SYS_NICE:           "SYS_NICE",
	unix.CAP_SYS_RESOURCE:       "SYS_RESOURCE",
	unix.CAP_SYS_TIME:           "SYS_TIME",
	unix.CAP_SYS_TTY_CONFIG:     "SYS_TTY_CONFIG",
	unix.CAP_MKNOD:              "MKNOD",
	unix.CAP_LEASE:              "LEASE",
	unix.CAP_AUDIT_WRITE:        "AUDIT_WRITE",
	unix.CAP_AUDIT_CONTROL:      "AUDIT_CONTROL",
	unix.CAP_SETFCAP:            "SETFCAP",
	unix.CAP_MAC_OVERRIDE:       "MAC_OVERRIDE",
	unix.CAP_MAC_ADMIN:          "MAC_ADMIN",
	unix.CAP_SYSLOG:             "SYSLOG",
	unix.CAP_WAKE_ALARM:         "WAKE_ALARM",
	unix.CAP_BLOCK_SUSPEND:      "BLOCK_SUSPEND",
	unix.CAP_AUDIT_READ:         "AUDIT_READ",
	unix.CAP_PERFMON:            "PERFMON",
	unix.CAP_BPF:                "BPF",
	unix.CAP_CHECKPOINT_RESTORE: "CHECKPOINT_RESTORE",
}

// Of returns the set of the given capabilities.
func Of(list ...Cap) Set {
	var s Set
	for _, c := range list {
		s |= 1 << c
	}
	return s
}

// Has reports whether c is in s.
func (s Set) Has(c Cap) bool { return s>>c&1 != 0 }

// List returns the capabilities of s by rising number.
func (s Set) List() []Cap {
	list := make([]Cap, 0, bits.OnesCount64(uint64(s)))
	for rest := s; rest != 0; rest &= rest - 1 {
		list = append(list, Cap(bits.TrailingZeros64(uint64(rest))))
	}
	return list
}

// Names returns the names of s, as Cap.String gives them.
func (s Set) Names() []string {
	var list []string
	for _, c := range s.List() {
		list = append(list, c.String())
	}
	return list
}

// String returns the names separated by spaces.
func (s Set) String() string { return strings.Join(s.Names(), " ") }

// String returns the name with its prefix, "CAP_CHOWN"; "CAP_41" for a number
// that had no name when this was written.
func (c Cap) String() string {
	if int(c) < len(names) {
		return "CAP_" + names[c]
	}
	return "CAP_" + strconv.Itoa(int(c))
}

// Parse finds a capability by its name, in either case and with or without
// "CAP_". The error is an [UnknownError].
func Parse(name string) (Cap, error) {
	plain := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	for i, n := range names {
		if n == plain {
			return Cap(i), nil
		}
	}
	return 0, UnknownError{name}
}

// ParseSet parses each name. The error is an [UnknownError] with all the names
// that are none.
func ParseSet(list []string) (Set, error) {
	var s Set
	var unknown UnknownError
	for _, name := range list {
		c, err := Parse(name)
		if err != nil {
			unknown = append(unknown, name)
			continue
		}
		s |= 1 << c
	}
	if len(unknown) > 0 {
		return 0, unknown
	}
	return s, nil
}

// UnknownError lists names that are no capability's.
type UnknownError []string

func (e UnknownError) Error() string {
	return "unknown capability " + quoteAll(e)
}

// UnavailableError is the part of a request that cannot be granted, because
// the kernel lacks it or the engine itself runs without it.
type UnavailableError Set

func (e UnavailableError) Error() string {
	return "capability not available to the engine: " + strings.Join(Set(e).Names(), ", ")
}

func quoteAll(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = strconv.Quote(s)
	}
	return strings.Join(quoted, ", ")
}
