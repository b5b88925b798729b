package monitor

import (
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/services/execd/logfile"
	"berth/services/execd/monitor/wire"
)

// packet is a buffer between a pipe, the log and the clients; its first byte is
// the kind of a stream packet.
type packet [1 + wire.MaxChunk]byte

// packets: a pipe that is silent holds none.
var packets = sync.Pool{New: func() any { return new(packet) }}

// stdio is a process's standard streams, seen from outside.
type stdio struct {
	stdin    *os.File // write end; nil: closed or never open
	terminal *os.File // master
	outputs  []output

	// turn orders output: the log and each client see chunks of both streams in
	// the same order. It is held while a client is waited for; mu is not.
	turn sync.Mutex

	mu      sync.Mutex
	log     *logfile.Writer // nil: none
	clients []*client       // never changed in place
	closed  bool
	first   time.Time // when the first output was seen; longAgo: another monitor may have seen it

	stdinMu   sync.Mutex
	stdinOnce bool
	pumps     sync.WaitGroup
	// onStdinClosed tells execd to close its copy.
	onStdinClosed func()
}

// output is one stream the process writes.
type output struct {
	f    *os.File
	kind wire.Kind
	s    logfile.Stream
}

// pump starts to read the outputs.
func (s *stdio) pump() {
	for _, o := range s.outputs {
		s.pumps.Add(1)
		go func() {
			defer s.pumps.Done()
			for s.step(o) {
			}
		}()
	}
}

// step waits for a chunk and passes it on; false at the end of the stream.
func (s *stdio) step(o output) bool {
	p, n := readPacket(o.f)
	if p == nil {
		return false
	}
	s.pass(o, p, n)
	return true
}

// pass gives n bytes at p[1:] to the log and the clients, and p back.
func (s *stdio) pass(o output, p *packet, n int) {
	defer packets.Put(p)
	p[0] = byte(o.kind)
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	if s.first.IsZero() {
		s.first = time.Now()
	}
	clients, logged := s.clients, s.log != nil
	var at wire.Position
	if logged {
		at = wire.Position(s.log.Position())
		s.log.Write(time.Now(), o.s, p[1:1+n])
	}
	s.mu.Unlock()
	for _, c := range clients {
		if logged {
			c.sendOrLag(o.kind, p[:1+n], at)
		} else {
			c.sendWaiting(o.kind, p[:1+n])
		}
	}
}

// readPacket waits for data and only then takes a buffer; nil at the end of the
// stream, which for the master of a terminal is EIO.
func readPacket(f *os.File) (p *packet, n int) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, 0
	}
	err = rc.Read(func(fd uintptr) bool {
		var again bool
		p, n, again = readNow(int(fd))
		return !again
	})
	if err != nil {
		return nil, 0
	}
	return p, n
}

// readNow reads what is there.
func readNow(fd int) (p *packet, n int, again bool) {
	p = packets.Get().(*packet)
	for {
		n, err := unix.Read(fd, p[1:])
		if err == unix.EINTR {
			continue
		}
		if n > 0 {
			return p, n, false
		}
		packets.Put(p)
		return nil, 0, err == unix.EAGAIN
	}
}

// finish is called when the process has ended: everything it wrote is in the
// pipes by now. That is passed on, and no more is waited for: another process
// may have inherited the pipe. The clients get ending (wire.Ending).
func (s *stdio) finish(ending []byte) {
	for _, o := range s.outputs {
		o.f.SetReadDeadline(time.Unix(1, 0))
	}
	s.mu.Lock()
	s.closed = true // no client may join: it would miss the end
	clients := s.clients
	s.mu.Unlock()
	for _, c := range clients {
		c.hurry()
	}
	s.pumps.Wait()
	for _, o := range s.outputs {
		s.drain(o)
	}
	s.mu.Lock()
	s.clients = nil
	if s.log != nil {
		s.log.Close()
	}
	s.mu.Unlock()
	for _, c := range clients {
		c.end(ending)
	}
	s.closeStdin()
}

// drain passes on what is in the pipe.
func (s *stdio) drain(o output) {
	rc, err := o.f.SyscallConn()
	if err != nil {
		return
	}
	for more := true; more; {
		var p *packet
		var n int
		if err := rc.Control(func(fd uintptr) { p, n, _ = readNow(int(fd)) }); err != nil {
			return
		}
		if more = p != nil; more {
			s.pass(o, p, n)
		}
	}
}

// release closes the outputs. What an ended exec session left behind in its
// container may still write to them, and must not be killed by SIGPIPE for it:
// with linger its output is read and thrown away until it ends.
func (s *stdio) release(linger bool) {
	for _, o := range s.outputs {
		if !linger {
			o.f.Close()
			continue
		}
		o.f.SetReadDeadline(time.Time{})
		go func() {
			defer o.f.Close()
			for {
				p, _ := readPacket(o.f)
				if p == nil {
					return
				}
				packets.Put(p)
			}
		}()
	}
}

// join adds a client, unless the process has ended, and says where in the log
// its output begins.
func (s *stdio) join(c *client) (wire.Position, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return wire.Position{}, false
	}
	s.clients = append(slices.Clip(s.clients), c) // others iterate over the old slice
	if s.log == nil {
		return wire.Position{}, true
	}
	return wire.Position(s.log.Position()), true
}

func (s *stdio) leave(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients = slices.DeleteFunc(slices.Clone(s.clients), func(o *client) bool { return o == c })
}

// writeStdin blocks while the process does not read.
func (s *stdio) writeStdin(data []byte) {
	s.stdinMu.Lock()
	f := s.stdin
	s.stdinMu.Unlock()
	if s.terminal != nil {
		f = s.terminal
	}
	if f != nil {
		f.Write(data) // EPIPE: the process closed it; nobody to tell
	}
}

// closeStdin gives the process end-of-file. A terminal has no such state.
func (s *stdio) closeStdin() {
	s.stdinMu.Lock()
	f := s.stdin
	s.stdin = nil
	s.stdinMu.Unlock()
	if f == nil {
		return
	}
	f.Close()
	if s.onStdinClosed != nil {
		s.onStdinClosed()
	}
}

func (s *stdio) resize(rows, columns uint16) error {
	if s.terminal == nil {
		return &wire.Error{Code: wire.CodeInvalid, Text: "the process has no terminal"}
	}
	rc, err := s.terminal.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	return errors.Join(cerr, os.NewSyscallError("ioctl TIOCSWINSZ", err))
}

var longAgo = time.Unix(0, 0)

// spoke is when the first output was seen; zero: there was none.
func (s *stdio) spoke() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first
}

// dropped counts output that the log could not take.
func (s *stdio) dropped() int64 {
	if s.log == nil {
		return 0
	}
	return s.log.Dropped()
}
