package user

import (
	"bufio"
	"io"
	"strconv"
	"strings"
)

// Limits on what is read from a container's files. A file beyond them is
// refused whole, for half a list of groups is worse than none.
const (
	maxLine   = 256 << 10 // bytes; a group with some 20,000 members
	maxGroups = 65536     // NGROUPS_MAX, setgroups(2)
)

// maxID is the largest user or group ID accepted. IDs are 32 bits in the
// kernel, but -1 means "no change" to setresuid(2), and programs that keep
// them in an int turn the upper half negative.
const maxID = 1<<31 - 1

// Account is the part of a passwd(5) entry that matters here.
type Account struct {
	Name string
	UID  int
	GID  int
	Home string
}

// FindUser returns the first entry of a passwd file with the given name, or,
// if name is "", with the given uid; nil if there is none. Entries that are not
// the one looked for may be as malformed as they like, the one looked for may
// not.
func FindUser(passwd io.Reader, name string, uid int) (*Account, error) {
	var found *Account
	err := eachLine(passwd, func(line string) error {
		f := strings.Split(line, ":")
		if len(f) < 4 || found != nil {
			return nil
		}
		id, idErr := parseID(f[2])
		if name != "" && f[0] != name || name == "" && (idErr != nil || id != uid) {
			return nil
		}
		if idErr != nil {
			return malformed("user", f[0], f[2])
		}
		gid, err := parseID(f[3])
		if err != nil {
			return malformed("group", f[0], f[3])
		}
		found = &Account{Name: f[0], UID: id, GID: gid}
		if len(f) > 5 {
			found.Home = f[5]
		}
		return nil
	})
	return found, err
}

// FindGroups reads a group file once. It returns the IDs of all groups that
// list member ("" for none), and by name the IDs of those named.
func FindGroups(group io.Reader, member string, names []string) (memberOf []int, byName map[string]int, err error) {
	byName = make(map[string]int, len(names))
	wanted := make(map[string]bool, len(names))
	for _, name := range names {
		wanted[name] = true
	}
	err = eachLine(group, func(line string) error {
		f := strings.Split(line, ":")
		if len(f) < 3 {
			return nil
		}
		_, seen := byName[f[0]]
		named := wanted[f[0]] && !seen
		isMember := member != "" && len(f) > 3 && lists(f[3], member)
		if !named && !isMember {
			return nil
		}
		gid, err := parseID(f[2])
		if err != nil {
			return malformed("group", f[0], f[2])
		}
		if named {
			byName[f[0]] = gid
		}
		if isMember {
			memberOf = append(memberOf, gid)
		}
		if len(memberOf) > maxGroups {
			return errTooManyGroups
		}
		return nil
	})
	return memberOf, byName, err
}

// lists reports whether a list with commas contains member.
func lists(members, member string) bool {
	for m := range strings.SplitSeq(members, ",") {
		if m == member {
			return true
		}
	}
	return false
}

// eachLine calls do with every line that is not blank, a comment, or an entry
// that only NSS understands ("+", "-").
func eachLine(r io.Reader, do func(line string) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	for lines.Scan() {
		line := strings.TrimSuffix(lines.Text(), "\r")
		if line == "" || line[0] == '#' || line[0] == '+' || line[0] == '-' {
			continue
		}
		if err := do(line); err != nil {
			return err
		}
	}
	if lines.Err() == bufio.ErrTooLong {
		return errLongLine
	}
	return lines.Err()
}

// parseID reads an ID: ASCII digits, no sign, no blank, no leading zero (is
// 010 ten or eight?), not above maxID.
func parseID(s string) (int, error) {
	if !allDigits(s) || len(s) > 1 && s[0] == '0' {
		return 0, errNoID
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > maxID {
		return 0, errRange
	}
	return int(n), nil
}

func allDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
