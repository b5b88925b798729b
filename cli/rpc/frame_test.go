package rpc

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"berth/cli/wire"
)

// text is a message of one string.
type text string

func (m *text) AppendTo(b []byte) []byte { return wire.AppendBytes(b, 1, string(*m)) }

func (m *text) Merge(b []byte) error {
	d := wire.NewDecoder(b)
	for d.Next() {
		*m = text(d.String())
	}
	return d.Err()
}

// raw is a server made by hand: what it sends is what a test says.
type raw struct {
	conn net.Conn
	*http2.Framer
}

// pair connects a Conn with a raw server.
func pair(t testing.TB) (*Conn, *raw) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[1]), "server")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := NewConn("/")
	c.t = newTransport(os.NewFile(uintptr(fds[0]), "client"))
	t.Cleanup(c.Close)
	return c, &raw{conn, http2.NewFramer(conn, conn)}
}

// request reads up to the end of the client's first message.
func (r *raw) request(t testing.TB) {
	t.Helper()
	begin := make([]byte, len(preface))
	if _, err := io.ReadFull(r.conn, begin); err != nil || string(begin) != preface {
		t.Fatalf("preface %q, %v", begin, err)
	}
	r.await(t, func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok })
}

// await reads frames until one is what is wanted.
func (r *raw) await(t testing.TB, wanted func(http2.Frame) bool) {
	t.Helper()
	_ = r.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		f, err := r.ReadFrame()
		if err != nil {
			t.Fatalf("the frame that was expected did not come: %v", err)
		}
		if wanted(f) {
			return
		}
	}
}

// block encodes a header of pairs of name and value.
func block(pairs ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(pairs); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return b.Bytes()
}

var (
	header  = block(":status", "200", "content-type", "application/grpc")
	trailer = block("grpc-status", "0")
	hello   = message("hello")
)

func message(s text) []byte {
	b := s.AppendTo(make([]byte, prefix))
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-prefix))
	return b
}

func headers(b []byte, end bool) http2.HeadersFrameParam {
	return http2.HeadersFrameParam{StreamID: 1, BlockFragment: b, EndHeaders: true, EndStream: end}
}

