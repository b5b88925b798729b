// Package devices states which device nodes a cgroup may use, and enforces it: as lines for the v1 devices
// controller, or as a small eBPF program on cgroup v2, which has no such controller.
//
// A [Policy] is a list of what is allowed; all else is denied. v1 and v2 both can say exactly that, and no
// order of rules has to be kept in mind.
package devices

import (
	"fmt"
	"strconv"
	"strings"
)

// Any stands for every major or minor number.
const Any int64 = -1

// Access is a set of ways to use a device node. The bits are those of BPF_DEVCG_ACC_*, bpf(2).
type Access uint8

const (
	Mknod Access = 1 << iota // m: create the node
	Read                     // r
	Write                    // w

	All = Mknod | Read | Write
)

// Rule allows devices.
type Rule struct {
	Type   byte // 'c' character, 'b' block, 'a' both
	Major  int64
	Minor  int64
	Access Access
}

// Policy is what a cgroup may use. The zero value denies every device.
type Policy struct {
	AllowAll bool // no restriction; Allow is not looked at
	Allow    []Rule
}

// Default is what containers get: the nodes of their /dev. Any node may be made, by who has CAP_MKNOD, as in
// Docker and runc; opening what was made is denied. Without that the container's own /dev would have to be made
// of the host's nodes, whose modes and owners root of a container can change.
func Default() Policy {
	rw := Read | Write
	return Policy{Allow: []Rule{
		{'c', Any, Any, Mknod},
		{'b', Any, Any, Mknod},
		{'c', 1, 3, rw},     // null
		{'c', 1, 5, rw},     // zero
		{'c', 1, 7, rw},     // full
		{'c', 1, 8, rw},     // random
		{'c', 1, 9, rw},     // urandom
		{'c', 5, 0, rw},     // tty
		{'c', 5, 2, rw},     // ptmx
		{'c', 136, Any, rw}, // pts/*
	}}
}

// With returns a policy that allows more rules.
func (p Policy) With(more ...Rule) Policy {
	return Policy{p.AllowAll, append(p.Allow[:len(p.Allow):len(p.Allow)], more...)}
}

// Check reports a rule that makes no sense, before the kernel sees it.
func (p Policy) Check() error {
	for _, r := range p.Allow {
		switch {
		case r.Type != 'a' && r.Type != 'b' && r.Type != 'c':
			return fmt.Errorf("device type %q is not one of a, b, c", r.Type)
		case r.Access == 0 || r.Access&^All != 0:
			return fmt.Errorf("device %s: access must be some of r, w, m", r)
		case r.Major < Any || r.Major >= 1<<12 || r.Minor < Any || r.Minor >= 1<<20:
			return fmt.Errorf("device %s: no such number; a major is at most 4095, a minor 1048575", r)
		}
	}
	return nil
}

// Lines is the policy as the v1 files devices.deny (first line) and devices.allow (the others) take it,
// each in a write of its own. Documentation/admin-guide/cgroup-v1/devices.rst.
func (p Policy) Lines() (deny string, allow []string) {
	if p.AllowAll {
		return "", []string{"a"}
	}
	for _, r := range p.Allow {
		if r.Type != 'a' {
			allow = append(allow, r.String())
			continue
		}
		// The kernel takes "a" for "everything", whatever numbers follow.
		for _, r.Type = range []byte("bc") {
			allow = append(allow, r.String())
		}
	}
	return "a", allow
}

// String is the form of the v1 files and of docker's --device-cgroup-rule: "c 136:* rw".
func (r Rule) String() string {
	return string(r.Type) + " " + number(r.Major) + ":" + number(r.Minor) + " " + r.Access.String()
}

func (a Access) String() string {
	var b strings.Builder
	for _, v := range []struct {
		bit  Access
		char byte
	}{{Read, 'r'}, {Write, 'w'}, {Mknod, 'm'}} {
		if a&v.bit != 0 {
			b.WriteByte(v.char)
		}
	}
	return b.String()
}

func number(n int64) string {
	if n == Any {
		return "*"
	}
	return strconv.FormatInt(n, 10)
}

// Parse reads the form that String writes.
func Parse(s string) (Rule, error) {
	bad := func(why string) (Rule, error) {
		return Rule{}, fmt.Errorf("device rule %q: %s; the form is: c 10:200 rwm", s, why)
	}
	f := strings.Fields(s)
	if len(f) != 3 || len(f[0]) != 1 {
		return bad("not type, numbers and access")
	}
	major, minor, ok := strings.Cut(f[1], ":")
	if !ok {
		return bad("no colon in " + f[1])
	}
	r := Rule{Type: f[0][0]}
	var err error
	if r.Major, err = parseNumber(major); err != nil {
		return bad(major + " is no number")
	}
	if r.Minor, err = parseNumber(minor); err != nil {
		return bad(minor + " is no number")
	}
	if r.Access, err = ParseAccess(f[2]); err != nil {
		return bad(err.Error())
	}
	if err := (Policy{Allow: []Rule{r}}).Check(); err != nil {
		return bad(err.Error())
	}
	return r, nil
}

// ParseAccess reads some of the letters r, w and m.
func ParseAccess(s string) (Access, error) {
	var a Access
	for _, c := range s {
		switch c {
		case 'r':
			a |= Read
		case 'w':
			a |= Write
		case 'm':
			a |= Mknod
		default:
			return 0, fmt.Errorf("access %q is not made of r, w and m", s)
		}
	}
	if a == 0 {
		return 0, fmt.Errorf("access is empty")
	}
	return a, nil
}

func parseNumber(s string) (int64, error) {
	if s == "*" {
		return Any, nil
	}
	n, err := strconv.ParseUint(s, 10, 31)
	return int64(n), err
}
