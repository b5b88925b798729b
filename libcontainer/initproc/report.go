package initproc

import (
	"encoding/binary"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"berth/libcontainer/internal/wire"
)

// A Report is what init tells the launcher, once: just before it becomes the
// command, or when a step failed.
type Report struct {
	Steps    []Step
	Warnings []string
	Console  bool // the master side of the terminal comes with the message
	Mounts   bool // then the mount namespace
	Failure  *Failure
}

// A Step is something that took time. Times are CLOCK_MONOTONIC, in
// nanoseconds.
type Step struct {
	Name       string
	Start, End int64
}

// A Failure is the error of one step. It has lost its Go types on the way, so
// it keeps what callers branch on: the errno, and Kind.
type Failure struct {
	Step  string
	Kind  Kind
	Errno unix.Errno // 0 if none
	Text  string
}

// Kind tells failures apart that are the user's doing.
type Kind int

// The kinds.
const (
	KindOther         Kind = iota
	KindNotFound           // the command does not exist: exit status 127
	KindNotExecutable      // the command exists and cannot be run: 126
	KindUser               // the user or group does not exist in the container, or cannot be
)

// stepError is an error that knows which step of the setup it ended.
type stepError struct {
	step string
	kind Kind
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// failure makes an error ready for travel.
func failure(err error) *Failure {
	f := &Failure{Step: "set up", Text: err.Error()}
	var step *stepError
	if errors.As(err, &step) {
		f.Step, f.Kind, f.Text = step.step, step.kind, step.err.Error()
	}
	errors.As(err, &f.Errno)
	return f
}

// encode is the message that carries r.
func (r *Report) encode() []byte {
	e := &wire.Encoder{Bytes: make([]byte, 0, 2<<10)}
	e.Uint(version)
	e.Uint(uint64(len(r.Steps)))
	for _, s := range r.Steps {
		e.String(s.Name)
		e.Int(int(s.Start))
		e.Int(int(s.End))
	}
	e.Strings(r.Warnings)
	e.Bool(r.Console)
	e.Bool(r.Mounts)
	e.Bool(r.Failure != nil)
	if f := r.Failure; f != nil {
		e.String(f.Step)
		e.Int(int(f.Kind))
		e.Uint(uint64(f.Errno))
		e.String(f.Text)
	}
	return e.Bytes
}

// DecodeReport reads a report.
func DecodeReport(b []byte) (*Report, error) {
	d := wire.NewDecoder(b)
	if d.Uint() != version {
		return nil, wire.ErrMalformed
	}
	r := &Report{
		Steps: wire.List(d, func(d *wire.Decoder) Step {
			return Step{d.String(), int64(d.Int()), int64(d.Int())}
		}),
		Warnings: d.Strings(),
		Console:  d.Bool(),
		Mounts:   d.Bool(),
	}
	if d.Bool() {
		r.Failure = &Failure{Step: d.String(), Kind: Kind(d.Int()), Errno: unix.Errno(d.Uint()), Text: d.String()}
	}
	return r, d.Err()
}

// A message on the socket is its length in four bytes, little-endian, and the
// bytes. maxMessage bounds what a reader takes; arguments and environment
// together cannot be larger than execve(2) allows, 6 MiB.
const maxMessage = 16 << 20

// maxFDs is the most descriptors the kernel lets travel with one message
// (SCM_MAX_FD, include/net/scm.h).
const maxFDs = 253

// ErrTooManyFDs is the error of Send for more descriptors than one message can
// carry, 253.
var ErrTooManyFDs = errors.New("more than 253 descriptors for one container")

// Send writes one message, and copies of descriptors beside it.
func Send(sock int, message []byte, fds ...int) error {
	if len(fds) > maxFDs {
		return ErrTooManyFDs
	}
	framed := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(message)), uint32(len(message)))
	framed = append(framed, message...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for len(framed) > 0 {
		n, err := unix.SendmsgN(sock, framed, oob, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		framed, oob = framed[n:], nil
	}
	return nil
}

// Receive reads one message and the descriptors that came with it, which are
// close-on-exec. At the end of the stream the message is nil.
func Receive(sock int) (message []byte, fds []int, err error) {
	var header [4]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFDs))
	n, oobn, err := recv(sock, header[:], oob)
	if err != nil || n == 0 {
		return nil, nil, err
	}
	if oobn > 0 {
		fds = rights(oob[:oobn])
	}
	if err := fill(sock, header[n:]); err != nil {
		return nil, fds, err
	}
	size := binary.LittleEndian.Uint32(header[:])
	if size > maxMessage {
		return nil, fds, wire.ErrMalformed
	}
	message = make([]byte, size)
	return message, fds, fill(sock, message)
}

func recv(sock int, buf, oob []byte) (n, oobn int, err error) {
	for {
		n, oobn, _, _, err = unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			return n, oobn, err
		}
	}
}

func fill(sock int, buf []byte) error {
	for len(buf) > 0 {
		n, _, err := recv(sock, buf, nil)
		if err != nil {
			return err
		}
		if n == 0 {
			return wire.ErrMalformed
		}
		buf = buf[n:]
	}
	return nil
}

func rights(oob []byte) []int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil
	}
	return fds
}

// bare strips the path from an error whose step names it already.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
