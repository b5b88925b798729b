package cgroup

import (
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// dir is an open directory of a cgroup file system, and the base of all access to it: files are opened relative
// to fd, so that nothing mounted over the path later can divert a write. path is for messages.
type dir struct {
	fd   int
	path string
}

// Super block magics, statfs(2).
const (
	cgroup1Magic = 0x27e0eb
	cgroup2Magic = 0x63677270
)

// openDir opens an absolute path and makes sure that it is a cgroup file system of the version expected.
func openDir(path string, v2 bool) (dir, error) {
	fd, err := retryInt(func() (int, error) {
		return unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return dir{}, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Statfs_t
	err = retry(func() error { return unix.Fstatfs(fd, &st) })
	want := int64(cgroup1Magic)
	if v2 {
		want = cgroup2Magic
	}
	if err == nil && int64(st.Type) != want {
		err = unix.ESTALE // another file system was mounted over it
	}
	if err != nil {
		unix.Close(fd)
		return dir{}, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return dir{fd, path}, nil
}

func (d dir) close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
	}
}

// sub opens a directory below d.
func (d dir) sub(name string) (dir, error) {
	fd, err := d.open(name, unix.O_PATH|unix.O_DIRECTORY)
	return dir{fd, d.path + "/" + name}, err
}

func (d dir) open(name string, flags int) (int, error) {
	fd, err := retryInt(func() (int, error) {
		return unix.Openat(d.fd, name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	})
	if err != nil {
		return -1, d.fail("open", name, err)
	}
	return fd, nil
}

// write puts value into a file in one write(2), as cgroup files want it.
func (d dir) write(name, value string) error {
	fd, err := d.open(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := retry(func() error { _, err := unix.Write(fd, []byte(value)); return err }); err != nil {
		return d.fail("write "+value+" to", name, err)
	}
	return nil
}

// read returns a file's content, at most 4 MiB of it.
func (d dir) read(name string) ([]byte, error) {
	fd, err := d.open(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, 4096)
	for len(buf) < 4<<20 {
		if len(buf) == cap(buf) {
			buf = append(buf, make([]byte, len(buf))...)[:len(buf)]
		}
		n, err := retryInt(func() (int, error) { return unix.Read(fd, buf[len(buf):cap(buf)]) })
		if err != nil {
			return nil, d.fail("read", name, err)
		}
		if n == 0 {
			break
		}
		buf = buf[:len(buf)+n]
	}
	return buf, nil
}

// readText is read without the white space around it.
func (d dir) readText(name string) (string, error) {
	b, err := d.read(name)
	return strings.TrimSpace(string(b)), err
}

// mkdir makes a directory that everybody may pass, whatever the umask: a process
// that is root only of its own user namespace mounts its groups from there.
func (d dir) mkdir(name string) error {
	if err := retry(func() error { return unix.Mkdirat(d.fd, name, 0o755) }); err != nil {
		return d.fail("mkdir", name, err)
	}
	if err := retry(func() error { return unix.Fchmodat(d.fd, name, 0o755, 0) }); err != nil {
		d.rmdir(name)
		return d.fail("chmod", name, err)
	}
	return nil
}

func (d dir) rmdir(name string) error {
	if err := retry(func() error { return unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR) }); err != nil {
		return d.fail("rmdir", name, err)
	}
	return nil
}

// children names the groups directly below the directory `name`.
func (d dir) children(name string) ([]string, error) {
	fd, err := d.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), d.path+"/"+name)
	defer f.Close()
	entries, err := f.ReadDir(-1)
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

func (d dir) exists(name string) bool {
	return retry(func() error { return unix.Faccessat(d.fd, name, unix.F_OK, 0) }) == nil
}

func (d dir) fail(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: d.path + "/" + name, Err: err}
}

func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func retryInt(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}