// TestServerFrames: what a server may send, well and badly formed, and what the call makes of it.
func TestServerFrames(t *testing.T) {
	ok := func(r *raw) {
		_ = r.WriteHeaders(headers(header, false))
		_ = r.WriteData(1, false, hello)
		_ = r.WriteHeaders(headers(trailer, true))
	}
	for name, tc := range map[string]struct {
		send func(r *raw)
		code Code   // of the call
		text string // in its error
	}{
		"plain": {ok, OK, ""},
		"settings, pings": {func(r *raw) {
			_ = r.WriteSettings(http2.Setting{ID: 99, Val: 1})
			_ = r.WritePing(false, [8]byte{1})
			ok(r)
		}, OK, ""},
		"unknown frame": {func(r *raw) {
			_ = r.WriteRawFrame(200, 0xff, 1, []byte("x"))
			_ = r.WritePriority(1, http2.PriorityParam{})
			ok(r)
		}, OK, ""},
		"interim header": {func(r *raw) { _ = r.WriteHeaders(headers(block(":status", "103"), false)); ok(r) }, OK, ""},
		"padding, priority": {func(r *raw) {
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header, EndHeaders: true, PadLength: 7, Priority: http2.PriorityParam{Weight: 9}})
			_ = r.WriteDataPadded(1, false, hello, make([]byte, 255))
			_ = r.WriteHeaders(headers(trailer, true))
		}, OK, ""},
		"byte for byte": {func(r *raw) {
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header[:1]})
			for i := 1; i < len(header); i++ {
				_ = r.WriteContinuation(1, i == len(header)-1, header[i:i+1])
			}
			for _, b := range hello {
				_ = r.WriteData(1, false, []byte{b})
			}
			_ = r.WriteHeaders(headers(trailer, true))
		}, OK, ""},
		"late frames of an ended call": {func(r *raw) {
			ok(r)
			_ = r.WriteRSTStream(1, http2.ErrCodeNo)
			_ = r.WriteWindowUpdate(1, 5)
			_ = r.WriteData(1, true, hello)
		}, OK, ""},
		"refusal":          {func(r *raw) { _ = r.WriteRSTStream(1, http2.ErrCodeRefusedStream) }, Unavailable, "code 7"},
		"reset, cancelled": {func(r *raw) { _ = r.WriteRSTStream(1, http2.ErrCodeCancel) }, Canceled, "code 8"},
		"reset, calm":      {func(r *raw) { _ = r.WriteRSTStream(1, http2.ErrCodeEnhanceYourCalm) }, ResourceExhausted, ""},
		"reset, error":     {func(r *raw) { _ = r.WriteRSTStream(1, http2.ErrCodeInternal) }, Internal, "code 2"},
		"goaway below":     {func(r *raw) { _ = r.WriteGoAway(0, http2.ErrCodeNo, nil) }, Unavailable, "about to close"},
		"goaway above":     {func(r *raw) { _ = r.WriteGoAway(1, http2.ErrCodeNo, []byte("x")); ok(r) }, OK, ""},
		"not gRPC":         {func(r *raw) { _ = r.WriteHeaders(headers(block(":status", "404", "content-type", "text/html"), true)) }, Unavailable, `"404"`},
		"no status":        {func(r *raw) { _ = r.WriteHeaders(headers(header, true)) }, Internal, "grpc-status"},
		"unreadable details": {func(r *raw) {
			_ = r.WriteHeaders(headers(append(bytes.Clone(header), block("grpc-status", "5", "grpc-message", "a%20b%", "grpc-status-details-bin", "!")...), true))
		}, NotFound, "a b%"},
		"status above": {func(r *raw) {
			_ = r.WriteHeaders(headers(append(bytes.Clone(header), block("grpc-status", "4711")...), true))
		}, 4711, ""},
		"end without trailer": {func(r *raw) { _ = r.WriteHeaders(headers(header, false)); _ = r.WriteData(1, true, hello) }, Internal, "without a status"},
		"no message":          {func(r *raw) { _ = r.WriteHeaders(headers(header, false)); _ = r.WriteHeaders(headers(trailer, true)) }, Internal, "without a message"},
		"two messages": {func(r *raw) {
			_ = r.WriteHeaders(headers(header, false))
			_ = r.WriteData(1, false, append(bytes.Clone(hello), hello...))
		}, Internal, "more than one"},
		"half a message": {func(r *raw) {
			_ = r.WriteHeaders(headers(header, false))
			_ = r.WriteData(1, false, hello[:7])
			_ = r.WriteHeaders(headers(trailer, true))
		}, Internal, "inside a message"},
		"compressed message": {func(r *raw) {
			_ = r.WriteHeaders(headers(header, false))
			_ = r.WriteData(1, false, []byte{1, 0, 0, 0, 0})
		}, Internal, "compressed"},
		"huge message": {func(r *raw) {
			_ = r.WriteHeaders(headers(header, false))
			_ = r.WriteData(1, false, []byte{0, 0xff, 0, 0, 0})
		}, ResourceExhausted, "larger"},
		"message is no proto": {func(r *raw) {
			_ = r.WriteHeaders(headers(header, false))
			_ = r.WriteData(1, false, []byte{0, 0, 0, 0, 1, 0xff})
			_ = r.WriteHeaders(headers(trailer, true))
		}, Internal, "cut off"},
		"data before header":   {func(r *raw) { _ = r.WriteData(1, false, hello) }, Internal, "before the header"},
		"second header":        {func(r *raw) { _ = r.WriteHeaders(headers(header, false)); _ = r.WriteHeaders(headers(header, false)) }, Internal, "second header"},
		"window of call +0":    {func(r *raw) { r.AllowIllegalWrites = true; _ = r.WriteWindowUpdate(1, 0) }, Internal, "window"},
		"window of call above": {func(r *raw) { _ = r.WriteWindowUpdate(1, maxWindow) }, Internal, "window"},
		// From here on the connection is at fault.
		"closed":              {func(r *raw) { r.conn.Close() }, Unavailable, "closed the connection"},
		"closed in a frame":   {func(r *raw) { _, _ = r.conn.Write([]byte{0, 0, 9, 0}); r.conn.Close() }, Unavailable, "closed the connection"},
		"closed in a payload": {func(r *raw) { _, _ = r.conn.Write([]byte{0, 0, 9, 0, 0, 0, 0, 0, 1, 'x'}); r.conn.Close() }, Unavailable, "closed the connection"},
		"not HTTP/2":          {func(r *raw) { _, _ = r.conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, Internal, "cannot be read"},
		"large frame":         {func(r *raw) { _ = r.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, maxReadFrame+1)) }, Internal, "frame of 16385"},
		"push":                {func(r *raw) { _ = r.WriteRawFrame(http2.FramePushPromise, 4, 1, []byte{0, 0, 0, 2}) }, Internal, "PUSH_PROMISE"},
		"stream 0":            {func(r *raw) { _ = r.WriteRawFrame(http2.FrameData, 0, 0, hello) }, Internal, "stream 0"},
		"reset of stream 0":   {func(r *raw) { _ = r.WriteRawFrame(http2.FrameRSTStream, 0, 0, make([]byte, 4)) }, Internal, "stream 0"},
		"stream not opened":   {func(r *raw) { _ = r.WriteRawFrame(http2.FrameHeaders, 4, 3, header) }, Internal, "not opened"},
		"even stream":         {func(r *raw) { _ = r.WriteRawFrame(http2.FrameData, 0, 2, hello) }, Internal, "not opened"},
		"bad block":           {func(r *raw) { _ = r.WriteHeaders(headers([]byte{0xff, 0xff, 0xff}, true)) }, Internal, "cannot be read"},
		"cut block":           {func(r *raw) { _ = r.WriteHeaders(headers(header[:len(header)-2], true)) }, Internal, "cannot be read"},
		"endless block": {func(r *raw) {
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header})
			for range 20 {
				_ = r.WriteContinuation(1, false, make([]byte, 16<<10))
			}
		}, Internal, "256 KiB"},
		"block that grows": {func(r *raw) { // 4 000 bytes once, then 200 bytes that each stand for them
			b := append(bytes.Clone(header), block("x", strings.Repeat("y", 4000))...)
			_ = r.WriteHeaders(headers(append(b, bytes.Repeat([]byte{0x80 | 62}, 200)...), true))
		}, Internal, "256 KiB"},
		"header interrupted": {func(r *raw) {
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header[:1]})
			_ = r.WritePing(false, [8]byte{})
		}, Internal, "inside a header"},
		"continuation alone":       {func(r *raw) { _ = r.WriteContinuation(1, true, header) }, Internal, "CONTINUATION"},
		"padding above":            {func(r *raw) { _ = r.WriteRawFrame(http2.FrameData, flagPadded, 1, []byte{9, 0}) }, Internal, "padding"},
		"padding without":          {func(r *raw) { _ = r.WriteRawFrame(http2.FrameData, flagPadded, 1, nil) }, Internal, "padded"},
		"priority cut":             {func(r *raw) { _ = r.WriteRawFrame(http2.FrameHeaders, flagPriority, 1, []byte{1}) }, Internal, "priority"},
		"settings cut":             {func(r *raw) { _ = r.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5)) }, Internal, "type 4"},
		"settings of a stream":     {func(r *raw) { _ = r.WriteRawFrame(http2.FrameSettings, 0, 1, nil) }, Internal, "stream 1"},
		"settings window":          {func(r *raw) { _ = r.WriteSettings(http2.Setting{ID: settingInitialWindow, Val: 1 << 31}) }, Internal, "window"},
		"settings frame size":      {func(r *raw) { _ = r.WriteSettings(http2.Setting{ID: settingMaxFrameSize, Val: 1}) }, Internal, "largest frame"},
		"ping cut":                 {func(r *raw) { _ = r.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) }, Internal, "type 6"},
		"goaway cut":               {func(r *raw) { _ = r.WriteRawFrame(http2.FrameGoAway, 0, 0, make([]byte, 7)) }, Internal, "type 7"},
		"window cut":               {func(r *raw) { _ = r.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, make([]byte, 3)) }, Internal, "type 8"},
		"window +0":                {func(r *raw) { r.AllowIllegalWrites = true; _ = r.WriteWindowUpdate(0, 0) }, Internal, "grown by 0"},
		"window of the connection": {func(r *raw) { _ = r.WriteWindowUpdate(0, maxWindow) }, Internal, "window"},
		"reset cut":                {func(r *raw) { _ = r.WriteRawFrame(http2.FrameRSTStream, 0, 1, nil) }, Internal, "type 3"},
	} {
		t.Run(name, func(t *testing.T) {
			c, r := pair(t)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			result := make(chan error, 1)
			var answer text
			go func() {
				ask := text("hi")
				result <- c.Invoke(ctx, "/s/M", &ask, &answer)
			}()
			r.request(t)
			tc.send(r)
			err := <-result
			if CodeOf(err) != tc.code || tc.text != "" && !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%v, want code %d and %q", err, tc.code, tc.text)
			}
			if err == nil && answer != "hello" {
				t.Errorf("answer %q", answer)
			}
		})
	}
}

