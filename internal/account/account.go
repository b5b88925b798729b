// Package account names the users and groups the engine runs as, and looks them
// up. Creating them is the package manager's or "berth up"'s affair.
package account

import (
	"os/user"
	"slices"
	"strconv"

	"berth/internal/fault"
)

const (
	// People holds those allowed to use the engine: equivalent to root.
	People = "berth"
	// Engine holds the engine's own users; backends' sockets belong to it.
	Engine = "berth-engine"

	Apid   = "berth-apid"
	Imaged = "berth-imaged"
	Netd   = "berth-netd"
)

// Users are the engine's own, besides root. Each is a member of Engine.
var Users = []string{Apid, Imaged, Netd}

// ID is a user as the kernel knows it.
type ID struct {
	UID, GID int
	Groups   []int // supplementary, by /etc/group
}

// User looks up one of the engine's users.
func User(name string) (ID, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return ID{}, missing("user", name)
	}
	var id ID
	if id.UID, err = strconv.Atoi(u.Uid); err != nil {
		return ID{}, err
	}
	if id.GID, err = strconv.Atoi(u.Gid); err != nil {
		return ID{}, err
	}
	names, err := u.GroupIds()
	if err != nil {
		return ID{}, err
	}
	for _, g := range names {
		if n, err := strconv.Atoi(g); err == nil && !slices.Contains(id.Groups, n) {
			id.Groups = append(id.Groups, n)
		}
	}
	return id, nil
}

// Group looks up one of the engine's groups.
func Group(name string) (gid int, err error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, missing("group", name)
	}
	return strconv.Atoi(g.Gid)
}

func missing(what, name string) error {
	return fault.FailedPrecondition.Errorf("ACCOUNT_MISSING", "%s %s does not exist", what, name).
		With(what, name).
		Hint("start the engine with \"berth up\", which creates its users and groups, or create them: " +
			"groupadd -r berth; groupadd -r berth-engine; for u in apid imaged netd; do useradd -r -M -d /nonexistent -s /usr/sbin/nologin -g berth-engine berth-$u; done")
}
