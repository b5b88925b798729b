package safepath

import (
	"strings"

	"golang.org/x/sys/unix"
)

// MkdirAll makes the directory path and its missing parents, each with the
// permission bits mode less the umask, and returns an O_PATH descriptor of it.
// Links on the way, dangling ones too, are followed inside the root; what is
// missing at their end is made there. The caller closes the descriptor, and
// works on it rather than on the path: the path may name something else by now.
func MkdirAll(root int, path string, mode uint32) (int, error) {
	r := request{flags: unix.O_PATH | unix.O_DIRECTORY}
	fd, err := open(root, path, r)
	if err == unix.ENOENT && path != "" {
		r.make, r.dirMode = makeDirs, mode
		// The slash makes the last component a directory like the others.
		fd, err = open(root, path+"/", r)
	}
	return fd, pathError("make directory", path, err)
}

// CreateFile makes sure that path exists, as the place for a bind mount of
// something that is not a directory, and returns an O_PATH descriptor of it.
// A missing file is made empty with mode, missing parents with 0755. What
// exists already is returned unopened, of whatever kind it is.
func CreateFile(root int, path string, mode uint32) (int, error) {
	r := request{flags: unix.O_PATH}
	fd, err := open(root, path, r)
	if err == unix.ENOENT && path != "" {
		r.make, r.mode, r.dirMode = makeFile, mode, 0o755
		fd, err = open(root, path, r)
	}
	return fd, pathError("make file", path, err)
}

// Mkdir makes the directory path; its parent must exist. The last component is
// not followed: a link there, dangling or not, is EEXIST.
func Mkdir(root int, path string, mode uint32) error {
	return inParent("mkdir", root, path, func(dir int, name string) error {
		return unix.Mkdirat(dir, name, mode)
	})
}

// Mknod makes the node path; mode carries the S_IF bits and dev is as made by
// unix.Mkdev. The last component is not followed.
func Mknod(root int, path string, mode uint32, dev uint64) error {
	return inParent("mknod", root, path, func(dir int, name string) error {
		return unix.Mknodat(dir, name, mode, int(dev))
	})
}

// Symlink makes the link path that reads target. The target is stored, not
// looked at.
func Symlink(root int, target, path string) error {
	return inParent("symlink", root, path, func(dir int, name string) error {
		return unix.Symlinkat(target, dir, name)
	})
}

// Remove removes the link, file, node or empty directory path. The last
// component is not followed.
func Remove(root int, path string) error {
	return inParent("remove", root, path, func(dir int, name string) error {
		err := unix.Unlinkat(dir, name, 0)
		if err == unix.EISDIR || err == unix.EPERM {
			if e := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); e != unix.ENOTDIR {
				err = e
			}
		}
		return err
	})
}

// Parent opens the directory that holds the last component of path (O_PATH)
// and returns it with that component, for use with any of the *at calls that
// do not follow links. A path without a proper last component ("/", "a/..")
// is EINVAL.
func Parent(root int, path string) (dir int, name string, err error) {
	dir, name, err = parent(root, path)
	return dir, name, pathError("open parent", path, err)
}

func parent(root int, path string) (int, string, error) {
	if err := checkPath(path); err != nil {
		return -1, "", err
	}
	trimmed := strings.TrimRight(path, "/")
	i := strings.LastIndexByte(trimmed, '/')
	before, name := trimmed[:i+1], trimmed[i+1:]
	if name == "" || name == "." || name == ".." {
		return -1, "", unix.EINVAL
	}
	if before == "" {
		before = "."
	}
	dir, err := open(root, before, request{flags: unix.O_PATH | unix.O_DIRECTORY})
	return dir, name, err
}

func inParent(op string, root int, path string, do func(dir int, name string) error) error {
	dir, name, err := parent(root, path)
	if err != nil {
		return pathError(op, path, err)
	}
	defer unix.Close(dir)
	return pathError(op, path, do(dir, name))
}
