package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync"

	"berth/cli/wire"
)

// stream is one call. Its fields are under the transport's lock.
type stream struct {
	t       *transport
	ctx     context.Context
	unwatch func() bool // stops waiting for the context's end
	id      uint32

	window  int64 // what may be sent
	sentEnd bool

	changed sync.Cond    // data, header or end came
	buffer  bytes.Buffer // data that the receiver has not taken
	credit  int64        // what the server may send
	taken   int64        // what the receiver took and the server was not told of
	header  Metadata     // nil until it came
	err     error        // how the call ended: io.EOF when well
}

// ended takes the stream out of the transport. What was received before can still be taken.
func (s *stream) ended(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	delete(s.t.streams, s.id)
	if s.unwatch != nil {
		s.unwatch()
	}
	s.changed.Broadcast()
	s.t.room.Broadcast()
}

// abort ends the call from this side; the frame that says so is queued.
func (s *stream) abort(code uint32, err error) {
	if s.err == nil {
		s.t.out = appendRST(s.t.out, s.id, code)
		s.buffer.Reset()
		s.ended(err)
	}
}

// cancel is called when the context has ended.
func (s *stream) cancel() {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.id == 0 { // waits in transport.open, and looks for itself
		s.t.room.Broadcast()
		return
	}
	s.abort(codeCancel, contextStatus(s.ctx))
	s.t.flush()
}

// finish ends the call if it has not ended.
func (s *stream) finish() {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.err == nil {
		s.abort(codeCancel, statusf(Canceled, "cancelled"))
		s.t.flush()
	}
}

// prefix is the length of what precedes each message: whether it is compressed, and its length.
const prefix = 5

// send sends a message, and with end nothing after it. io.EOF means that the call has ended; receiving tells how.
func (s *stream) send(m wire.Message, end bool) error {
	b := m.AppendTo(make([]byte, prefix, 512))
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-prefix))
	t := s.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.sentEnd {
		return statusf(Internal, "message sent after the last one")
	}
	for len(b) > 0 {
		if s.err != nil {
			return io.EOF
		}
		n := int(min(int64(len(b)), s.window, t.window, int64(t.peer.maxFrame)))
		if n <= 0 {
			if len(t.out) > 0 && !t.writing {
				t.flush() // gives up the lock, so look again
			} else {
				t.room.Wait()
			}
			continue
		}
		s.appendData(b[:n], end && n == len(b))
		b = b[n:]
	}
	t.flush()
	return nil
}

func (s *stream) appendData(b []byte, end bool) {
	var flags byte
	if end {
		flags, s.sentEnd = flagEndStream, true
	}
	s.t.out = append(appendFrameHeader(s.t.out, len(b), frameData, flags, s.id), b...)
	s.window -= int64(len(b))
	s.t.window -= int64(len(b))
}

// closeSend tells the server that no more messages come.
func (s *stream) closeSend() {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.err == nil && !s.sentEnd {
		s.appendData(nil, true)
		s.t.flush()
	}
}

// receive waits for the next message. io.EOF: there is none, the call went well.
func (s *stream) receive(m wire.Message) error {
	b, err := s.message()
	if err != nil {
		return err
	}
	if err := m.Merge(b); err != nil {
		defer s.finish()
		return statusf(Internal, "the engine's answer cannot be read: %v", err)
	}
	return nil
}

