// Package user finds out who a container's command runs as: it resolves what
// docker run --user takes ("name", "uid", "name:group", "uid:gid", …) against
// the /etc/passwd and /etc/group of the container's own root file system.
//
// Both files come from the image and are hostile. [Resolve] opens them through
// package safepath, so that their links end inside the root; it reads regular
// files only, up to [MaxFile] bytes and for no longer than [MaxTime]; and
// numbers in them and in the request are decimal digits or nothing. There is no
// value by which a wrong number turns into 0: it is an error, never a default.
//
// The layer below, [FindUser] and [FindGroups], reads from an io.Reader and
// knows nothing of files. The setup process links this package, so it does
// without fmt, os and os/user; the last would also consult the host's NSS.
package user
