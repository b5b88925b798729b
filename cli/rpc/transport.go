package rpc

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2/hpack"
)

// What the server may send before it is told that it was taken: a stream until its receiver takes it, the connection
// until the reader has read it. Logs and images come in bulk; a larger window spares turns.
const (
	streamWindow = 1 << 20
	connWindow   = 4 << 20
)

// transport is one HTTP/2 connection.
type transport struct {
	file *os.File

	// Of the reader's goroutine alone.
	reader *bufio.Reader
	fields *hpack.Decoder
	block  headerBlock
	unread int // bytes of DATA read and not yet given back to the connection's window

	mu      sync.Mutex
	out     []byte // frames to be written next
	spare   []byte // the buffer that out does not use
	writing bool   // a goroutine is in flush
	streams map[uint32]*stream
	nextID  uint32
	window  int64     // what may be sent on the connection
	room    sync.Cond // the window grew, a stream ended, or the connection did
	peer    struct {
		window     int64 // of a new stream
		maxFrame   int
		maxStreams int
	}
	leaving bool  // GOAWAY came: no new streams
	err     error // why the connection ended
}

// headerBlock collects HEADERS and its CONTINUATIONs.
type headerBlock struct {
	stream    uint32 // 0: none is being collected
	endStream bool
	bytes     []byte
}

func newTransport(f *os.File) *transport {
	t := &transport{file: f, reader: bufio.NewReaderSize(f, readBufferLength), nextID: 1, window: defaultWindow, streams: map[uint32]*stream{}}
	t.room.L = &t.mu
	t.peer.window, t.peer.maxFrame, t.peer.maxStreams = defaultWindow, minMaxFrameSize, 1<<31-1
	t.out = append(make([]byte, 0, 1024), preface...)
	t.out = appendSettings(t.out, settingEnablePush, 0, settingInitialWindow, streamWindow, settingMaxHeaderListSize, maxHeaderBlock)
	t.out = appendWindowUpdate(t.out, 0, connWindow-defaultWindow)
	go t.read()
	return t
}

func (t *transport) usable() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err == nil && !t.leaving
}

func (t *transport) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end(statusf(Canceled, "the connection was closed"))
}

// open queues the header of a call.
func (t *transport) open(ctx context.Context, method string) (*stream, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &stream{t: t, ctx: ctx}
	s.changed.L = &t.mu
	if ctx.Done() != nil {
		s.unwatch = context.AfterFunc(ctx, s.cancel)
	}
	for len(t.streams) >= t.peer.maxStreams && t.err == nil && !t.leaving && ctx.Err() == nil {
		t.flush()
		t.room.Wait()
	}
	if err := t.refusal(ctx); err != nil {
		s.ended(err)
		return nil, err
	}
	s.id, s.window, s.credit = t.nextID, t.peer.window, streamWindow
	t.nextID += 2
	t.streams[s.id] = s
	deadline, _ := ctx.Deadline()
	// The block is far below the smallest frame size a server may demand: no CONTINUATION.
	block := appendRequestHeader(make([]byte, 0, 256), method, deadline)
	t.out = append(appendFrameHeader(t.out, len(block), frameHeaders, flagEndHeaders, s.id), block...)
	return s, nil
}

// refusal is why a call cannot begin.
func (t *transport) refusal(ctx context.Context) error {
	switch {
	case t.err != nil:
		return t.err
	case t.leaving || t.nextID > maxStreamID:
		return statusf(Unavailable, "the engine is about to close the connection")
	case ctx.Err() != nil:
		return contextStatus(ctx)
	}
	return nil
}

// flush writes what is queued. It is called with the lock, which it gives up meanwhile. When another goroutine is
// writing, that one goes on with what was added.
func (t *transport) flush() {
	if t.writing {
		return
	}
	t.writing = true
	for len(t.out) > 0 && t.err == nil {
		b := t.out
		t.out = t.spare[:0]
		t.mu.Unlock()
		_, err := t.file.Write(b)
		t.mu.Lock()
		t.spare = b[:0]
		if err != nil {
			// What the server said before it closed is still to be read, so the reader ends the connection.
			t.leaving = true
			t.out = nil
			break
		}
	}
	t.writing = false
}