// TestAnswers: what the server is owed: acknowledgements, and why a connection is ended.
func TestAnswers(t *testing.T) {
	c, r := pair(t)
	go func() { var m text; _ = c.Invoke(t.Context(), "/s/M", &m, &m) }()
	r.request(t)
	_ = r.WriteSettings()
	_ = r.WritePing(false, [8]byte{1, 2, 3})
	r.await(t, func(f http2.Frame) bool { s, ok := f.(*http2.SettingsFrame); return ok && s.IsAck() })
	r.await(t, func(f http2.Frame) bool {
		p, ok := f.(*http2.PingFrame)
		return ok && p.IsAck() && p.Data == [8]byte{1, 2, 3}
	})
	_ = r.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5))
	r.await(t, func(f http2.Frame) bool {
		g, ok := f.(*http2.GoAwayFrame)
		return ok && g.ErrCode == http2.ErrCodeFrameSize
	})
}

// TestFirstWrite: preface, settings, header and message of a call are one write.
func TestFirstWrite(t *testing.T) {
	c, r := pair(t)
	go func() { m := text("hi"); _ = c.Invoke(t.Context(), "/s/M", &m, &m) }()
	b := make([]byte, 4096)
	n, err := r.conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b[:n], message("hi")) {
		t.Errorf("the first %d bytes do not hold the message: %q", n, b[:n])
	}
}

