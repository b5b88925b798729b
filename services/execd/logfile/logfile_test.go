package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func create(t testing.TB, dir string, size int64, files int) *Writer {
	t.Helper()
	w, err := Create(dir, size, files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func all() Query { return Query{Stdout: true, Stderr: true, Tail: -1} }

// output reads the log back as the bytes the process wrote.
func output(t testing.TB, dir string, q Query) string {
	t.Helper()
	var b bytes.Buffer
	err := Read(context.Background(), dir, q, func(c Chunk) error {
		b.Write(c.Data)
		if !c.Partial {
			b.WriteByte('\n')
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestRoundTripIsExact(t *testing.T) {
	cases := map[string]string{
		"empty":          "",
		"line":           "hello\n",
		"no newline":     "hello",
		"blank lines":    "\n\n\na\n\n",
		"nul":            "a\x00b\xff\xfe\n\x00",
		"carriage":       "a\r\nb\r",
		"chunk":          strings.Repeat("x", MaxChunk),
		"chunk newline":  strings.Repeat("x", MaxChunk) + "\n",
		"chunk and one":  strings.Repeat("x", MaxChunk+1) + "\n",
		"several chunks": strings.Repeat("y", 3*MaxChunk+7),
		"looks like log": "2026-01-02T15:04:05.000000000Z stdout F hello\n",
		"newlines":       strings.Repeat("\n", 100_000),
	}
	for name, want := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			create(t, dir, 1<<30, 3).Write(epoch, Stdout, []byte(want))
			if got := output(t, dir, all()); got != want {
				t.Errorf("got %d bytes %.60q, want %d bytes %.60q", len(got), got, len(want), want)
			}
		})
	}
}

func TestRandomWritesComeBack(t *testing.T) {
	dir := t.TempDir()
	w := create(t, dir, 1<<30, 3)
	rnd := rand.New(rand.NewPCG(1, 2))
	var want bytes.Buffer
	for range 500 {
		b := make([]byte, rnd.IntN(40_000))
		for i := range b {
			b[i] = byte(rnd.IntN(256))
		}
		want.Write(b)
		w.Write(epoch, Stdout, b)
	}
	if got := output(t, dir, all()); got != want.String() {
		t.Fatalf("got %d bytes, want %d, or different ones", len(got), want.Len())
	}
}

func TestRotationKeepsTheNewestFiles(t *testing.T) {
	dir := t.TempDir()
	w := create(t, dir, 4096, 3)
	for i := range 1000 {
		w.Write(epoch, Stdout, fmt.Appendf(nil, "line %d\n", i))
	}
	files, err := Files(dir)
	if err != nil || len(files) != 3 {
		t.Fatalf("files %v, %v, want 3", files, err)
	}
	for _, n := range files {
		if st, _ := os.Stat(Path(dir, n)); st.Size() > 4096 {
			t.Errorf("log.%d has %d bytes, want at most 4096", n, st.Size())
		}
	}
	got := output(t, dir, all())
	if !strings.HasSuffix(got, "line 998\nline 999\n") || strings.Contains(got, "line 1\n") {
		t.Errorf("kept %.40q … %q", got, got[len(got)-20:])
	}
}

func TestTail(t *testing.T) {
	dir := t.TempDir()
	w := create(t, dir, 2000, 100)
	var lines []string
	for i := range 300 {
		lines = append(lines, fmt.Sprintf("line %d\n", i))
		w.Write(epoch, Stdout, []byte(lines[i]))
	}
	for _, n := range []int{0, 1, 2, 37, 38, 39, 40, 120, 299, 300, 301, 5000} {
		q := all()
		q.Tail = int64(n)
		want := strings.Join(lines[max(0, len(lines)-n):], "")
		if got := output(t, dir, q); got != want {
			t.Errorf("tail %d: got %d bytes starting %.20q, want %d starting %.20q", n, len(got), got, len(want), want)
		}
	}
}

func TestTailCountsLinesNotChunks(t *testing.T) {
	dir := t.TempDir()
	w := create(t, dir, 1<<20, 3)
	long := strings.Repeat("z", 5*MaxChunk) + "\n"
	w.Write(epoch, Stdout, []byte("first\n"+long+"open"))
	w.Write(epoch, Stderr, []byte("err\n"))
	q := Query{Stdout: true, Tail: 2}
	if got := output(t, dir, q); got != long+"open" {
		t.Errorf("got %d bytes starting %.20q", len(got), got)
	}
	q.Tail = 1
	if got := output(t, dir, q); got != "open" {
		t.Errorf("got %.20q, want the open line", got)
	}
}

func TestSinceUntilAndStreams(t *testing.T) {
	dir := t.TempDir()
	w := create(t, dir, 1<<20, 3)
	for i := range 10 {
		w.Write(epoch.Add(time.Duration(i)*time.Second), Stream(1+i%2), fmt.Appendf(nil, "%d\n", i))
	}
	q := all()
	q.Since, q.Until = epoch.Add(3*time.Second), epoch.Add(7*time.Second)
	if got := output(t, dir, q); got != "3\n4\n5\n6\n" {
		t.Errorf("since, until: got %q", got)
	}
	q.Stdout = false
	if got := output(t, dir, q); got != "3\n5\n" {
		t.Errorf("stderr: got %q", got)
	}
}

func TestFollowAcrossRotationLosesNothing(t *testing.T) {
	dir := t.TempDir()
	w := create(t, dir, 10_000, 1000)
	done, wake := make(chan struct{}), make(chan struct{}, 1)
	q := all()
	q.Follow, q.Done, q.Wake = true, done, wake
	got := make(chan string)
	go func() { got <- output(t, dir, q) }()
	var want strings.Builder
	for i := range 5000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		w.Write(epoch, Stdout, []byte(line))
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	close(done)
	if g := <-got; g != want.String() {
		t.Errorf("got %d bytes, want %d", len(g), want.Len())
	}
}

func TestReadFromPosition(t *testing.T) {
	dir := t.TempDir()
	w := create(t, dir, 4096, 2)
	w.Write(epoch, Stdout, []byte("before\n"))
	at := w.Position()
	w.Write(epoch, Stdout, []byte("after\n"))
	q := all()
	q.From = &at
	if got := output(t, dir, q); got != "after\n" {
		t.Errorf("got %q", got)
	}
	for range 1000 {
		w.Write(epoch, Stdout, []byte("more and more\n"))
	}
	err := Read(context.Background(), dir, q, func(Chunk) error { return nil })
	if !errors.Is(err, ErrGone) {
		t.Errorf("rotated away: got %v, want ErrGone", err)
	}
}

func TestCreateContinuesAfterTornLine(t *testing.T) {
	dir := t.TempDir()
	w := create(t, dir, 1<<20, 3)
	w.Write(epoch, Stdout, []byte("whole\n"))
	w.f.WriteAt([]byte("2026-01-02T15:04:05.000000000Z stdout F to"), w.pos.Offset)
	w = create(t, dir, 1<<20, 3)
	w.Write(epoch, Stdout, []byte("next\n"))
	if got := output(t, dir, all()); got != "whole\nnext\n" {
		t.Errorf("got %q", got)
	}
}

func TestLinkIsNotFollowed(t *testing.T) {
	dir := t.TempDir()
	victim := dir + "/victim"
	if err := os.WriteFile(victim, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, Path(dir, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, 0, 0); err == nil {
		t.Error("log opened through a symbolic link")
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("a\nb"), uint16(3))
	f.Fuzz(func(t *testing.T, data []byte, size uint16) {
		dir := t.TempDir()
		w := create(t, dir, int64(size), 1<<20)
		w.Write(epoch, Stdout, data)
		if got := output(t, dir, all()); got != string(data) {
			t.Errorf("got %q, want %q", got, data)
		}
	})
}

func BenchmarkWriteLines(b *testing.B) {
	w := create(b, b.TempDir(), 1<<40, 1)
	data := bytes.Repeat([]byte("a line of a usual length, neither long nor short, of a log\n"), 500)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		w.Write(epoch, Stdout, data)
	}
}
