package worker

import (
	"errors"
	"io"
	"os"
	"syscall"

	"berth/services/imaged/worker/wire"
)

// File is a Reader whose bytes are in a file that somebody is still writing.
type File interface {
	io.Reader
	// File is open for reading; the caller does not close it.
	File() *os.File
	// Wait blocks until the file has more than off bytes and gives their number. io.EOF: it has off bytes and gets no
	// more. Another error is what became of the writing.
	Wait(off int64) (int64, error)
}

// source is how a process gets at an archive.
type source struct {
	archive *os.File // its end
	growing bool     // it is told how long the archive is
	started func()   // it has its end
	feed    func(control io.Writer, q wire.Request) error
	close   func() // what is ours; may be called twice
}

func sourceOf(r io.Reader) (source, error) {
	switch f := r.(type) {
	case File:
		return fileSource(f.File(), f.Wait), nil
	case *os.File:
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			return fileSource(f, func(off int64) (int64, error) {
				if off >= st.Size() {
					return 0, io.EOF
				}
				return st.Size(), nil
			}), nil
		}
	}
	return pipeSource(r)
}

func fileSource(f *os.File, wait func(off int64) (int64, error)) source {
	return source{
		archive: f, growing: true, started: func() {}, close: func() {},
		feed: func(control io.Writer, q wire.Request) error {
			if err := wire.WriteRequest(control, q); err != nil {
				return nil // it is gone, and others notice
			}
			for off := int64(0); ; {
				size, err := wait(off)
				if err == io.EOF {
					wire.WriteEnd(control)
					return nil
				}
				if err != nil {
					return err
				}
				if wire.WriteSize(control, size) != nil {
					return nil
				}
				off = size
			}
		},
	}
}

const (
	setPipeSize = 1031 // F_SETPIPE_SZ of linux/fcntl.h
	// pipeSize is /proc/sys/fs/pipe-max-size where nobody changed it: the fewer times the two wait for each other the better.
	pipeSize = 1 << 20
	copySize = 256 << 10
)

// pipeSource copies r into a pipe.
func pipeSource(r io.Reader) (source, error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return source{}, err
	}
	if conn, err := ours.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) { syscall.Syscall(syscall.SYS_FCNTL, fd, setPipeSize, pipeSize) }) // or as it is
	}
	return source{
		archive: theirs, started: func() { theirs.Close() },
		close: func() { theirs.Close(); ours.Close() },
		feed: func(control io.Writer, q wire.Request) error {
			if err := wire.WriteRequest(control, q); err != nil {
				return nil
			}
			buf := make([]byte, copySize)
			for {
				n, err := r.Read(buf)
				if n > 0 {
					if _, werr := ours.Write(buf[:n]); werr != nil {
						return nil // it has read enough, or is gone
					}
				}
				if err != nil {
					if errors.Is(err, io.EOF) {
						err = nil
					}
					return err
				}
			}
		},
	}, nil
}
