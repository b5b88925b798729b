package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Stream is which output of the process a chunk came from.
type Stream byte

// The streams. A terminal has only Stdout.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

func (s Stream) String() string {
	if s == Stderr {
		return "stderr"
	}
	return "stdout"
}

// Chunk is a line of output, or part of one.
type Chunk struct {
	Time   time.Time
	Stream Stream
	// Partial: the line goes on in the next chunk of the stream.
	Partial bool
	// Data is without the newline that ended the line.
	Data []byte
}

// Position is a place between two chunks.
type Position struct {
	File   uint64
	Offset int64
}

const (
	// MaxChunk is the most data of one line in the file, as in CRI.
	MaxChunk = 16 << 10
	// timeLayout is RFC 3339 with all nine digits: lines sort and have one length.
	timeLayout = "2006-01-02T15:04:05.000000000Z"
	// headLen is the length of "TIME stdout F ".
	headLen = len(timeLayout) + 1 + len("stdout") + 1 + 1 + 1
	// maxLine is the longest line of a file with its newline.
	maxLine = headLen + MaxChunk + 1
)

var errMalformed = errors.New("malformed log line")

// appendChunk adds one line of the file to b. The stamp is in timeLayout.
func appendChunk(b, stamp []byte, s Stream, partial bool, data []byte) []byte {
	b = append(b, stamp...)
	b = append(b, ' ')
	b = append(b, s.String()...)
	if partial {
		b = append(b, " P "...)
	} else {
		b = append(b, " F "...)
	}
	b = append(b, data...)
	return append(b, '\n')
}

// parseChunk reads one line of the file, without its newline. Data aliases line.
func parseChunk(line []byte) (Chunk, error) {
	if len(line) < headLen {
		return Chunk{}, errMalformed
	}
	t, err := time.Parse(timeLayout, string(line[:len(timeLayout)]))
	if err != nil {
		return Chunk{}, errMalformed
	}
	c := Chunk{Time: t, Data: line[headLen:]}
	switch head := line[len(timeLayout):headLen]; {
	case bytes.Equal(head, []byte(" stdout F ")):
		c.Stream = Stdout
	case bytes.Equal(head, []byte(" stdout P ")):
		c.Stream, c.Partial = Stdout, true
	case bytes.Equal(head, []byte(" stderr F ")):
		c.Stream = Stderr
	case bytes.Equal(head, []byte(" stderr P ")):
		c.Stream, c.Partial = Stderr, true
	default:
		return Chunk{}, errMalformed
	}
	return c, nil
}

// Path is the file with number n of the log in dir.
func Path(dir string, n uint64) string {
	return filepath.Join(dir, "log."+strconv.FormatUint(n, 10))
}

// Files lists the numbers of the log's files, oldest first. No folder is no files.
func Files(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list log files: %w", err)
	}
	var files []uint64
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "log.")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(digits, 10, 64); err == nil && n > 0 {
			files = append(files, n)
		}
	}
	slices.Sort(files)
	return files, nil
}

// Current is the path of the file being written, for people; "log.1" before
// anything was.
func Current(dir string) string {
	files, _ := Files(dir)
	if len(files) == 0 {
		return Path(dir, 1)
	}
	return Path(dir, files[len(files)-1])
}
