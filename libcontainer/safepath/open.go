package safepath

import (
	"io/fs"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxRetries is how often a lookup that raced with a rename is begun anew.
// openat2 answers EAGAIN whenever any rename or mount happened on the machine
// during a lookup with "..", so a few retries are ordinary.
const maxRetries = 64

// maxLinks is the number of symbolic links one lookup follows; the kernel's
// own limit (MAXSYMLINKS, path_resolution(7)).
const maxLinks = 40

// request is one lookup: how to open the last component, and what to do with
// components that are missing or lead outside.
type request struct {
	flags   int    // open(2) flags for the last component; O_CLOEXEC is implied
	mode    uint32 // permission bits for O_CREAT
	beneath bool   // refuse to leave the root, instead of treating it as "/"
	make    missing
	dirMode uint32 // permission bits for directories made on the way
}

// missing says what the walk makes of components that do not exist.
type missing int

const (
	makeNothing missing = iota
	makeDirs            // every missing component becomes a directory
	makeFile            // the last becomes an empty file, those before it directories
)

// OpenRoot opens dir, a path of the engine's own, as a root for this package.
// The last component may not be a symbolic link.
func OpenRoot(dir string) (int, error) {
	fd, err := openat(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	return fd, pathError("open root", dir, err)
}

// Open opens path as if root were "/". The flags and mode are those of
// open(2); mode counts only with O_CREAT.
//
// Opening has side effects on FIFOs and devices and can block: for an object
// of unknown type open it with O_PATH, look at it with fstat, and [Reopen].
func Open(root int, path string, flags int, mode uint32) (int, error) {
	fd, err := open(root, path, request{flags: flags, mode: mode})
	return fd, pathError("open", path, err)
}

// OpenBeneath opens path below root. Absolute paths, absolute links and ".."
// that climbs above root are EXDEV.
func OpenBeneath(root int, path string, flags int, mode uint32) (int, error) {
	fd, err := open(root, path, request{flags: flags, mode: mode, beneath: true})
	return fd, pathError("open beneath", path, err)
}

func open(root int, path string, r request) (int, error) {
	if err := checkPath(path); err != nil {
		return -1, err
	}
	r.flags |= unix.O_CLOEXEC
	if r.make == makeNothing && haveOpenat2() {
		fd, err := kernelOpen(root, path, r)
		if err != unix.EAGAIN {
			return fd, err
		}
	}
	return walkOpen(root, path, r)
}

func checkPath(path string) error {
	switch {
	case path == "":
		return unix.ENOENT
	case strings.IndexByte(path, 0) >= 0:
		return unix.EINVAL
	case len(path) >= unix.PathMax:
		return unix.ENAMETOOLONG
	}
	return nil
}

// kernelOpen resolves by openat2. EAGAIN means that renames kept interfering.
func kernelOpen(root int, path string, r request) (int, error) {
	how := unix.OpenHow{
		Flags: uint64(r.flags),
		// IN_ROOT implies NO_MAGICLINKS today, but openat2(2) says not to
		// count on it.
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if r.flags&unix.O_CREAT != 0 {
		how.Mode = uint64(r.mode) // EINVAL without O_CREAT
	}
	if r.beneath {
		how.Resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS
	}
	for range maxRetries {
		fd, err := unix.Openat2(root, path, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// walkOpen resolves by the walk, again from the start when it lost a race.
func walkOpen(root int, path string, r request) (int, error) {
	for range maxRetries {
		fd, err := walkOnce(root, path, r)
		if err != unix.EAGAIN {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// haveOpenat2 reports whether to use openat2. Any failure of a lookup that
// cannot fail means no: ENOSYS before Linux 5.6, EPERM under seccomp filters
// older than the call. Tests replace it to force the walk.
var haveOpenat2 = sync.OnceValue(func() bool {
	fd, err := unix.Openat2(unix.AT_FDCWD, ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
})

// openat is openat(2), close-on-exec and again after a signal.
func openat(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}
