package safepath

import "golang.org/x/sys/unix"

// Stat describes what path leads to; links are followed inside the root.
func Stat(root int, path string) (unix.Stat_t, error) {
	return stat(root, path, unix.O_PATH)
}

// Lstat describes path itself, be it a link.
func Lstat(root int, path string) (unix.Stat_t, error) {
	return stat(root, path, unix.O_PATH|unix.O_NOFOLLOW)
}

func stat(root int, path string, flags int) (st unix.Stat_t, err error) {
	fd, err := open(root, path, request{flags: flags})
	if err != nil {
		return st, pathError("stat", path, err)
	}
	defer unix.Close(fd)
	return st, pathError("stat", path, unix.Fstat(fd, &st))
}

// Readlink returns the text of the link path, as stored: it means nothing
// until it is resolved inside the same root. What is no link is EINVAL.
func Readlink(root int, path string) (string, error) {
	fd, err := open(root, path, request{flags: unix.O_PATH | unix.O_NOFOLLOW})
	if err != nil {
		return "", pathError("readlink", path, err)
	}
	defer unix.Close(fd)
	if kind, err := kindOf(fd); err != nil || kind != unix.S_IFLNK {
		if err == nil {
			err = unix.EINVAL
		}
		return "", pathError("readlink", path, err)
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", pathError("readlink", path, err)
	}
	return string(buf[:n]), nil
}
