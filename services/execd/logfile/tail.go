package logfile

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// tailStart finds where the last q.Tail lines begin, reading backwards only as
// far as needed.
func tailStart(dir string, files []uint64, q *Query) (Position, error) {
	t := tail{q: q, open: map[Stream]bool{}}
	for i := len(files) - 1; i >= 0; i-- {
		off, found, err := t.file(Path(dir, files[i]))
		if err != nil {
			return Position{}, err
		}
		if found {
			return Position{files[i], off}, nil
		}
	}
	if len(files) == 0 {
		return Position{1, 0}, nil
	}
	return Position{files[0], 0}, nil
}

// tail counts lines of output from the end of the log.
type tail struct {
	q     *Query
	lines int64
	// open: a later chunk of this stream was seen, so a P before it is the
	// beginning of a line that is already counted.
	open map[Stream]bool
}

// file goes through one file backwards. When it meets the end of the last line
// that is not wanted, it gives the offset behind it.
func (t *tail) file(path string) (int64, bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if os.IsNotExist(err) {
		return 0, false, nil // rotated away just now
	}
	if err != nil {
		return 0, false, fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	start, err := intactEnd(f)
	if err != nil {
		return 0, false, err
	}
	var data []byte // the file from start on, as far as it is not judged; whole lines but for the first
	for {
		if n := len(data); n > 0 {
			i := bytes.LastIndexByte(data[:n-1], '\n')
			if i >= 0 || start == 0 {
				if t.older(data[i+1 : n-1]) {
					return start + int64(n), true, nil
				}
				data = data[:i+1]
				continue
			}
		}
		if start == 0 {
			return 0, false, nil
		}
		size := min(start, flushSize)
		start -= size
		block := make([]byte, size, size+int64(len(data)))
		if _, err := f.ReadAt(block, start); err != nil {
			return 0, false, fmt.Errorf("read log: %w", err)
		}
		data = append(block, data...)
	}
}

// older judges the chunk before those already seen: whether it ends a line
// beyond the wanted number.
func (t *tail) older(line []byte) bool {
	c, err := parseChunk(line)
	if err != nil || !t.q.wants(c.Stream) {
		return false
	}
	if c.Partial && t.open[c.Stream] {
		return false
	}
	t.open[c.Stream] = true
	t.lines++
	return t.lines > t.q.Tail
}
