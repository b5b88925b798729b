package monitor

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/services/execd/monitor/wire"
)

// stallLimit is how long a client may keep a process waiting: one without a log,
// before the client is cut off, as there is no other place for the output; and
// the one that the process was started for, before it is sent to the log.
const stallLimit = 10 * time.Second

// client is the far end of an attached stream.
type client struct {
	conn    *os.File
	raw     syscall.RawConn
	streams wire.Streams
	// patient: the process waits for this client, as it would for a pipe.
	patient bool

	mu sync.Mutex
	// deaf: no more output is sent, because it lagged, was cut off or left.
	deaf bool
}

// newClient takes over the stream descriptor f.
func newClient(f *os.File, streams wire.Streams) (*client, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &client{conn: f, raw: raw, streams: streams}, nil
}

func (c *client) wants(k wire.Kind) bool {
	if k == wire.KindStderr {
		return c.streams.Stderr
	}
	return c.streams.Stdout
}

// sendOrLag does not wait, unless the client is one to wait for. A client whose
// socket is full is told where in the log to go on, and gets nothing else.
func (c *client) sendOrLag(k wire.Kind, packet []byte, at wire.Position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deaf || !c.wants(k) {
		return
	}
	err := c.sendNow(packet)
	if errors.Is(err, unix.EAGAIN) && c.patient {
		c.conn.SetWriteDeadline(time.Now().Add(stallLimit))
		if _, err = c.conn.Write(packet); errors.Is(err, os.ErrDeadlineExceeded) {
			err = unix.EAGAIN
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, unix.EAGAIN):
		c.deaf = true
		go c.last(wire.KindLagged, at.Encode())
	default:
		c.deaf = true // it left; listen sees that too
	}
}

// sendWaiting waits up to stallLimit.
func (c *client) sendWaiting(k wire.Kind, packet []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deaf || !c.wants(k) {
		return
	}
	c.conn.SetWriteDeadline(time.Now().Add(stallLimit))
	_, err := c.conn.Write(packet)
	if err == nil {
		return
	}
	c.deaf = true
	if errors.Is(err, os.ErrDeadlineExceeded) {
		go c.last(wire.KindCutOff, []byte("the reader did not keep up"))
	}
}

// hurry shortens a wait for the client: the process has ended, and that is not
// to be kept from everyone by one reader.
func (c *client) hurry() { c.conn.SetWriteDeadline(time.Now().Add(stallLimit / 20)) }

// last sends a final packet, waiting for as long as the client stays.
func (c *client) last(k wire.Kind, data []byte) {
	c.conn.SetWriteDeadline(time.Time{})
	c.conn.Write(append([]byte{byte(k)}, data...))
}

// end tells the client that it has had all output, and how the process ended if that is known.
func (c *client) end(ending []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deaf {
		return
	}
	c.deaf = true
	if err := c.sendNow(append([]byte{byte(wire.KindEnd)}, ending...)); err != nil {
		go c.last(wire.KindEnd, ending)
	}
}

// sendNow does not wait; EAGAIN if it would have to.
func (c *client) sendNow(packet []byte) error {
	var err error
	werr := c.raw.Write(func(fd uintptr) bool {
		_, err = unix.SendmsgN(int(fd), packet, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return true
	})
	return errors.Join(werr, err)
}

// listen passes on the client's input until it leaves.
func (c *client) listen(s *stdio) {
	defer c.conn.Close()
	defer s.leave(c)
	for {
		p, n := c.read()
		if p == nil {
			break
		}
		if c.streams.Stdin {
			switch wire.Kind(p[0]) {
			case wire.KindStdin:
				s.writeStdin(p[1:n])
			case wire.KindCloseStdin:
				s.closeStdin()
			}
		}
		packets.Put(p)
	}
	if c.streams.Stdin && s.stdinOnce {
		s.closeStdin()
	}
}

// read waits for a packet; nil when the client has left.
func (c *client) read() (p *packet, n int) {
	err := c.raw.Read(func(fd uintptr) bool {
		p = packets.Get().(*packet)
		var err error
		for {
			n, err = unix.Read(int(fd), p[:])
			if err != unix.EINTR {
				break
			}
		}
		if n > 0 {
			return true
		}
		packets.Put(p)
		p = nil
		return err != unix.EAGAIN
	})
	if err != nil {
		return nil, 0
	}
	return p, n
}
