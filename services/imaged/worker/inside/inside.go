// Package inside is what the program berth-unpack does: it shuts itself in, makes
// one layer of one archive, says what came of it, and ends.
//
// Everything that strangers wrote and that has a format of some depth is read
// here, deflate, zstd and tar, and nowhere with more rights than these. Package
// wire has the conversation with imaged, libcontainer/sandbox the walls.
package inside

import (
	"context"
	"crypto/sha256"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"

	"berth/libcontainer/sandbox"
	"berth/services/imaged/inflate"
	"berth/services/imaged/unpack"
	"berth/services/imaged/worker/wire"

	"github.com/opencontainers/go-digest"
)

// Main does all that; its result is for os.Exit. What it cannot put into a reply
// it writes to stderr.
func Main() int {
	syscall.Umask(0o077)
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func run(in io.Reader, out io.Writer) error {
	if err := sandbox.CloseFrom(wire.Archive + 1); err != nil { // what imaged was given by whoever started it
		return err
	}
	// Where memory is short, the kernel is to end this process before imaged, whose protection it has inherited. It may not
	// be told so everywhere, and goes on as well without.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0)
	q, err := wire.ReadRequest(in)
	if err != nil {
		return err
	}
	dir := os.NewFile(wire.Dir, "layer")
	archive := os.NewFile(wire.Archive, "archive")
	var reply wire.Reply
	if reply.Sandbox, err = Enter(dir, q); err != nil {
		return err
	}
	var r io.Reader = archive
	if q.Growing {
		r = &growing{file: archive, sizes: in}
	}
	if q.Digest != "" {
		reply.DiffID, err = content(r, q)
	} else {
		reply.Result, reply.DiffID, err = makeLayer(dir, r, q)
	}
	if err != nil {
		reply.Error = describe(err)
	}
	return wire.WriteReply(out, reply)
}

// Enter shuts the process in with dir, as q says.
func Enter(dir *os.File, q wire.Request) (sandbox.State, error) {
	s, err := sandbox.Enter(sandbox.Config{
		Dir: dir, Caps: wire.CapsFor(q.Options), Limits: limits(q), Filter: q.Filter, NoLandlock: q.NoLandlock,
	})
	if err != nil {
		return s, fmt.Errorf("enter the sandbox: %w", err)
	}
	runtime.GOMAXPROCS(max(q.Processors, 1))
	debug.SetMemoryLimit(collectAt)
	return s, nil
}

// makeLayer unpacks the archive r, compressed or not, into dir and gives the
// digest of what it is before compression. It reads r to the end.
func makeLayer(dir *os.File, r io.Reader, q wire.Request) (unpack.Result, string, error) {
	z, err := inflate.NewReader(r, q.Inflate)
	if err != nil {
		return unpack.Result{}, "", err
	}
	h := sha256.New()
	// Inflating, which takes longest, is one processor's work, unpacking and hashing another's.
	ahead := readAhead(z, h, z.Close)
	defer ahead.Close()
	result, err := unpack.Extract(context.Background(), dir, ahead, q.Options)
	if err != nil {
		return result, "", err
	}
	if _, err := io.Copy(io.Discard, ahead); err != nil { // the digest covers what is behind the end mark
		return result, "", err
	}
	ahead.Hashed()
	return result, digest.NewDigest(digest.SHA256, h).String(), nil
}

// content gives the digest of what the archive r is before compression, and makes nothing.
func content(r io.Reader, q wire.Request) (string, error) {
	if !q.Digest.Available() {
		return "", fmt.Errorf("digests by %q are not known here", q.Digest)
	}
	z, err := inflate.NewReader(r, q.Inflate)
	if err != nil {
		return "", err
	}
	h := q.Digest.Hash()
	ahead := readAhead(z, h, z.Close)
	defer ahead.Close()
	if _, err := io.Copy(io.Discard, ahead); err != nil {
		return "", err
	}
	ahead.Hashed()
	return digest.NewDigest(q.Digest, h).String(), nil
}

// describe makes err fit for the journey: imaged makes the like of it again.
func describe(err error) *wire.Error {
	e := &wire.Error{Kind: wire.Host, Text: err.Error()}
	var entry *unpack.EntryError
	var errno syscall.Errno
	switch {
	case errors.As(err, &entry):
		e.Kind, e.Entry, e.Reason = wire.BadArchive, entry.Name, entry.Reason
	case errors.Is(err, unpack.ErrRefused):
		e.Kind = wire.BadArchive
	case errors.Is(err, inflate.ErrRefused):
		e.Kind = wire.BadStream
	case errors.As(err, &errno):
		e.Errno = int(errno)
	}
	return e
}

// Bounds that no honest layer comes near.
const (
	maxMemory  = 1 << 30   // bytes; a zstd stream may ask for a window of 128 MiB, and what is known of the entries takes its part
	collectAt  = 192 << 20 // bytes, above which garbage is collected all the time
	maxSeconds = 3600      // of processor time
	spareFiles = 64        // beside one for each directory that an entry is below
)

func limits(q wire.Request) sandbox.Limits {
	return sandbox.Limits{
		Memory: maxMemory, FileSize: uint64(q.Inflate.Largest()), Seconds: maxSeconds,
		Files: uint64(q.Options.Limits.OrDefault().Depth) + spareFiles,
	}
}

// growing reads a file that somebody else is writing, as far as sizes say.
type growing struct {
	file      *os.File
	sizes     io.Reader
	off, size int64
}

func (g *growing) Read(p []byte) (int, error) {
	for g.off >= g.size {
		size, err := wire.ReadSize(g.sizes)
		if err != nil {
			return 0, err
		}
		g.size = size
	}
	n, err := g.file.ReadAt(p[:min(int64(len(p)), g.size-g.off)], g.off)
	g.off += int64(n)
	if n > 0 {
		return n, nil
	}
	if err == io.EOF {
		err = fmt.Errorf("the archive has fewer than %d bytes: %w", g.size, io.ErrNoProgress)
	}
	return 0, err
}
