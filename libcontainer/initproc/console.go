package initproc

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/libcontainer/mount"
	"berth/libcontainer/safepath"
)

// The terminal is made in the container's own devpts and its ends are only
// ever handled as descriptors: there is no moment at which somebody could put
// another file under the name of the slave (CVE-2025-52565).

var errNotPtmx = errors.New("the container has no devpts with a ptmx")

// console opens a terminal and makes it descriptors 0 to 2 and /dev/console.
func (r *runner) console() error {
	master, slave, err := r.openTerminal()
	if err != nil {
		return err
	}
	r.master = master
	if r.apart {
		r.std = [3]int{slave, slave, slave}
		return nil
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return err
		}
	}
	if r.setup.Exec {
		return nil // /dev/console belongs to the first process
	}
	target, err := safepath.CreateFile(r.rootFD, "/dev/console", 0o600)
	if err != nil {
		return bare(err)
	}
	defer unix.Close(target)
	return r.copyTo(slave, target, mount.NoSuid|mount.NoExec)
}

// openTerminal makes a pair in the container's devpts.
func (r *runner) openTerminal() (master, slave int, err error) {
	pts := r.devpts
	if pts < 0 {
		if pts, err = safepath.Open(r.rootFD, "/dev/pts", unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return -1, -1, err
		}
	}
	master, err = unix.Openat(pts, "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, -1, err
	}
	if !isPty(master, 5, 2) {
		return -1, -1, errNotPtmx
	}
	if err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, -1, err
	}
	size := r.setup.Command.Terminal
	if err = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols}); err != nil {
		return -1, -1, err
	}
	slave, err = r.openSlave(pts, master)
	return master, slave, err
}

func (r *runner) openSlave(pts, master int) (int, error) {
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	if r.setup.Force&ForcePtsPath == 0 {
		fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, flags)
		if errno == 0 {
			return int(fd), nil
		}
		if errno != unix.EINVAL && errno != unix.ENOTTY {
			return -1, errno
		}
	}
	// Before Linux 4.13: by name, then looked at closely.
	n, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err != nil {
		return -1, err
	}
	slave, err := unix.Openat(pts, strconv.Itoa(int(n)), flags|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	// UNIX98 slaves are majors 136 to 143, 256 minors each.
	if !isPty(slave, 136+n/256, n%256) {
		unix.Close(slave)
		return -1, errNotPtmx
	}
	return slave, nil
}

// isPty reports whether fd is the given device and lives in a devpts.
func isPty(fd int, major, minor uint32) bool {
	var fs unix.Statfs_t
	var st unix.Stat_t
	return unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.DEVPTS_SUPER_MAGIC &&
		unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR &&
		uint64(st.Rdev) == unix.Mkdev(major, minor)
}
