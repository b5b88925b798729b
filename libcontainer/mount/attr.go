package mount

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// Attr is a set of per-mount flags, the MOUNT_ATTR_… of mount_setattr(2).
type Attr uint64

// The flags that a container's mount can have.
const (
	ReadOnly Attr = unix.MOUNT_ATTR_RDONLY
	NoSuid   Attr = unix.MOUNT_ATTR_NOSUID
	NoDev    Attr = unix.MOUNT_ATTR_NODEV
	NoExec   Attr = unix.MOUNT_ATTR_NOEXEC
	NoAtime  Attr = unix.MOUNT_ATTR_NOATIME
)

// attrNames pairs the flags with their names in mount(8) and with the flags
// of mount(2).
var attrNames = []struct {
	attr   Attr
	legacy uintptr
	name   string
}{
	{ReadOnly, unix.MS_RDONLY, "ro"},
	{NoSuid, unix.MS_NOSUID, "nosuid"},
	{NoDev, unix.MS_NODEV, "nodev"},
	{NoExec, unix.MS_NOEXEC, "noexec"},
	{NoAtime, unix.MS_NOATIME, "noatime"},
}

// String lists the flags as mount(8) does: "ro,nosuid".
func (a Attr) String() string {
	var names []string
	for _, n := range attrNames {
		if a&n.attr != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ",")
}

// MarshalText makes the flags readable in JSON.
func (a Attr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (a *Attr) UnmarshalText(text []byte) error {
	*a = 0
	for _, name := range strings.Split(string(text), ",") {
		flag, ok := AttrByName(name)
		if !ok && name != "" {
			return errors.New("unknown mount flag " + name)
		}
		*a |= flag
	}
	return nil
}

// AttrByName is the flag called name in mount(8), such as "nosuid".
func AttrByName(name string) (Attr, bool) {
	for _, n := range attrNames {
		if n.name == name {
			return n.attr, true
		}
	}
	return 0, false
}

// legacy translates to the flags of mount(2).
func (a Attr) legacy() uintptr {
	var flags uintptr
	for _, n := range attrNames {
		if a&n.attr != 0 {
			flags |= n.legacy
		}
	}
	return flags
}

// kernel is the change that mount_setattr makes: which bits to clear first and
// which to set. Access times are a field of several bits and not a flag, so the
// whole field is cleared to set one value of it.
func (a Attr) kernel() (set, clear uint64) {
	if a&NoAtime != 0 {
		clear = unix.MOUNT_ATTR__ATIME
	}
	return uint64(a), clear
}

// Propagation says whether later mounts travel between a mount and its peers
// (mount_namespaces(7)). The zero value is Private.
type Propagation string

// The kinds of propagation. The R variants go for everything mounted below.
const (
	Private  Propagation = ""
	Shared   Propagation = "shared"
	Slave    Propagation = "slave"
	RShared  Propagation = "rshared"
	RSlave   Propagation = "rslave"
	RPrivate Propagation = "rprivate"
)

// ErrPropagation is the error for a Propagation that is none of the constants.
var ErrPropagation = errors.New("unknown mount propagation")

// flags is the propagation as flags of mount(2).
func (p Propagation) flags() (flag uint64, recursive bool, err error) {
	recursive = strings.HasPrefix(string(p), "r")
	switch strings.TrimPrefix(string(p), "r") {
	case "", "private":
		return unix.MS_PRIVATE, recursive, nil
	case "shared":
		return unix.MS_SHARED, recursive, nil
	case "slave":
		return unix.MS_SLAVE, recursive, nil
	}
	return 0, false, ErrPropagation
}
