package wire

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is both ends of a connection.
func pair(t testing.TB) (a, b *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := [2]*Conn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = NewConn(c.(*net.UnixConn))
		t.Cleanup(func() { c.Close() })
	}
	return ends[0], ends[1]
}

// sample has all that travels in parts, with bytes that are no text.
func sample() []*Message {
	filter := make([]byte, 4000)
	for i := range filter {
		filter[i] = byte(i * 7)
	}
	return []*Message{
		{Op: OpHello, Hello: &Hello{Version: Version, Pid: 7}},
		{Op: OpLaunch, Seq: 1, Launch: &Launch{ID: "a", Config: json.RawMessage(`{"Hostname":"h"}`), Filter: filter, Stdio: Stdio{Rows: 3}}},
		{Op: OpLaunch, Seq: 2, Launch: &Launch{ID: "b", Config: json.RawMessage(`{}`)}},
		{Op: OpExec, Seq: 3, Exec: &Exec{ID: "a", Exec: "e", Config: json.RawMessage(`{"Name":"n"}`), Filter: filter}},
		{Op: OpLaunch, Seq: 4, Launched: &Launched{Pid: 9, Trace: []Step{{"clone", time.Millisecond, time.Second}, {"", -1, 0}}}},
		{Op: OpLaunch, Seq: 5, Launched: &Launched{Pid: 10}},
		{Op: OpLaunch, Seq: 6, Error: &Error{CodeBusy, "runs"}},
	}
}

func TestMessagesArriveAsSent(t *testing.T) {
	for name, same := range map[string]bool{"same build": true, "another build": false} {
		t.Run(name, func(t *testing.T) { testArrives(t, same) })
	}
}

// compactable are messages that have a compact form, with and without what is optional.
func compactable() []*Message {
	at := time.Unix(1700000000, 123456789)
	steps := []Step{{"enter namespaces", time.Millisecond, time.Second}, {"", -1, 0}}
	return []*Message{
		{Op: OpExec, Seq: 3, Exec: &Exec{ID: "a", Exec: "e", Config: []byte(`{"Name":"n"}`), Filter: []byte{0, 1, 255}}},
		{Op: OpExec, Seq: 1 << 40, Exec: &Exec{
			ID: "a", Exec: "e", Config: []byte{0, 7}, Filter: []byte{1}, Attach: &Streams{Stdin: true, Stderr: true},
			Stdio: Stdio{Terminal: true, Stdin: true, StdinOnce: true, Discard: true, Rows: 65535, Columns: 80},
		}},
		{Op: OpExec, Seq: 4, Launched: &Launched{Pid: 9, StartedAt: at, Begun: 77, Trace: steps, Warnings: []string{"one", ""}}},
		{Op: OpExec, Seq: 5, Launched: &Launched{StartedAt: at}},
		{Op: OpExit, Exit: &Exit{
			ID: "a", Exec: "e", Pid: 8, Code: 137, OOM: true, Error: "why", At: at, Ran: time.Hour, FirstByte: 1, LogDropped: 1 << 40,
		}},
		{Op: OpExit, Exit: &Exit{ID: "a", Exec: "e", At: at}},
	}
}

func testArrives(t *testing.T, same bool) {
	a, b := pair(t)
	if same {
		a.SameBuild()
		for _, m := range compactable() {
			if m.compact() == nil {
				t.Errorf("%+v has no compact form", m)
			}
		}
	}
	for _, m := range compactable() {
		if err := a.Send(m); err != nil {
			t.Fatal(err)
		}
		got, _, err := b.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if x, y := string(text(t, got)), string(text(t, m)); x != y {
			t.Errorf("got %s, want %s", x, y)
		}
	}
	for _, m := range sample() {
		before, _ := json.Marshal(m)
		if err := a.Send(m); err != nil {
			t.Fatal(err)
		}
		if after, _ := json.Marshal(m); string(after) != string(before) {
			t.Errorf("sending changed the message from %s to %s", before, after)
		}
		got, fds, err := b.Recv()
		if err != nil || len(fds) != 0 {
			t.Fatal(err, fds)
		}
		if got.Launch != nil && len(got.Launch.Filter) == 0 {
			got.Launch.Filter = nil // nothing and an empty filter are the same
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("got %+v, want %+v", got, m)
		}
	}
}

