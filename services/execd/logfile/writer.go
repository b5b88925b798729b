package logfile

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Defaults of a log.
const (
	DefaultMaxBytes = 10 << 20
	DefaultMaxFiles = 3
)

// flushSize is how much text is put together for one write(2).
const flushSize = 64 << 10

// buffers are shared by all logs: a log that is not being written holds none.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, flushSize+maxLine)
	return &b
}}

// Writer appends to a log. It is not safe for concurrent use.
type Writer struct {
	dir      string
	maxBytes int64
	maxFiles uint64

	f       *os.File // nil: nothing was written yet
	pos     Position
	dropped int64
}

// Create opens the log in dir after what it already has. A log that has nothing
// yet is made with its folder when there is something to write: most commands
// that live for milliseconds say nothing. Limits of zero mean the defaults.
func Create(dir string, maxBytes int64, maxFiles int) (*Writer, error) {
	if maxBytes <= 0 {
		maxBytes = DefaultMaxBytes
	}
	if maxFiles <= 0 {
		maxFiles = DefaultMaxFiles
	}
	w := &Writer{dir: dir, maxBytes: maxBytes, maxFiles: uint64(maxFiles)}
	files, err := Files(dir)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		w.pos = Position{1, 0}
		return w, nil
	}
	if err := w.open(files[len(files)-1]); err != nil {
		return nil, err
	}
	return w, nil
}

// begin makes the folder and the first file.
func (w *Writer) begin() error {
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return err
	}
	return w.open(w.pos.File)
}

// open makes file n the one that is written. O_NOFOLLOW: whoever could plant a
// link here must not make root write elsewhere.
func (w *Writer) open(n uint64) error {
	f, err := os.OpenFile(Path(w.dir, n), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	end, err := intactEnd(f)
	if err == nil {
		err = f.Truncate(end)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("continue log: %w", err)
	}
	if w.f != nil {
		w.f.Close()
	}
	w.f, w.pos = f, Position{n, end}
	return nil
}

// intactEnd is the offset after the last whole line: a writer that was killed
// may have left part of one.
func intactEnd(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return 0, err
	}
	tail := make([]byte, min(st.Size(), int64(maxLine)))
	start := st.Size() - int64(len(tail))
	if _, err := f.ReadAt(tail, start); err != nil && err != io.EOF {
		return 0, err
	}
	return start + int64(bytes.LastIndexByte(tail, '\n')) + 1, nil
}

// Position is where the next chunk goes.
func (w *Writer) Position() Position { return w.pos }

// Dropped counts the bytes of output that could not be written (disk full).
func (w *Writer) Dropped() int64 { return w.dropped }

// Write appends output that was read at time t. What cannot be written is
// counted and dropped: a full disk must not stop the container.
func (w *Writer) Write(t time.Time, s Stream, data []byte) {
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	var stampArr [len(timeLayout)]byte
	stamp := t.UTC().AppendFormat(stampArr[:0], timeLayout)

	b, held := (*bp)[:0], int64(0)
	for len(data) > 0 {
		chunk, rest, partial := cut(data)
		b = appendChunk(b, stamp, s, partial, chunk)
		held += int64(len(data) - len(rest))
		data = rest
		if len(b) >= flushSize || len(data) == 0 {
			w.flush(b, held)
			b, held = b[:0], 0
		}
	}
	*bp = b[:0]
}

// cut takes the first chunk off data.
func cut(data []byte) (chunk, rest []byte, partial bool) {
	i := bytes.IndexByte(data[:min(len(data), MaxChunk+1)], '\n')
	switch {
	case i >= 0:
		return data[:i], data[i+1:], false
	case len(data) > MaxChunk:
		return data[:MaxChunk], data[MaxChunk:], true
	default:
		return data, nil, true
	}
}

// flush writes whole lines that stand for n bytes of output.
func (w *Writer) flush(lines []byte, n int64) {
	if w.f == nil && w.begin() != nil {
		w.dropped += n
		return
	}
	if w.pos.Offset > 0 && w.pos.Offset+int64(len(lines)) > w.maxBytes {
		w.rotate()
	}
	if _, err := w.f.WriteAt(lines, w.pos.Offset); err != nil {
		w.dropped += n
		w.f.Truncate(w.pos.Offset) // no half lines
		return
	}
	w.pos.Offset += int64(len(lines))
}

// rotate begins the next file. When that is impossible the old one grows on.
func (w *Writer) rotate() {
	next := w.pos.File + 1
	if w.open(next) != nil {
		return
	}
	if next > w.maxFiles {
		os.Remove(Path(w.dir, next-w.maxFiles))
	}
}

// Close ends writing.
func (w *Writer) Close() error {
	if w.f == nil {
		return nil
	}
	return w.f.Close()
}