// flushFromReader is flush for the goroutine that must never wait for the server to read.
func (t *transport) flushFromReader() {
	if len(t.out) == 0 || t.writing {
		return
	}
	go func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.flush()
	}()
}

// end ends the connection with the lock held, and with it the calls that run.
func (t *transport) end(err error) {
	if t.err != nil {
		return
	}
	t.err = err
	for _, s := range t.streams {
		s.ended(err)
	}
	t.room.Broadcast()
	_ = t.file.Close()
}

// read is the reader's goroutine.
func (t *transport) read() {
	t.fields = hpack.NewDecoder(4096, nil)
	t.fields.SetMaxStringLength(maxHeaderBlock)
	// The first word in Huffman's code has the package make its table. Now nobody waits for it: this begins to run when
	// the call has been sent.
	_, _ = hpack.HuffmanDecodeToString(hpack.AppendHuffmanString(nil, "0"))
	for {
		f, err := readFrame(t.reader)
		if err == nil {
			t.mu.Lock()
			err = t.handle(&f)
			if t.reader.Buffered() < frameHeaderSize { // or the next frame may add to it
				t.flushFromReader()
			}
			t.mu.Unlock()
		}
		if err != nil {
			t.broken(err)
			return
		}
	}
}

// broken ends the connection for what the reader met.
func (t *transport) broken(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var c *connError
	if !errors.As(err, &c) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // io.EOF is the good end of a call, also to errors.Is
		}
		t.end(&Status{Code: Unavailable, Message: "the engine closed the connection", Cause: &LostError{err}})
		return
	}
	if !t.writing { // one try to say why; it is not worth waiting for
		_ = t.file.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = t.file.Write(appendGoAway(nil, c.code))
	}
	t.end(&Status{Code: Internal, Message: "the engine's answer cannot be read: " + c.Error(), Cause: c})
}

// LostError is why a connection ended that had been made: the Cause of a Status that is Unavailable.
type LostError struct{ Err error }

// Error implements error.
func (e *LostError) Error() string { return e.Err.Error() }

// Unwrap returns the error of the system call, or io.ErrUnexpectedEOF.
func (e *LostError) Unwrap() error { return e.Err }

// handle takes one frame, with the lock held.
func (t *transport) handle(f *frame) error {
	if t.block.stream != 0 && (f.kind != frameContinuation || f.stream != t.block.stream) {
		return protocolError("frame of type %d inside a header", f.kind)
	}
	switch f.kind {
	case frameData:
		return t.data(f)
	case frameHeaders:
		t.block = headerBlock{stream: f.stream, endStream: f.has(flagEndStream), bytes: t.block.bytes[:0]}
		return t.headerPart(f)
	case frameContinuation:
		if t.block.stream == 0 {
			return protocolError("CONTINUATION without HEADERS")
		}
		return t.headerPart(f)
	case frameRSTStream:
		return t.reset(f)
	case frameSettings:
		return t.settings(f)
	case framePing:
		if !f.has(flagAck) {
			t.out = append(appendFrameHeader(t.out, 8, framePing, flagAck, 0), f.payload...)
		}
	case frameGoAway:
		t.goAway(binary.BigEndian.Uint32(f.payload) &^ (1 << 31))
	case frameWindowUpdate:
		return t.windowUpdate(f)
	case framePushPromise:
		return protocolError("PUSH_PROMISE, which was forbidden")
	}
	return nil
}

// streamOf is the stream a frame is for: nil for one that has ended, an error for one that never was.
func (t *transport) streamOf(f *frame) (*stream, error) {
	if f.stream >= t.nextID || f.stream%2 == 0 {
		return nil, protocolError("frame of type %d on stream %d, which was not opened", f.kind, f.stream)
	}
	return t.streams[f.stream], nil
}