// text is all of m, with what JSON leaves to the parts, and times in one zone.
func text(t *testing.T, m *Message) []byte {
	t.Helper()
	all := struct {
		*Message
		Steps []Step
	}{Message: m}
	switch {
	case m.Launched != nil:
		m.Launched.StartedAt, all.Steps = m.Launched.StartedAt.UTC(), m.Launched.Trace
	case m.Exit != nil:
		m.Exit.At = m.Exit.At.UTC()
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestMalformedCompact: what is cut off, or too long, or has no form is an error.
func TestMalformedCompact(t *testing.T) {
	for _, m := range compactable() {
		whole := m.compact()
		for n := 1; n < len(whole); n++ {
			if got, err := readCompact(whole[:n]); err == nil {
				t.Errorf("%d bytes of %d are %+v", n, len(whole), got)
			}
		}
		if got, err := readCompact(append(whole, 0)); err == nil {
			t.Errorf("with a byte too many it is %+v", got)
		}
	}
	if got, err := readCompact([]byte("?")); err == nil {
		t.Errorf("a form that is none is %+v", got)
	}
	for _, m := range sample() {
		if m.Exec == nil && m.compact() != nil {
			t.Errorf("%+v has a compact form", m)
		}
	}
}

// A peer that breaks off or writes nonsense ends the connection, not the program.
func TestMalformedMessages(t *testing.T) {
	for name, bytes := range map[string]string{
		"empty":             "",
		"half a header":     "\x00\x00",
		"too long":          "\x7f\xff\xff\xff\x00\x00\x00\x00",
		"parts too long":    "\x00\x00\x00\x02\x7f\xff\xff\xff{}",
		"no JSON":           "\x00\x00\x00\x02\x00\x00\x00\x00xx",
		"cut off":           "\x00\x00\x00\x09\x00\x00\x00\x00{\"op\"",
		"part over the end": "\x00\x00\x00\x02\x00\x00\x00\x02{}\x05a",
		"no parts":          "\x00\x00\x00\x0d\x00\x00\x00\x00{\"launch\":{}}",
		"one part":          "\x00\x00\x00\x0d\x00\x00\x00\x02{\"launch\":{}}\x01a",
		"no steps":          "\x00\x00\x00\x0f\x00\x00\x00\x02{\"launched\":{}}\x01\x05",
	} {
		a, b := pair(t)
		if _, err := a.c.Write([]byte(bytes)); err != nil {
			t.Fatal(err)
		}
		a.c.CloseWrite()
		if m, _, err := b.Recv(); err == nil {
			t.Errorf("%s: got %+v", name, m)
		} else if bytes == "" && !errors.Is(err, io.EOF) {
			t.Errorf("%s: got %v, want EOF", name, err)
		}
	}
}

// Descriptors arrive with their message.
func TestDescriptorsTravel(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := a.Send(sample()[1], int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	w.Close()
	_, fds, err := b.Recv()
	if err != nil || len(fds) != 1 {
		t.Fatal(err, fds)
	}
	got := os.NewFile(uintptr(fds[0]), "got")
	io.WriteString(got, "hello")
	got.Close()
	text, _ := io.ReadAll(r)
	if string(text) != "hello" {
		t.Errorf("read %q", text)
	}
}

func BenchmarkLaunchMessage(b *testing.B) {
	x, y := pair(b)
	m := sample()[1]
	m.Launch.Config = json.RawMessage(`{"Mounts":["` + strings.Repeat("x", 2500) + `"]}`)
	for b.Loop() {
		if err := x.Send(m); err != nil {
			b.Fatal(err)
		}
		if _, _, err := y.Recv(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestEnding(t *testing.T) {
	at := time.Unix(1700000000, 123456789)
	for _, want := range []Exit{{At: at}, {Code: 255, At: at, Error: "exit status lost: no one waited"}, {Code: 137, At: at}} {
		got, err := DecodeEnding(Ending(&want))
		if err != nil || got.Code != want.Code || !got.At.Equal(want.At) || got.Error != want.Error {
			t.Errorf("%+v arrives as %+v, %v", want, got, err)
		}
	}
	for _, bad := range []string{"", "\x80", "\x02", "\x02\xff\xff"} {
		if got, err := DecodeEnding([]byte(bad)); err == nil {
			t.Errorf("%q is %+v", bad, got)
		}
	}
}
