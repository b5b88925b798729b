package user

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Identity is who a command runs as.
type Identity struct {
	UID  int
	GID  int
	Name string // login name; "" if the container does not know the user
	Home string // absolute; "/" if the container does not know better
	// Groups are the supplementary groups, rising and without repetition.
	// GID is always among them: a process whose primary group is missing
	// here would pass permission bits that deny that group (CVE-2022-36109).
	Groups []int
}

// Resolve finds the identity that spec stands for in the root file system
// root (an O_PATH descriptor), with extra groups by name or number
// (--group-add):
//
//	""             user 0
//	"USER"         group and supplementary groups from the container's files
//	"USER:GROUP"   that group and no supplementary ones
//
// USER and GROUP that consist of digits are numbers, always, even if the
// container has accounts of that name; numbers need not exist there. A missing
// /etc/passwd or /etc/group is an empty one.
func Resolve(root int, spec string, extra []string) (Identity, error) {
	userPart, groupPart, hasGroup := strings.Cut(spec, ":")
	if spec == "" {
		userPart = "0"
	}
	who, err := parseRef("user", userPart)
	if err != nil {
		return Identity{}, err
	}
	refs, err := parseRefs(groupPart, hasGroup, extra)
	if err != nil {
		return Identity{}, err
	}
	id, err := who.account(root)
	if err != nil {
		return Identity{}, err
	}
	member := id.Name
	if hasGroup {
		member = ""
	}
	groups, gids, err := resolveGroups(root, member, refs)
	if err != nil {
		return Identity{}, err
	}
	if hasGroup {
		id.GID = gids[0]
	}
	groups = append(append(groups, gids...), id.GID)
	slices.Sort(groups)
	id.Groups = slices.Compact(groups)
	if len(id.Groups) > maxGroups {
		return Identity{}, errTooManyGroups
	}
	return id, nil
}

// ref is a reference to a user or group: a name or, without one, a number.
type ref struct {
	name string
	id   int
}

// parseRef reads a reference of the caller's.
func parseRef(what, s string) (ref, error) {
	if s == "" {
		return ref{}, syntax(what, s, "is empty")
	}
	if allDigits(s) {
		id, err := parseID(s)
		if err != nil {
			return ref{}, syntax(what, s, "is "+err.Error())
		}
		return ref{id: id}, nil
	}
	if why := badName(s); why != "" {
		return ref{}, syntax(what, s, why)
	}
	return ref{name: s}, nil
}

func parseRefs(group string, hasGroup bool, extra []string) ([]ref, error) {
	if hasGroup {
		extra = append([]string{group}, extra...)
	}
	refs := make([]ref, len(extra))
	for i, s := range extra {
		r, err := parseRef("group", s)
		if err != nil {
			return nil, err
		}
		refs[i] = r
	}
	return refs, nil
}

// maxName is the longest user or group name; useradd(8) allows 256 at most.
const maxName = 256

// badName says what is wrong with a name, "" if nothing is. Names are visible
// ASCII. What some program, somewhere, takes for a number is not a name: were
// it looked up, the image would decide whom "0x0" or "+0" stands for.
func badName(s string) string {
	if len(s) > maxName {
		return "is longer than " + strconv.Itoa(maxName) + " bytes"
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || strings.IndexByte(":,/", c) >= 0 {
			return "contains " + strconv.QuoteToASCII(s[i:i+1])
		}
	}
	if s[0] == '-' || s[0] == '+' {
		return "begins with a sign"
	}
	if looksNumeric(s) {
		return "is not a decimal number"
	}
	return ""
}

// looksNumeric reports whether s, which begins like a number, is one in any
// notation of Go or C: 0x0, 0b1, 1_000, 1e3.
func looksNumeric(s string) bool {
	if s[0] < '0' || s[0] > '9' {
		return false
	}
	_, intErr := strconv.ParseInt(s, 0, 64)
	_, floatErr := strconv.ParseFloat(s, 64)
	return !errors.Is(intErr, strconv.ErrSyntax) || !errors.Is(floatErr, strconv.ErrSyntax)
}

// account looks the user up in /etc/passwd.
func (r ref) account(root int) (Identity, error) {
	id := Identity{UID: r.id, Home: "/"}
	file, err := openFile(root, "/etc/passwd")
	if err != nil {
		return id, err
	}
	defer file.close()
	found, err := FindUser(file, r.name, r.id)
	if err != nil {
		return id, file.explain(err)
	}
	if found == nil {
		if r.name != "" {
			return id, unknown("user", r.name)
		}
		return id, nil
	}
	id.UID, id.GID = found.UID, found.GID
	if badName(found.Name) == "" {
		id.Name = found.Name
	}
	if isHome(found.Home) {
		id.Home = found.Home
	}
	return id, nil
}

// isHome reports whether a home directory can stand in an environment.
func isHome(dir string) bool {
	return strings.HasPrefix(dir, "/") && len(dir) < unix.PathMax && strings.IndexFunc(dir, isControl) < 0
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// resolveGroups returns the groups that list member, and the IDs of refs in
// their order.
func resolveGroups(root int, member string, refs []ref) (memberOf, gids []int, err error) {
	var names []string
	for _, r := range refs {
		if r.name != "" {
			names = append(names, r.name)
		}
	}
	if member == "" && len(names) == 0 {
		return nil, idsOf(refs), nil // all is known: the file stays closed
	}
	file, err := openFile(root, "/etc/group")
	if err != nil {
		return nil, nil, err
	}
	defer file.close()
	memberOf, byName, err := FindGroups(file, member, names)
	if err != nil {
		return nil, nil, file.explain(err)
	}
	for i, r := range refs {
		if r.name == "" {
			continue
		}
		gid, ok := byName[r.name]
		if !ok {
			return nil, nil, unknown("group", r.name)
		}
		refs[i].id = gid
	}
	return memberOf, idsOf(refs), nil
}

func idsOf(refs []ref) []int {
	ids := make([]int, len(refs))
	for i, r := range refs {
		ids[i] = r.id
	}
	return ids
}