// TestWindows: the client sends no more than it may, also when the settings take window away, and goes on when it may.
func TestWindows(t *testing.T) {
	c, r := pair(t)
	result := make(chan error, 1)
	go func() {
		m := text(strings.Repeat("x", 200_000))
		result <- c.Invoke(t.Context(), "/s/M", &m, &m)
	}()
	begin := make([]byte, len(preface))
	if _, err := io.ReadFull(r.conn, begin); err != nil {
		t.Fatal(err)
	}
	got := 0
	read := func(most int) { // reads until no more comes
		t.Helper()
		for {
			_ = r.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			f, err := r.ReadFrame()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if d, ok := f.(*http2.DataFrame); ok {
				got += len(d.Data())
			}
		}
		if got != most {
			t.Fatalf("%d bytes came, %d were allowed", got, most)
		}
	}
	read(65535)
	_ = r.WriteWindowUpdate(0, 1_000_000) // of the connection alone
	read(65535)
	_ = r.WriteSettings(http2.Setting{ID: settingInitialWindow, Val: 1000}) // takes 64 535 away
	_ = r.WriteWindowUpdate(1, 64_535)                                      // gives them back
	read(65535)
	_ = r.WriteWindowUpdate(1, 1)
	read(65536)
	_ = r.WriteSettings(http2.Setting{ID: settingInitialWindow, Val: 500_000})
	read(200_000 + prefix + 4) // key and length of the string
	_ = r.WriteHeaders(headers(header, false))
	_ = r.WriteData(1, false, hello)
	_ = r.WriteHeaders(headers(trailer, true))
	if err := <-result; err != nil {
		t.Error(err)
	}
}

