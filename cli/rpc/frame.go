package rpc

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Frame types and flags, RFC 9113, section 6.
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	frameRSTStream    = 0x3
	frameSettings     = 0x4
	framePushPromise  = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9

	flagAck        = 0x1 // of SETTINGS and PING
	flagEndStream  = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings, RFC 9113, section 6.5.2.
const (
	settingEnablePush        = 0x2
	settingMaxStreams        = 0x3
	settingInitialWindow     = 0x4
	settingMaxFrameSize      = 0x5
	settingMaxHeaderListSize = 0x6
)

// Error codes, RFC 9113, section 7.
const (
	codeNo             = 0x0
	codeProtocol       = 0x1
	codeFlowControl    = 0x3
	codeFrameSize      = 0x6
	codeRefusedStream  = 0x7
	codeCancel         = 0x8
	codeCompression    = 0x9
	codeEnhanceYour    = 0xb
	codeInadequateSafe = 0xc
)

const (
	preface          = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	frameHeaderSize  = 9
	maxReadFrame     = 16 << 10 // the smallest that the protocol allows to announce, and what servers send
	defaultWindow    = 65535
	maxWindow        = 1<<31 - 1
	maxStreamID      = 1<<31 - 1
	maxHeaderBlock   = 256 << 10 // of a response's HEADERS and CONTINUATIONs, compressed, and of its fields, expanded
	minMaxFrameSize  = 16 << 10
	maxMaxFrameSize  = 1<<24 - 1
	readBufferLength = frameHeaderSize + maxReadFrame
)

// connError ends the connection: the peer broke the protocol.
type connError struct {
	code uint32
	text string
}

func (e *connError) Error() string { return "HTTP/2: " + e.text }

func protocolError(format string, args ...any) error {
	return &connError{codeProtocol, fmt.Sprintf(format, args...)}
}

type frame struct {
	kind, flags byte
	stream      uint32
	payload     []byte // without padding; valid until the next frame is read
	size        int    // with padding: what flow control counts
}

func (f *frame) has(flag byte) bool { return f.flags&flag != 0 }

// readFrame reads the next frame; r's buffer holds a whole one. io.EOF means that the peer closed between two frames.
func readFrame(r *bufio.Reader) (frame, error) {
	h, err := r.Peek(frameHeaderSize)
	if err != nil {
		if errors.Is(err, io.EOF) && len(h) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, err
	}
	length := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	f := frame{kind: h[3], flags: h[4], stream: binary.BigEndian.Uint32(h[5:]) &^ (1 << 31)}
	if length > maxReadFrame {
		return frame{}, &connError{codeFrameSize, fmt.Sprintf("frame of %d bytes", length)}
	}
	b, err := r.Peek(frameHeaderSize + length)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, err
	}
	_, _ = r.Discard(len(b)) // they are in the buffer and stay there until the next Peek
	f.payload, f.size = b[frameHeaderSize:], length
	return f, f.check()
}

// check holds a frame against what its type demands.
func (f *frame) check() error {
	size := func(ok bool) error {
		if ok {
			return nil
		}
		return &connError{codeFrameSize, fmt.Sprintf("frame of type %d with %d bytes", f.kind, len(f.payload))}
	}
	onStream := true
	var err error
	switch f.kind {
	case frameData, frameHeaders:
		return f.unpad()
	case frameContinuation:
	case frameRSTStream:
		err = size(len(f.payload) == 4)
	case frameSettings:
		onStream, err = false, size(len(f.payload)%6 == 0 && (!f.has(flagAck) || len(f.payload) == 0))
	case framePing:
		onStream, err = false, size(len(f.payload) == 8)
	case frameGoAway:
		onStream, err = false, size(len(f.payload) >= 8)
	case frameWindowUpdate:
		return size(len(f.payload) == 4)
	default:
		return nil // PRIORITY and unknown types are skipped
	}
	if err == nil && onStream != (f.stream != 0) {
		return protocolError("frame of type %d on stream %d", f.kind, f.stream)
	}
	return err
}

// unpad takes padding and priority off the payload of DATA and HEADERS.
func (f *frame) unpad() error {
	if f.stream == 0 {
		return protocolError("frame of type %d on stream 0", f.kind)
	}
	pad := 0
	if f.has(flagPadded) {
		if len(f.payload) == 0 {
			return &connError{codeFrameSize, "padded frame without a length"}
		}
		pad, f.payload = int(f.payload[0]), f.payload[1:]
	}
	if f.kind == frameHeaders && f.has(flagPriority) {
		if len(f.payload) < 5 {
			return &connError{codeFrameSize, "HEADERS without their priority"}
		}
		f.payload = f.payload[5:]
	}
	if pad > len(f.payload) {
		return protocolError("more padding than frame")
	}
	f.payload = f.payload[:len(f.payload)-pad]
	return nil
}

// appendFrameHeader begins a frame of that length.
func appendFrameHeader(b []byte, length int, kind, flags byte, stream uint32) []byte {
	b = append(b, byte(length>>16), byte(length>>8), byte(length), kind, flags)
	return binary.BigEndian.AppendUint32(b, stream)
}

func appendUint32Frame(b []byte, kind byte, stream, v uint32) []byte {
	return binary.BigEndian.AppendUint32(appendFrameHeader(b, 4, kind, 0, stream), v)
}

func appendWindowUpdate(b []byte, stream uint32, n int) []byte {
	return appendUint32Frame(b, frameWindowUpdate, stream, uint32(n))
}

func appendRST(b []byte, stream, code uint32) []byte {
	return appendUint32Frame(b, frameRSTStream, stream, code)
}

func appendGoAway(b []byte, code uint32) []byte {
	b = appendFrameHeader(b, 8, frameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, 0) // the server opened no stream
	return binary.BigEndian.AppendUint32(b, code)
}

// appendSettings takes pairs of identifier and value.
func appendSettings(b []byte, pairs ...uint32) []byte {
	b = appendFrameHeader(b, len(pairs)/2*6, frameSettings, 0, 0)
	for i := 0; i < len(pairs); i += 2 {
		b = binary.BigEndian.AppendUint16(b, uint16(pairs[i]))
		b = binary.BigEndian.AppendUint32(b, pairs[i+1])
	}
	return b
}
