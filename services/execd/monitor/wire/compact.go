package wire

import (
	"encoding/binary"
	"errors"
	"time"
)

// The messages of an exec, its request, its answer and its end, have a form of their own between an execd and a monitor of
// one build: no JSON, but a byte that says which it is, the number of the request and the fields in their order. Strings
// and bytes come after their length, numbers are varints.

// Forms of a compact message.
const (
	formExec     = 'x'
	formLaunched = 'l'
	formExit     = 'e'
)

var errCompact = errors.New("malformed compact message")

// compact is m in that form; nil if it has none.
func (m *Message) compact() []byte {
	switch {
	case m.Error != nil:
	case m.Op == OpExec && m.Exec != nil:
		x := m.Exec
		p := newPacker(formExec, m.Seq, 512+len(x.Config)+len(x.Filter))
		p.text(x.ID, x.Exec, string(x.Config), string(x.Filter))
		p.flags(x.Stdio.Terminal, x.Stdio.Stdin, x.Stdio.StdinOnce, x.Stdio.Discard)
		p.numbers(int64(x.Stdio.Rows), int64(x.Stdio.Columns))
		a := x.Attach
		if p.flags(a != nil); a != nil {
			p.flags(a.Stdin, a.Stdout, a.Stderr)
		}
		return p.b
	case m.Op == OpExec && m.Launched != nil:
		l := m.Launched
		p := newPacker(formLaunched, m.Seq, 512)
		p.numbers(int64(l.Pid), l.StartedAt.UnixNano(), l.Begun, int64(len(l.Warnings)))
		p.text(string(encodeSteps(l.Trace)))
		p.text(l.Warnings...)
		return p.b
	case m.Op == OpExit && m.Exit != nil && m.Exit.Exec != "" && m.Exit.Status == nil:
		x := m.Exit
		p := newPacker(formExit, m.Seq, 192+len(x.Error))
		p.text(x.ID, x.Exec, x.Error)
		p.flags(x.OOM)
		p.numbers(int64(x.Pid), int64(x.Code), x.At.UnixNano(), int64(x.Ran), int64(x.FirstByte), x.LogDropped)
		return p.b
	}
	return nil
}

// readCompact is the reverse; what is bytes shares b's memory.
func readCompact(b []byte) (*Message, error) {
	u := &unpacker{b: b[1:]}
	m := &Message{Seq: uint64(u.number())}
	switch b[0] {
	case formExec:
		x := &Exec{ID: u.text(), Exec: u.text(), Config: u.bytes(), Filter: u.bytes()}
		x.Stdio = Stdio{Terminal: u.flag(), Stdin: u.flag(), StdinOnce: u.flag(), Discard: u.flag()}
		x.Stdio.Rows, x.Stdio.Columns = uint16(u.number()), uint16(u.number())
		if u.flag() {
			x.Attach = &Streams{Stdin: u.flag(), Stdout: u.flag(), Stderr: u.flag()}
		}
		m.Op, m.Exec = OpExec, x
	case formLaunched:
		l := &Launched{Pid: int(u.number()), StartedAt: time.Unix(0, u.number()), Begun: u.number()}
		warnings := u.number()
		steps, err := decodeSteps(u.bytes())
		if err != nil {
			return nil, err
		}
		l.Trace = steps
		for ; warnings > 0 && !u.failed; warnings-- {
			l.Warnings = append(l.Warnings, u.text())
		}
		m.Op, m.Launched = OpExec, l
	case formExit:
		x := &Exit{ID: u.text(), Exec: u.text(), Error: u.text(), OOM: u.flag(), Pid: int(u.number()), Code: int(u.number()), At: time.Unix(0, u.number())}
		x.Ran, x.FirstByte, x.LogDropped = time.Duration(u.number()), time.Duration(u.number()), u.number()
		m.Op, m.Exit = OpExit, x
	default:
		return nil, errCompact
	}
	if u.failed || len(u.b) > 0 {
		return nil, errCompact
	}
	return m, nil
}

type packer struct{ b []byte }

func newPacker(form byte, seq uint64, size int) *packer {
	p := &packer{append(make([]byte, 0, size), form)}
	p.numbers(int64(seq))
	return p
}

func (p *packer) numbers(list ...int64) {
	for _, n := range list {
		p.b = binary.AppendVarint(p.b, n)
	}
}

func (p *packer) text(list ...string) {
	for _, s := range list {
		p.b = binary.AppendUvarint(p.b, uint64(len(s)))
		p.b = append(p.b, s...)
	}
}

func (p *packer) flags(list ...bool) {
	for _, f := range list {
		if f {
			p.b = append(p.b, 1)
		} else {
			p.b = append(p.b, 0)
		}
	}
}

// unpacker reads what a packer wrote. After a failure everything is zero.
type unpacker struct {
	b      []byte
	failed bool
}

func (u *unpacker) fail() {
	u.b, u.failed = nil, true
}

func (u *unpacker) number() int64 {
	n, used := binary.Varint(u.b)
	if used <= 0 {
		u.fail()
		return 0
	}
	u.b = u.b[used:]
	return n
}

func (u *unpacker) bytes() []byte {
	first, rest, err := cutBytes(u.b)
	if err != nil {
		u.fail()
		return nil
	}
	u.b = rest
	return first
}

func (u *unpacker) text() string { return string(u.bytes()) }

func (u *unpacker) flag() bool {
	if len(u.b) == 0 || u.b[0] > 1 {
		u.fail()
		return false
	}
	f := u.b[0] == 1
	u.b = u.b[1:]
	return f
}
