package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Query selects what Read gives.
type Query struct {
	Stdout, Stderr bool
	// Since and Until are inclusive and exclusive; zero: no limit.
	Since, Until time.Time
	// Tail gives only the last so many lines; negative: all.
	Tail int64
	// From overrides Tail: begin here. Chunks of files that are gone are lost,
	// which Read reports with ErrGone.
	From *Position
	// To ends before that position; chunks behind it are not given.
	To *Position
	// Follow waits for more until Done is closed, and then gives the rest.
	Follow bool
	Done   <-chan struct{}
	// Pause, if set, is called when all there is has been given and Read is
	// about to wait.
	Pause func() error
	// Wake tells that the log may have grown; needed with Follow.
	Wake <-chan struct{}
}

// ErrGone means that the log was rotated away under a slow reader.
var ErrGone = errors.New("log was rotated before it was read")

// Read calls emit for each chunk, oldest first. The data is valid during the
// call only. It returns nil at the end, emit's error, or that of ctx.
func Read(ctx context.Context, dir string, q Query, emit func(Chunk) error) error {
	start, err := q.start(dir)
	if err != nil {
		return err
	}
	r := &reader{ctx: ctx, dir: dir, q: q, emit: emit, strict: q.From != nil}
	defer r.close()
	if err := r.run(start); err != errUntil {
		return err
	}
	return nil
}

// errUntil ends reading at Query.Until.
var errUntil = errors.New("end of the asked time")

func (q *Query) start(dir string) (Position, error) {
	if q.From != nil {
		return *q.From, nil
	}
	files, err := Files(dir)
	if err != nil {
		return Position{}, err
	}
	if q.Tail >= 0 {
		return tailStart(dir, files, q)
	}
	if len(files) == 0 {
		return Position{1, 0}, nil
	}
	return Position{files[0], 0}, nil
}

func (q *Query) wants(s Stream) bool {
	if s == Stderr {
		return q.Stderr
	}
	return q.Stdout
}

type reader struct {
	ctx    context.Context
	dir    string
	q      Query
	emit   func(Chunk) error
	strict bool

	f     *os.File
	file  uint64
	at    int64  // offset of buf in file
	buf   []byte // what was read and not yet emitted
	space []byte
}

func (r *reader) close() {
	if r.f != nil {
		r.f.Close()
	}
}

func (r *reader) run(start Position) error {
	r.space = make([]byte, 2*flushSize)
	if err := r.open(start); err != nil {
		return err
	}
	for {
		// Done is looked at before reading to the end: what was written before
		// it was closed is then seen.
		done := r.isDone()
		if err := r.drain(); err != nil {
			return err
		}
		moved, err := r.next()
		if err != nil {
			return err
		}
		if moved {
			continue
		}
		if !r.q.Follow || done {
			return nil
		}
		if err := r.wait(); err != nil {
			return err
		}
	}
}

func (r *reader) isDone() bool {
	select {
	case <-r.q.Done:
		return true
	default:
		return false
	}
}

func (r *reader) wait() error {
	if r.q.Pause != nil {
		if err := r.q.Pause(); err != nil {
			return err
		}
	}
	select {
	case <-r.ctx.Done():
		return r.ctx.Err()
	case <-r.q.Done:
	case <-r.q.Wake:
	}
	return nil
}

// open positions the reader; a file that does not exist yet is left for next.
func (r *reader) open(p Position) error {
	r.close()
	r.f, r.file, r.at, r.buf = nil, p.File, p.Offset, nil
	f, err := os.OpenFile(Path(r.dir, p.File), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		r.file = p.File - 1
		return nil
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	r.f = f
	_, err = f.Seek(p.Offset, io.SeekStart)
	return err
}

// next moves on to the following file, if there is one. The present one is then
// complete, but may have grown since it was read to its end.
func (r *reader) next() (bool, error) {
	files, err := Files(r.dir)
	if err != nil {
		return false, err
	}
	for _, n := range files {
		if n <= r.file {
			continue
		}
		if r.strict && n > r.file+1 {
			return false, ErrGone
		}
		if err := r.drain(); err != nil {
			return false, err
		}
		return true, r.open(Position{n, 0})
	}
	return false, nil
}

// drain emits all whole lines up to the present end of the file.
func (r *reader) drain() error {
	if r.f == nil {
		return nil
	}
	for {
		n := copy(r.space, r.buf)
		m, err := r.f.Read(r.space[n:])
		r.buf = r.space[:n+m]
		if m == 0 {
			if err != nil && err != io.EOF {
				return fmt.Errorf("read log: %w", err)
			}
			return r.ctx.Err()
		}
		if err := r.emitLines(); err != nil {
			return err
		}
		if len(r.buf) == len(r.space) {
			r.at += int64(len(r.buf))
			r.buf = nil // not a line of ours: too long
		}
	}
}

func (r *reader) emitLines() error {
	for {
		i := bytes.IndexByte(r.buf, '\n')
		if i < 0 {
			return nil
		}
		if to := r.q.To; to != nil && (r.file > to.File || r.file == to.File && r.at >= to.Offset) {
			return errUntil
		}
		line := r.buf[:i]
		r.buf = r.buf[i+1:]
		r.at += int64(i) + 1
		c, err := parseChunk(line)
		if err != nil || !r.q.wants(c.Stream) || c.Time.Before(r.q.Since) {
			continue
		}
		if !r.q.Until.IsZero() && !c.Time.Before(r.q.Until) {
			return errUntil
		}
		if err := r.emit(c); err != nil {
			return err
		}
	}
}
