// Package wire is what imaged and berth-unpack say to each other.
//
//	imaged                                       berth-unpack
//	──────                                       ────────────
//	0  ── request, then sizes of the archive ──►
//	1  ◄── one reply ──────────────────────────
//	2  ◄── last words ─────────────────────────
//	3     directory of the layer                 works in it
//	4     the archive: a pipe, or a file         reads it
//	      that may still be growing
//
// All of them are pipes and files: berth-unpack has no socket. The archive is
// its own business until it replies; imaged ends it by a signal.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"berth/libcontainer/caps"
	"berth/libcontainer/sandbox"
	"berth/services/imaged/inflate"
	"berth/services/imaged/unpack"

	"github.com/opencontainers/go-digest"
)

// Numbers of descriptors in berth-unpack, after those of stdin, stdout and stderr.
const (
	Dir     = 3
	Archive = 4
)

// Caps are what berth-unpack keeps: making files of every owner and kind takes
// these. Enter is what it has need of besides, to shut itself in.
var (
	Caps  = must(caps.ParseSet([]string{"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP", "MKNOD"}))
	Enter = must(caps.ParseSet([]string{"SYS_CHROOT"}))
	// Aside are those that whoever starts it has no use for itself.
	Aside = must(caps.ParseSet([]string{"SETFCAP", "MKNOD", "SYS_CHROOT"}))
)

// CapsFor is what of Caps making a layer takes: one that is a single file is made
// without any, its owners and devices being only written down.
func CapsFor(o unpack.Options) caps.Set {
	if o.Image {
		return 0
	}
	return Caps
}

func must(s caps.Set, err error) caps.Set {
	if err != nil {
		panic(err)
	}
	return s
}

// Protocol goes up when two versions would misunderstand each other.
const Protocol = 2

// Request says what to do.
type Request struct {
	Protocol int            `json:"protocol"`
	Options  unpack.Options `json:"options"`
	Inflate  inflate.Limits `json:"inflate"`
	// Processors are how many it may use (GOMAXPROCS).
	Processors int `json:"processors"`
	// Growing: the archive is a file that sizes follow for, see WriteSize. Otherwise it is read to its end.
	Growing bool `json:"growing,omitempty"`
	// Digest is the algorithm of the wanted digest. Empty: sha256, and the layer is made; otherwise it is not.
	Digest digest.Algorithm `json:"digest,omitempty"`
	// Filter is the system calls that are left, compiled; none: all are.
	Filter []byte `json:"filter,omitempty"`
	// NoLandlock is for tests, of kernels without it.
	NoLandlock bool `json:"no_landlock,omitempty"`
}

// Reply says what came of it.
type Reply struct {
	Result  unpack.Result `json:"result"`
	DiffID  string        `json:"diff_id"` // digest of the archive before compression
	Sandbox sandbox.State `json:"sandbox"`
	Error   *Error        `json:"error,omitempty"`
}

// Kind says whom a failure is to blame on.
type Kind string

const (
	BadArchive Kind = "archive" // unpack.ErrRefused
	BadStream  Kind = "stream"  // inflate.ErrRefused
	Host       Kind = "host"    // this machine
)

// Error is a failure. Its texts may hold what strangers wrote.
type Error struct {
	Kind   Kind   `json:"kind"`
	Text   string `json:"text"`
	Entry  string `json:"entry,omitempty"`  // with Reason: an unpack.EntryError
	Reason string `json:"reason,omitempty"` //
	Errno  int    `json:"errno,omitempty"`  // of a failed system call
}

// MaxReply bounds a reply, and maxRequest a request: names of entries have up to
// 4 KiB, filters 32 KiB.
const (
	MaxReply   = 64 << 10
	maxRequest = 256 << 10
)

// WriteRequest writes r, its length first: sizes follow.
func WriteRequest(w io.Writer, r Request) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

// ReadRequest reads what WriteRequest wrote and nothing behind it.
func ReadRequest(r io.Reader) (q Request, err error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return q, fmt.Errorf("read request: %w", err)
	}
	n := binary.LittleEndian.Uint32(length[:])
	if n > maxRequest {
		return q, errors.New("request is too long")
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return q, fmt.Errorf("read request: %w", err)
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return q, fmt.Errorf("read request: %w", err)
	}
	if q.Protocol != Protocol {
		return q, fmt.Errorf("imaged speaks version %d of the protocol, berth-unpack %d: restart imaged after an upgrade", q.Protocol, Protocol)
	}
	return q, nil
}

// ended, instead of a size, says that the file grows no more.
const ended = -1

// WriteSize says that the archive has size bytes by now.
func WriteSize(w io.Writer, size int64) error {
	_, err := w.Write(binary.LittleEndian.AppendUint64(nil, uint64(size)))
	return err
}

// WriteEnd says that the size before was the last.
func WriteEnd(w io.Writer) error { return WriteSize(w, ended) }

// ReadSize reads what WriteSize wrote; io.EOF is the end.
func ReadSize(r io.Reader) (int64, error) {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, fmt.Errorf("imaged is gone: %w", io.ErrUnexpectedEOF)
	}
	size := int64(binary.LittleEndian.Uint64(b[:]))
	if size == ended {
		return 0, io.EOF
	}
	return size, nil
}

// maxText bounds each text of a reply, so that all of them fit.
const maxText = 8 << 10

// WriteReply writes r.
func WriteReply(w io.Writer, r Reply) error {
	if e := r.Error; e != nil {
		for _, text := range []*string{&e.Text, &e.Entry, &e.Reason} {
			*text = (*text)[:min(len(*text), maxText)]
		}
	}
	return json.NewEncoder(w).Encode(r)
}

// ReadReply reads a reply from somebody who may not be what we started any more.
// io.EOF: there is none.
func ReadReply(r io.Reader) (p Reply, err error) {
	err = json.NewDecoder(io.LimitReader(r, MaxReply)).Decode(&p)
	return p, err
}