// receiveOnly waits for the one message of a unary call and for the call's end.
func (s *stream) receiveOnly(m wire.Message) error {
	err := s.receive(m)
	if errors.Is(err, io.EOF) {
		return statusf(Internal, "the engine answered without a message")
	}
	if err != nil {
		return err
	}
	switch _, err = s.message(); {
	case err == nil:
		return statusf(Internal, "the engine answered with more than one message")
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

// message waits for the bytes of the next message.
func (s *stream) message() ([]byte, error) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.t.flush() // the header of a call that has sent no message yet
	var head [prefix]byte
	if err := s.fill(head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	var bad *Status
	switch {
	case head[0] != 0:
		bad = statusf(Internal, "the engine compressed a message, which it was not told to do")
	case n > maxMessage:
		bad = statusf(ResourceExhausted, "the engine's answer of %d bytes is larger than %d", n, maxMessage)
	}
	if bad != nil {
		s.abort(codeCancel, bad)
		s.t.flush()
		return nil, bad
	}
	b := make([]byte, n)
	err := s.fill(b)
	if errors.Is(err, io.EOF) {
		err = statusf(Internal, "the engine's answer ends inside a message")
	}
	return b, err
}

// fill takes exactly len(b) bytes. io.EOF: the call ended well before the first of them.
func (s *stream) fill(b []byte) error {
	for got := 0; got < len(b); {
		for s.buffer.Len() == 0 && s.err == nil {
			s.changed.Wait()
		}
		n, _ := s.buffer.Read(b[got:])
		if n == 0 {
			if got > 0 && errors.Is(s.err, io.EOF) {
				return statusf(Internal, "the engine's answer ends inside a message")
			}
			return s.err
		}
		got += n
		// Told in halves of the window: the server need not stop, and few frames are sent.
		if s.taken += int64(n); s.taken >= streamWindow/2 && s.err == nil {
			s.t.out = appendWindowUpdate(s.t.out, s.id, int(s.taken))
			s.credit += s.taken
			s.taken = 0
			s.t.flush()
		}
	}
	return nil
}

// data takes a DATA frame.
func (s *stream) data(f *frame) {
	switch s.credit -= int64(f.size); {
	case s.header == nil:
		s.abort(codeProtocol, statusf(Internal, "the engine sent data before the header"))
		return
	case s.credit < 0:
		s.abort(codeFlowControl, statusf(Internal, "the engine sent more than it was allowed to"))
		return
	}
	s.taken += int64(f.size - len(f.payload)) // padding is taken at once
	s.buffer.Write(f.payload)
	s.changed.Broadcast()
	if f.has(flagEndStream) {
		s.ended(statusf(Internal, "the engine's answer ends without a status"))
	}
}

// fields takes a header or, with end, a trailer.
func (s *stream) fields(md Metadata, end bool) {
	if s.header == nil {
		status, content := md.Get(":status"), md.Get("content-type")
		if strings.HasPrefix(status, "1") && !end {
			return // an interim response
		}
		if status != "200" || !strings.HasPrefix(content, "application/grpc") {
			s.abort(codeCancel, statusf(Unavailable, "what answers there is not the engine (HTTP status %q, content type %q)", status, content))
			return
		}
		s.header = md
		s.changed.Broadcast()
	} else if !end {
		s.abort(codeProtocol, statusf(Internal, "the engine sent a second header"))
		return
	}
	if !end {
		return
	}
	if !s.sentEnd { // the server has closed its half; this closes ours
		s.t.out = appendRST(s.t.out, s.id, codeNo)
	}
	if failure := statusFromTrailer(md); failure != nil {
		s.ended(failure)
		return
	}
	s.ended(io.EOF)
}

// awaitHeader waits for the header or the call's end.
func (s *stream) awaitHeader() (Metadata, error) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.t.flush()
	for s.header == nil && s.err == nil {
		s.changed.Wait()
	}
	if s.header == nil && !errors.Is(s.err, io.EOF) {
		return nil, s.err
	}
	return s.header, nil
}

// ServerStream is a call that is answered with any number of messages.
type ServerStream[Res any] struct{ s *stream }

// OpenServerStream calls a method, "/package.Service/Method".
func OpenServerStream[Res any](ctx context.Context, c *Conn, method string, in wire.Message) (*ServerStream[Res], error) {
	s, err := c.open(ctx, method)
	if err != nil {
		return nil, err
	}
	if err := s.send(in, true); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return &ServerStream[Res]{s}, nil
}

// Recv waits for the next message; io.EOF after the last one of a call that went well.
func (x *ServerStream[Res]) Recv() (*Res, error) { return receive[Res](x.s) }

// Header waits for the metadata that comes before the first message.
func (x *ServerStream[Res]) Header() (Metadata, error) { return x.s.awaitHeader() }

// BidiStream is a call in which both sides send messages as they like.
type BidiStream[Req, Res any] struct{ s *stream }

// OpenBidi calls a method, "/package.Service/Method". The server learns of it with the first Send, CloseSend or Recv.
func OpenBidi[Req, Res any](ctx context.Context, c *Conn, method string) (*BidiStream[Req, Res], error) {
	s, err := c.open(ctx, method)
	if err != nil {
		return nil, err
	}
	return &BidiStream[Req, Res]{s}, nil
}

// Send sends a message; io.EOF when the call has ended, and then Recv tells how.
func (x *BidiStream[Req, Res]) Send(m *Req) error { return x.s.send(any(m).(wire.Message), false) }

// CloseSend tells the server that no more messages come.
func (x *BidiStream[Req, Res]) CloseSend() { x.s.closeSend() }

// Recv waits for the next message; io.EOF after the last one of a call that went well.
func (x *BidiStream[Req, Res]) Recv() (*Res, error) { return receive[Res](x.s) }

// Header waits for the metadata that comes before the first message.
func (x *BidiStream[Req, Res]) Header() (Metadata, error) { return x.s.awaitHeader() }

func receive[Res any](s *stream) (*Res, error) {
	m := new(Res)
	if err := s.receive(any(m).(wire.Message)); err != nil {
		return nil, err
	}
	return m, nil
}