// TestTooMuchData: a server that ignores the windows is stopped.
func TestTooMuchData(t *testing.T) {
	c, r := pair(t)
	s, err := OpenServerStream[text](t.Context(), c, "/s/M", new(text))
	if err != nil {
		t.Fatal(err)
	}
	r.request(t)
	_ = r.WriteHeaders(headers(header, false))
	for range streamWindow/maxReadFrame + 1 {
		if err := r.WriteData(1, false, make([]byte, maxReadFrame)); err != nil {
			t.Fatal(err)
		}
	}
	r.await(t, func(f http2.Frame) bool {
		x, ok := f.(*http2.RSTStreamFrame)
		return ok && x.ErrCode == http2.ErrCodeFlowControl
	})
	for err = nil; err == nil; {
		_, err = s.Recv()
	}
	if CodeOf(err) != Internal {
		t.Error(err)
	}
}

// FuzzServer: whatever a server sends, a call ends.
func FuzzServer(f *testing.F) {
	var b bytes.Buffer
	w := http2.NewFramer(&b, nil)
	_ = w.WriteSettings(http2.Setting{ID: settingInitialWindow, Val: 100})
	_ = w.WriteHeaders(headers(header, false))
	_ = w.WriteData(1, false, hello)
	_ = w.WriteWindowUpdate(0, 10)
	_ = w.WriteHeaders(headers(trailer, true))
	f.Add(b.Bytes())
	b.Reset()
	_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header[:1], PadLength: 3})
	_ = w.WriteContinuation(1, true, header[1:])
	_ = w.WriteDataPadded(1, false, hello, []byte{0})
	_ = w.WritePing(false, [8]byte{})
	_ = w.WriteRSTStream(1, 3)
	_ = w.WriteGoAway(1, 0, nil)
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, r := pair(t)
		go func() { _, _ = io.Copy(io.Discard, r.conn) }()
		go func() {
			_, _ = r.conn.Write(b)
			_ = r.conn.(*net.UnixConn).CloseWrite()
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		ask := text("hi")
		var answer text
		if err := c.Invoke(ctx, "/s/M", &ask, &answer); ctx.Err() != nil {
			t.Fatalf("the call did not end: %v", err)
		}
	})
}

// FuzzReadFrame: the reader takes the frames that http2.Framer takes, with the same payloads.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 3, 0, 8, 0, 0, 0, 1, 1, 'a', 0})
	f.Add([]byte{0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{0, 0, 6, 1, 0x24, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0x88})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(b), readBufferLength)
		ref := http2.NewFramer(nil, bytes.NewReader(b))
		ref.SetMaxReadFrameSize(maxReadFrame)
		ref.AllowIllegalReads = true
		for {
			mine, err := readFrame(r)
			theirs, refErr := ref.ReadFrame()
			if err != nil || refErr != nil {
				return // each refuses a little that the other leaves to its caller
			}
			h := theirs.Header()
			if byte(h.Type) != mine.kind || byte(h.Flags) != mine.flags || h.StreamID != mine.stream || int(h.Length) != mine.size {
				t.Errorf("%+v, where http2 has %v", mine, h)
			}
			if d, ok := theirs.(*http2.DataFrame); ok && !bytes.Equal(d.Data(), mine.payload) {
				t.Errorf("data %x, where http2 has %x", mine.payload, d.Data())
			}
			if d, ok := theirs.(*http2.HeadersFrame); ok && !bytes.Equal(d.HeaderBlockFragment(), mine.payload) {
				t.Errorf("block %x, where http2 has %x", mine.payload, d.HeaderBlockFragment())
			}
		}
	})
}
