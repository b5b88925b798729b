package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// MaxChunk is the most data a stream packet carries. As a gRPC message it has to
// stay below 32 KiB: the next larger buffers of grpc-go's pool have 1 MiB, and a
// client that does not read would hold several.
const MaxChunk = 32<<10 - 256

// Kind is the first byte of a stream packet.
type Kind byte

// Packets from the monitor.
const (
	KindStdout Kind = 'o' // data
	KindStderr Kind = 'e' // data
	// KindLagged: the reader did not keep up. It carries the Position in the
	// log from which to go on; nothing follows but KindEnd.
	KindLagged Kind = 'L'
	KindCutOff Kind = 'X' // the reason; nothing follows
	// KindEnd: all output has been sent. That of an exec session carries its end, so that it need not be
	// waited for on the other connection; see Ending. A monitor of an earlier build sends nothing along.
	KindEnd Kind = 'E'
)

// Packets to the monitor.
const (
	KindStdin      Kind = 'i' // data
	KindCloseStdin Kind = 'c'
)

// Position is a place between two lines of a container's log.
type Position struct {
	File   uint64
	Offset int64
}

// Encode is the content of a KindLagged packet.
func (p Position) Encode() []byte {
	b := make([]byte, 16)
	binary.BigEndian.PutUint64(b, p.File)
	binary.BigEndian.PutUint64(b[8:], uint64(p.Offset))
	return b
}

// DecodePosition reverses Encode.
func DecodePosition(b []byte) (Position, error) {
	if len(b) != 16 {
		return Position{}, fmt.Errorf("log position of %d bytes, want 16", len(b))
	}
	return Position{binary.BigEndian.Uint64(b), int64(binary.BigEndian.Uint64(b[8:]))}, nil
}

// Ending is the content of a KindEnd packet: of an Exit its Code, At and Error.
func Ending(e *Exit) []byte {
	b := binary.AppendVarint(make([]byte, 0, 16+len(e.Error)), int64(e.Code))
	b = binary.AppendVarint(b, e.At.UnixNano())
	return append(b, e.Error...)
}

// DecodeEnding reverses Ending.
func DecodeEnding(b []byte) (*Exit, error) {
	code, n := binary.Varint(b)
	if n <= 0 {
		return nil, errParts
	}
	at, m := binary.Varint(b[n:])
	if m <= 0 {
		return nil, errParts
	}
	return &Exit{Code: int(code), At: time.Unix(0, at), Error: string(b[n+m:])}, nil
}

// Stream is execd's end of a client's stdio. Recv and Send may run at the same
// time, each in one goroutine.
type Stream struct {
	c   *os.File // a file does what a net.UnixConn does here, and needs no second descriptor
	out [1 + MaxChunk]byte
}

// streamBuffer is how far a reader may lag before the monitor sends it to the
// log: bytes of packets with the kernel's overhead (socket(7), SO_SNDBUF).
const streamBuffer = 512 << 10

// NewStream makes a pair: execd's end, and the descriptor to send to the monitor,
// which the caller closes.
func NewStream() (*Stream, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	// May exceed net.core.wmem_max for root; else the default of some 200 KiB stays.
	syscall.SetsockoptInt(fds[1], syscall.SOL_SOCKET, syscall.SO_SNDBUFFORCE, streamBuffer)
	return &Stream{c: os.NewFile(uintptr(fds[0]), "stream")}, os.NewFile(uintptr(fds[1]), "stream"), nil
}

// Recv waits for a packet and puts it into buf, which holds at least
// MaxChunk+1 bytes; data is part of it. io.EOF when the monitor is gone.
func (s *Stream) Recv(buf []byte) (kind Kind, data []byte, err error) {
	n, err := s.c.Read(buf)
	if err != nil {
		return 0, nil, err
	}
	if n == 0 {
		return 0, nil, io.EOF
	}
	return Kind(buf[0]), buf[1:n], nil
}

// SendStdin blocks while the process does not read. Empty data is ignored.
func (s *Stream) SendStdin(data []byte) error {
	for len(data) > 0 {
		n := copy(s.out[1:], data)
		s.out[0] = byte(KindStdin)
		if _, err := s.c.Write(s.out[:1+n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// CloseStdin gives the process end-of-file after what was sent.
func (s *Stream) CloseStdin() error {
	_, err := s.c.Write([]byte{byte(KindCloseStdin)})
	return err
}

// Close tells the monitor that the client left.
func (s *Stream) Close() error { return s.c.Close() }