func (t *transport) data(f *frame) error {
	s, err := t.streamOf(f)
	if err != nil {
		return err
	}
	if t.unread += f.size; t.unread > connWindow {
		return &connError{codeFlowControl, "more data than the connection's window"}
	}
	if t.unread >= connWindow/2 {
		t.out = appendWindowUpdate(t.out, 0, t.unread)
		t.unread = 0
	}
	if s != nil {
		s.data(f)
	}
	return nil
}

func (t *transport) reset(f *frame) error {
	s, err := t.streamOf(f)
	if s != nil {
		s.ended(statusFromReset(binary.BigEndian.Uint32(f.payload)))
	}
	return err
}

func (t *transport) goAway(last uint32) {
	t.leaving = true
	for id, s := range t.streams {
		if id > last {
			s.ended(statusf(Unavailable, "the engine is about to close the connection"))
		}
	}
	t.room.Broadcast()
}

func (t *transport) settings(f *frame) error {
	if f.has(flagAck) {
		return nil
	}
	for b := f.payload; len(b) > 0; b = b[6:] {
		v := binary.BigEndian.Uint32(b[2:])
		switch binary.BigEndian.Uint16(b) {
		case settingMaxStreams:
			t.peer.maxStreams = int(min(v, 1<<31-1))
		case settingInitialWindow:
			if v > maxWindow {
				return &connError{codeFlowControl, "initial window above 2^31-1"}
			}
			for _, s := range t.streams {
				s.window += int64(v) - t.peer.window // may become negative: RFC 9113, section 6.9.2
			}
			t.peer.window = int64(v)
		case settingMaxFrameSize:
			if v < minMaxFrameSize || v > maxMaxFrameSize {
				return protocolError("largest frame of %d bytes", v)
			}
			t.peer.maxFrame = int(v)
		}
	}
	t.out = appendFrameHeader(t.out, 0, frameSettings, flagAck, 0)
	t.room.Broadcast()
	return nil
}

func (t *transport) windowUpdate(f *frame) error {
	n := int64(binary.BigEndian.Uint32(f.payload) &^ (1 << 31))
	if f.stream == 0 {
		if n == 0 {
			return protocolError("window grown by 0")
		}
		if t.window += n; t.window > maxWindow {
			return &connError{codeFlowControl, "window of the connection above 2^31-1"}
		}
		t.room.Broadcast()
		return nil
	}
	s, err := t.streamOf(f)
	if s == nil {
		return err
	}
	if s.window += n; n == 0 || s.window > maxWindow {
		s.abort(codeFlowControl, statusf(Internal, "the engine grew the call's window by %d to %d", n, s.window))
	}
	t.room.Broadcast()
	return nil
}

// headerPart takes a HEADERS or CONTINUATION frame; the last one completes a header or trailer.
func (t *transport) headerPart(f *frame) error {
	s, err := t.streamOf(f)
	if err != nil {
		return err
	}
	if t.block.bytes = append(t.block.bytes, f.payload...); len(t.block.bytes) > maxHeaderBlock {
		return &connError{codeEnhanceYour, "header of more than 256 KiB"}
	}
	if !f.has(flagEndHeaders) {
		return nil
	}
	md, err := t.decode(t.block.bytes)
	if err != nil {
		return err
	}
	end := t.block.endStream
	t.block.stream = 0
	if s != nil { // decoded in any case: the table that the fields refer to must stay the server's
		s.fields(md, end)
	}
	return nil
}

// decode gives the fields of a header block.
func (t *transport) decode(block []byte) (Metadata, error) {
	md, size := Metadata{}, 0
	t.fields.SetEmitEnabled(true)
	t.fields.SetEmitFunc(func(f hpack.HeaderField) {
		if size += int(f.Size()); size > maxHeaderBlock {
			t.fields.SetEmitEnabled(false) // a few bytes may stand for megabytes
			return
		}
		md[f.Name] = f.Value
	})
	_, err := t.fields.Write(block)
	if err == nil {
		err = t.fields.Close()
	}
	if err != nil {
		return nil, &connError{codeCompression, err.Error()}
	}
	if size > maxHeaderBlock {
		return nil, &connError{codeEnhanceYour, "header of more than 256 KiB"}
	}
	return md, nil
}
