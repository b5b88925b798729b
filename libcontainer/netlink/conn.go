package netlink

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Conn is an rtnetlink socket. It acts on the namespace it was opened in, for
// as long as it is open, whoever holds it: the kernel asks CAP_NET_ADMIN of
// both the process that opened it and the one that sends through it. Safe for
// use by several goroutines; requests are served one batch at a time.
type Conn struct {
	mu   sync.Mutex
	fd   int
	seq  uint32
	recv []byte // during a call, from buffers
}

// buffers are lent to connections for the time of a call: there is one
// connection for each namespace being made, and most are used once. The kernel
// sizes its dumps to the reader's buffer.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// borrow takes the lock, and a buffer until giveBack.
func (c *Conn) borrow() (giveBack func()) {
	c.mu.Lock()
	b := buffers.Get().(*[]byte)
	c.recv = *b
	return func() {
		c.recv = nil
		buffers.Put(b)
		c.mu.Unlock()
	}
}

// Dial opens a socket in the network namespace of the calling thread.
func Dial() (*Conn, error) {
	fd, err := Socket()
	if err != nil {
		return nil, err
	}
	return NewConn(fd), nil
}

// Socket opens a bare rtnetlink socket in the network namespace of the calling
// thread, close-on-exec, for handing to another process. The caller owns the
// descriptor.
func Socket() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, os.NewSyscallError("socket netlink", err)
	}
	// Best effort: short acks (4.3), errors in words (4.12), dumps that obey
	// their filter (4.20). Without them acks echo the request and errors are
	// bare numbers, nothing else.
	for _, option := range []int{unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK} {
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1)
	}
	return fd, nil
}

// NewConn takes over an rtnetlink socket opened by [Socket], here or elsewhere.
func NewConn(fd int) *Conn {
	return &Conn{fd: fd}
}

// Release gives the socket back without closing it; the Conn is closed.
func (c *Conn) Release() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	fd := c.fd
	c.fd = -1
	return fd
}

// Close closes the socket.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return os.ErrClosed
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}

// An OpError is a request the kernel refused. It unwraps to the errno.
type OpError struct {
	Op    string // what was asked, in words
	Errno syscall.Errno
	Text  string // the kernel's own explanation (Linux 4.12), often empty
}

func (e *OpError) Error() string {
	if e.Text != "" {
		return fmt.Sprintf("%s: %s (%s)", e.Op, e.Errno.Error(), e.Text)
	}
	return e.Op + ": " + e.Errno.Error()
}

func (e *OpError) Unwrap() error { return e.Errno }

// burst bounds the requests in one sendmsg: each ack holds about 1 KiB of the
// socket's receive buffer (208 KiB by default), and they all queue up before
// the first is read.
const burst = 100

// Do sends the batch and waits for every request's answer. It returns the
// refused requests as *OpError, joined, in order; nil if all succeeded. An
// empty batch is no call at all.
func (c *Conn) Do(b *Batch) error {
	defer c.borrow()()
	var errs []error
	for first := 0; first < len(b.requests); first += burst {
		part := b.requests[first:min(first+burst, len(b.requests))]
		if err := c.exchange(b.enc.buf, part); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// exchange numbers, sends and awaits the given requests of buf.
func (c *Conn) exchange(buf []byte, part []request) error {
	base := c.seq + 1
	for i, r := range part {
		native.PutUint32(buf[r.start+8:], base+uint32(i))
	}
	c.seq += uint32(len(part))
	if err := c.send(buf[part[0].start:part[len(part)-1].end]); err != nil {
		return err
	}
	var errs []error
	for answered := 0; answered < len(part); {
		err := c.receive(func(m message) error {
			i := int(int32(m.seq - base))
			if m.kind != unix.NLMSG_ERROR || i < 0 || i >= len(part) {
				return nil // an answer to an earlier, abandoned request
			}
			answered++
			if errno, text := m.verdict(); errno != 0 {
				errs = append(errs, &OpError{part[i].op, errno, text})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

func (c *Conn) send(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return os.NewSyscallError("sendto netlink", err)
		}
	}
}

// message is one received message; body is valid only during the callback.
type message struct {
	kind, flags uint16
	seq         uint32
	body        []byte
}

// receive reads one datagram and calls visit for each message in it.
func (c *Conn) receive(visit func(message) error) error {
	n, err := c.read()
	if err != nil {
		return err
	}
	b := c.recv[:n]
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(native.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return fmt.Errorf("netlink message of %d bytes in a datagram of %d", size, len(b))
		}
		m := message{native.Uint16(b[4:]), native.Uint16(b[6:]), native.Uint32(b[8:]), b[unix.NLMSG_HDRLEN:size]}
		if err := visit(m); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// read takes one datagram from the kernel, and only from the kernel: netlink
// lets any process address any socket (port id 0 is the kernel's).
func (c *Conn) read() (int, error) {
	for {
		n, _, flags, from, err := unix.Recvmsg(c.fd, c.recv, nil, 0)
		switch sender, ok := from.(*unix.SockaddrNetlink); {
		case err == unix.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("recvmsg netlink", err)
		case !ok || sender.Pid != 0:
		case flags&unix.MSG_TRUNC != 0:
			return 0, fmt.Errorf("netlink datagram larger than %d bytes", len(c.recv))
		default:
			return n, nil
		}
	}
}

// verdict decodes NLMSG_ERROR: zero is an ack.
func (m message) verdict() (syscall.Errno, string) {
	if len(m.body) < 4 {
		return unix.EBADMSG, ""
	}
	errno := syscall.Errno(-int32(native.Uint32(m.body)))
	if errno == 0 || m.flags&unix.NLM_F_ACK_TLVS == 0 || len(m.body) < 4+unix.NLMSG_HDRLEN {
		return errno, ""
	}
	skip := 4 + unix.NLMSG_HDRLEN
	if m.flags&unix.NLM_F_CAPPED == 0 { // the request is echoed in full
		skip = 4 + (int(native.Uint32(m.body[4:]))+3)&^3
	}
	text := ""
	if skip <= len(m.body) {
		attributes(m.body[skip:], func(kind uint16, payload []byte) {
			if kind == unix.NLMSGERR_ATTR_MSG {
				text = unix.ByteSliceToString(payload)
			}
		})
	}
	return errno, text
}
