package user

import (
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/safepath"
)

// Limits on reading one of the container's files.
const (
	MaxFile = 8 << 20     // bytes
	MaxTime = time.Second // measured between reads
)

// file reads a regular file of the container within the limits. A file that
// does not exist reads as empty.
type file struct {
	fd       int // -1 if it does not exist
	path     string
	left     int64
	deadline time.Time
}

// openFile opens path in root without being drawn into anything: it is looked
// at through an O_PATH descriptor, which opens no device and waits for no
// writer of a FIFO, before it is opened for reading. Between the two somebody
// in the container may have put a FIFO in its place, so the second open does
// not block and must meet the same inode. (It does not go through /proc, which
// the setup process may not have.)
func openFile(root int, path string) (*file, error) {
	f := &file{fd: -1, path: path, left: MaxFile, deadline: time.Now().Add(MaxTime)}
	look, err := safepath.Open(root, path, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) {
		return f, nil
	}
	if err != nil {
		return nil, f.explain(errors.Unwrap(err))
	}
	defer unix.Close(look)
	want, err := regular(look)
	if err != nil {
		return nil, f.explain(err)
	}
	f.fd, err = safepath.Open(root, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, f.explain(errors.Unwrap(err))
	}
	got, err := regular(f.fd)
	if err == nil && (got.Dev != want.Dev || got.Ino != want.Ino) {
		err = unix.EAGAIN
	}
	if err != nil {
		f.close()
		return nil, f.explain(err)
	}
	return f, nil
}

// regular makes sure that fd is a regular file of acceptable size.
func regular(fd int) (st unix.Stat_t, err error) {
	if err := unix.Fstat(fd, &st); err != nil {
		return st, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return st, errNotRegular
	}
	if st.Size > MaxFile {
		return st, errTooLarge
	}
	return st, nil
}

// Read implements io.Reader.
func (f *file) Read(p []byte) (int, error) {
	if f.fd < 0 {
		return 0, io.EOF
	}
	if time.Now().After(f.deadline) {
		return 0, errTooSlow
	}
	n, err := unix.Read(f.fd, p)
	for err == unix.EINTR {
		n, err = unix.Read(f.fd, p)
	}
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	if f.left -= int64(n); f.left < 0 { // it grows while we read, or lied about its size
		return 0, errTooLarge
	}
	return n, nil
}

func (f *file) close() {
	if f.fd >= 0 {
		unix.Close(f.fd)
	}
}

// explain says which file an error is about. Whatever the file system answers,
// the file is not usable.
func (f *file) explain(err error) error {
	if !errors.Is(err, ErrBadFile) {
		err = &Error{ErrBadFile, err.Error()}
	}
	return &fileError{f.path, err}
}
