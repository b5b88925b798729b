package initproc

import (
	"golang.org/x/sys/unix"

	"berth/libcontainer/safepath"
)

// procfs is the host's /proc, opened and verified before any mount of the
// container exists. Files under self are init's own, those under sys belong to
// the namespaces init is in, whichever instance of procfs shows them; the
// container's instance, and what its image or volumes may have put there, is
// never used (CVE-2019-16884, CVE-2025-52881).
type procfs struct{ fd int }

func openProcfs() (procfs, error) {
	fd, err := safepath.OpenProc()
	return procfs{fd}, err
}

// open opens a file and makes sure that it is one of procfs, and that nothing
// was mounted on the way.
func (p procfs) open(path string, flags int) (int, error) {
	flags |= unix.O_CLOEXEC | unix.O_NOCTTY
	fd, err := unix.Openat2(p.fd, path, &unix.OpenHow{
		Flags:   uint64(flags),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err == unix.ENOSYS || err == unix.EPERM {
		fd, err = unix.Openat(p.fd, path, flags|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return -1, err
	}
	var fs unix.Statfs_t
	if err = unix.Fstatfs(fd, &fs); err == nil && fs.Type != unix.PROC_SUPER_MAGIC {
		err = unix.EXDEV
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// write writes a value in one call, as files of procfs want it.
func (p procfs) write(path, value string) error {
	fd, err := p.open(path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}
