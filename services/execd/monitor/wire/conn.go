package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
)

// Limits of one control message.
const (
	// maxMessage bounds what a peer can make us allocate. A launch carries the
	// arguments and the environment of a process, which the kernel limits to a
	// quarter of the stack limit: 2 MiB by default (execve(2)).
	maxMessage = 8 << 20
	// maxFiles is the most descriptors that accompany a message.
	maxFiles = 8
)

// headSize is that of the two lengths before a message.
const headSize = 8

// Conn carries control messages over a stream socket: the length of the JSON
// and that of the parts (big endian, four bytes each), then both. Without JSON
// the rest is a compact message. Descriptors
// travel with the first byte (unix(7):
// a read never runs past the byte that ancillary data came with, so they
// cannot end up with another message).
//
// Send may be called from several goroutines, Recv from one.
type Conn struct {
	c         *net.UnixConn
	wr        sync.Mutex
	sameBuild atomic.Bool
}

// SameBuild says that the peer is of this build, and so reads compact messages.
func (c *Conn) SameBuild() { c.sameBuild.Store(true) }

// NewConn takes over c.
func NewConn(c *net.UnixConn) *Conn { return &Conn{c: c} }

// Close makes pending calls fail on both sides.
func (c *Conn) Close() error { return c.c.Close() }

// Send writes one message. The descriptors stay the caller's and must stay open
// until Send returns.
func (c *Conn) Send(m *Message, fds ...int) error {
	frame, err := c.encode(m)
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = syscall.UnixRights(fds...)
	}
	c.wr.Lock()
	defer c.wr.Unlock()
	n, _, err := c.c.WriteMsgUnix(frame, oob, nil)
	if err == nil && n < len(frame) {
		_, err = c.c.Write(frame[n:])
	}
	return err
}

// encode is the message as it is sent.
func (c *Conn) encode(m *Message) ([]byte, error) {
	if c.sameBuild.Load() {
		if b := m.compact(); b != nil {
			if headSize+len(b) > maxMessage {
				return nil, tooLarge(m, headSize+len(b))
			}
			frame := append(make([]byte, headSize, headSize+len(b)), b...)
			binary.BigEndian.PutUint32(frame[4:], uint32(len(b)))
			return frame, nil
		}
	}
	text, parts := m.split()
	body, err := json.Marshal(text)
	if err != nil {
		return nil, fmt.Errorf("encode %s message: %w", m.Op, err)
	}
	size := headSize + len(body)
	for _, p := range parts {
		size += binary.MaxVarintLen32 + len(p)
	}
	if size > maxMessage {
		return nil, tooLarge(m, size)
	}
	frame := append(make([]byte, headSize, size), body...)
	frame = appendParts(frame, parts)
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	binary.BigEndian.PutUint32(frame[4:], uint32(len(frame)-headSize-len(body)))
	return frame, nil
}

func tooLarge(m *Message, size int) error {
	return fmt.Errorf("encode %s message: %d bytes, at most %d allowed", m.Op, size, maxMessage)
}

// Recv reads one message and the descriptors that came with it (close-on-exec),
// which are then the caller's to close. io.EOF when the peer is gone.
//
// They are plain numbers, not files: a file would register a pipe that another
// process reads with this process's poller, and wake it at every write.
func (c *Conn) Recv() (*Message, []int, error) {
	var head [headSize]byte
	fds, err := c.recvHead(head[:])
	if err != nil {
		return nil, nil, err
	}
	m, err := c.recvBody(binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:]))
	if err != nil {
		CloseAll(fds)
		return nil, nil, err
	}
	return m, fds, nil
}

func (c *Conn) recvHead(head []byte) ([]int, error) {
	oob := make([]byte, syscall.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.c.ReadMsgUnix(head, oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	fds, err := parseRights(oob[:oobn])
	if err == nil && flags&syscall.MSG_CTRUNC != 0 {
		err = errors.New("descriptors lost on the way: out of descriptors")
	}
	if err == nil && n < len(head) {
		_, err = io.ReadFull(c.c, head[n:])
	}
	if err != nil {
		CloseAll(fds)
		return nil, err
	}
	return fds, nil
}

func (c *Conn) recvBody(text, parts uint32) (*Message, error) {
	if uint64(text)+uint64(parts) > maxMessage {
		return nil, fmt.Errorf("message of %d bytes, at most %d allowed", uint64(text)+uint64(parts), maxMessage)
	}
	body := make([]byte, text+parts)
	if _, err := io.ReadFull(c.c, body); err != nil {
		return nil, err
	}
	if text == 0 && parts > 0 {
		m, err := readCompact(body)
		if err != nil {
			return nil, fmt.Errorf("decode message: %w", err)
		}
		return m, nil
	}
	m := new(Message)
	if err := json.Unmarshal(body[:text], m); err != nil {
		return nil, fmt.Errorf("decode message: %w", err)
	}
	behind, err := readParts(body[text:])
	if err == nil {
		err = m.join(behind)
	}
	if err != nil {
		return nil, fmt.Errorf("decode message: %w", err)
	}
	return m, nil
}

// parseRights finds the descriptors in ancillary data. Go receives them with
// MSG_CMSG_CLOEXEC.
func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse ancillary data: %w", err)
	}
	var all []int
	for i := range msgs {
		if fds, err := syscall.ParseUnixRights(&msgs[i]); err == nil {
			all = append(all, fds...)
		}
	}
	return all, nil
}

// CloseAll closes descriptors; negative numbers stand for none.
func CloseAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			syscall.Close(fd)
		}
	}
}

// FD is the number of f's descriptor, without what [os.File.Fd] does to it (it
// makes the open file blocking, for every process that shares it). -1 for nil
// or a closed file; f must be kept open while the number is used.
func FD(f *os.File) int {
	if f == nil {
		return -1
	}
	n := -1
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { n = int(fd) })
	}
	return n
}
