package safepath

import (
	"io/fs"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// procRootInode is the inode number of the root directory of every procfs
// (PROC_ROOT_INO in include/linux/proc_ns.h).
const procRootInode = 1

// Reopen opens the very object that fd refers to again, with other flags: the
// step from looking at an O_PATH descriptor to reading it. O_CREAT and
// O_NOFOLLOW make no sense here and are EINVAL.
//
// What is not a directory is opened through /proc/thread-self/fd. A container
// may have put anything at /proc, so the directory must be the root of a real
// procfs, and the result must be the inode we began with; otherwise EXDEV.
func Reopen(fd, flags int) (int, error) {
	name := strconv.Itoa(fd)
	if flags&(unix.O_CREAT|unix.O_NOFOLLOW) != 0 {
		return -1, reopenError(name, unix.EINVAL)
	}
	var before unix.Stat_t
	if err := unix.Fstat(fd, &before); err != nil {
		return -1, reopenError(name, err)
	}
	if before.Mode&unix.S_IFMT == unix.S_IFDIR {
		again, err := openat(fd, ".", flags|unix.O_DIRECTORY, 0)
		return again, reopenError(name, err)
	}
	// thread-self is this thread's view of the descriptors only as long as
	// we stay on it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	dir, err := openFdDir()
	if err != nil {
		return -1, reopenError(name, err)
	}
	defer unix.Close(dir)
	again, err := openat(dir, name, flags, 0)
	if err != nil {
		return -1, reopenError(name, err)
	}
	var after unix.Stat_t
	if err = unix.Fstat(again, &after); err == nil && !sameInode(&before, &after) {
		err = unix.EXDEV
	}
	if err != nil {
		unix.Close(again)
		return -1, reopenError(name, err)
	}
	return again, nil
}

// openFdDir opens the directory of the calling thread's descriptors in a
// procfs that was checked to be one.
func openFdDir() (int, error) {
	proc, err := OpenProc()
	if err != nil {
		return -1, err
	}
	defer unix.Close(proc)
	dir, err := openProcDir(proc, "thread-self/fd")
	if err == unix.ENOENT { // before Linux 3.17
		dir, err = openProcDir(proc, "self/task/"+strconv.Itoa(unix.Gettid())+"/fd")
	}
	return dir, err
}

// openProcDir opens a directory of the procfs proc, refusing to pass through
// anything mounted over it.
func openProcDir(proc int, path string) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY
	if haveOpenat2() {
		return unix.Openat2(proc, path, &unix.OpenHow{
			Flags:   flags | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS,
		})
	}
	dir, err := openat(proc, path, flags, 0)
	if err != nil {
		return -1, err
	}
	var want, got unix.Stat_t
	if err = unix.Fstat(proc, &want); err == nil {
		err = unix.Fstat(dir, &got)
	}
	if err == nil && got.Dev != want.Dev {
		err = unix.EXDEV
	}
	if err != nil {
		unix.Close(dir)
		return -1, err
	}
	return dir, nil
}

// OpenProc opens /proc (O_PATH) and makes sure that it is the root of a procfs
// and not a directory of somebody's making; otherwise EXDEV. The error is a
// bare errno.
func OpenProc() (int, error) {
	fd, err := openat(unix.AT_FDCWD, "/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	var fsys unix.Statfs_t
	var st unix.Stat_t
	if err = unix.Fstatfs(fd, &fsys); err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err == nil && (fsys.Type != unix.PROC_SUPER_MAGIC || st.Ino != procRootInode) {
		err = unix.EXDEV
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sameInode(a, b *unix.Stat_t) bool {
	return a.Dev == b.Dev && a.Ino == b.Ino && a.Mode&unix.S_IFMT == b.Mode&unix.S_IFMT
}

func reopenError(name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: "reopen descriptor", Path: name, Err: err}
}
