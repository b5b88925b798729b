package wire

import (
	"encoding/binary"
	"errors"
	"time"
)

// What is large or not text travels behind a message's JSON as it is: reading a
// configuration twice, as text inside text and with a filter in base64, took
// most of the time between execd's request and the start.
//
//	launch, exec      configuration, seccomp filter
//	their answers     the stages of the start

// split takes the parts out of a copy of m.
func (m *Message) split() (*Message, [][]byte) {
	out := *m
	switch {
	case m.Launch != nil:
		l := *m.Launch
		parts := [][]byte{l.Config, l.Filter}
		l.Config, l.Filter = nil, nil
		out.Launch = &l
		return &out, parts
	case m.Exec != nil:
		e := *m.Exec
		parts := [][]byte{e.Config, e.Filter}
		e.Config, e.Filter = nil, nil
		out.Exec = &e
		return &out, parts
	case m.Launched != nil:
		return m, [][]byte{encodeSteps(m.Launched.Trace)}
	}
	return m, nil
}

var errParts = errors.New("a message's parts are missing or malformed")

// join puts the parts back.
func (m *Message) join(parts [][]byte) (err error) {
	switch {
	case m.Launch != nil && len(parts) == 2:
		m.Launch.Config, m.Launch.Filter = parts[0], parts[1]
	case m.Exec != nil && len(parts) == 2:
		m.Exec.Config, m.Exec.Filter = parts[0], parts[1]
	case m.Launched != nil && len(parts) == 1:
		m.Launched.Trace, err = decodeSteps(parts[0])
	case m.Launch != nil || m.Exec != nil || m.Launched != nil:
		return errParts
	}
	return err
}

// appendParts writes each part as its length (uvarint) and its bytes.
func appendParts(b []byte, parts [][]byte) []byte {
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	return b
}

// readParts is the reverse; the parts share b's memory.
func readParts(b []byte) (parts [][]byte, err error) {
	for len(b) > 0 {
		var p []byte
		if p, b, err = cutBytes(b); err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}

func cutBytes(b []byte) (first, rest []byte, err error) {
	n, used := binary.Uvarint(b)
	if used <= 0 || n > uint64(len(b)-used) {
		return nil, nil, errParts
	}
	end := used + int(n)
	return b[used:end:end], b[end:], nil
}

// encodeSteps writes of each step the name and, as varints in nanoseconds,
// offset and duration.
func encodeSteps(steps []Step) []byte {
	b := make([]byte, 0, 64*len(steps))
	for _, s := range steps {
		b = binary.AppendUvarint(b, uint64(len(s.Name)))
		b = append(b, s.Name...)
		b = binary.AppendVarint(b, int64(s.Offset))
		b = binary.AppendVarint(b, int64(s.Duration))
	}
	return b
}

func decodeSteps(b []byte) (steps []Step, err error) {
	number := func() time.Duration {
		n, used := binary.Varint(b)
		if used <= 0 {
			err = errParts
			return 0
		}
		b = b[used:]
		return time.Duration(n)
	}
	for len(b) > 0 {
		var name []byte
		if name, b, err = cutBytes(b); err != nil {
			return nil, err
		}
		s := Step{Name: string(name), Offset: number()}
		if err == nil {
			s.Duration = number()
		}
		if err != nil {
			return nil, err
		}
		steps = append(steps, s)
	}
	return steps, nil
}
