// Package unpack turns the tar stream of an image layer into a directory tree.
//
// A layer comes from a stranger and the tree is made with privilege (owners,
// devices, file capabilities), so the rule of the package is that the archive
// never gets the kernel to resolve a path. Names are split into components
// here; each component is opened on its own, without following links, relative
// to a descriptor of the directory before it (see tree). There is no string
// that could point outside, no link that could be followed, and no moment
// between a check and a use. This needs nothing newer than openat(2), so it
// holds on every kernel the engine supports.
//
// A layer is unpacked without its parents. What it takes away from them is
// recorded in the tree in one of the forms of [Whiteouts], for a graph driver
// to act upon. Directories the archive does not mention are made as
// root:root 0755 with the time of the epoch, so that the same archive always
// gives the same tree.
//
// Not for: compression (package inflate), digests (package pull), or archives
// whose entries should be merged into an existing tree through its links.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// Limits bound what one archive may ask for. A zero field means its default.
type Limits struct {
	Entries   int64 // entries of all kinds; default 10 million
	Bytes     int64 // sum of the sizes of regular files, holes included; default 64 GiB
	PathBytes int   // length of an entry's name or link target; default 4096, PATH_MAX
	Depth     int   // components of a name, each of which may cost a descriptor; default 256
}

// DefaultLimits are far above every honest image and far below what hurts a host.
var DefaultLimits = Limits{Entries: 10_000_000, Bytes: 64 << 30, PathBytes: 4096, Depth: 256}

// OrDefault is l with the defaults where it has none.
func (l Limits) OrDefault() Limits {
	d := DefaultLimits
	if l.Entries > 0 {
		d.Entries = l.Entries
	}
	if l.Bytes > 0 {
		d.Bytes = l.Bytes
	}
	if l.PathBytes > 0 {
		d.PathBytes = l.PathBytes
	}
	if l.Depth > 0 {
		d.Depth = l.Depth
	}
	return d
}

// Options say how to unpack; the zero value keeps whiteouts as files and uses
// the default limits.
type Options struct {
	Whiteouts Whiteouts
	Limits    Limits
	// Image has one file made, [ImageFile], which holds the tree as an EROFS
	// file system, instead of the tree itself. Whiteouts must be overlayfs's.
	Image bool
	// BlockSize is that of the image in bytes; 0: the least. Kernels before 6.4 mount
	// images with blocks of a page only.
	BlockSize int
}

// Result tells what an archive held.
type Result struct {
	Entries int64 // entries of all kinds
	Bytes   int64 // sum of the sizes of regular files

	// RootSet says that the archive described its own root ("./"), so that the
	// owner, mode and times of the directory mean something.
	RootSet bool
	// RootOpaque says that the layer hides all layers below it. overlayfs does
	// not look for the opaque mark on a root directory; whoever stacks layers
	// must end the stack here.
	RootOpaque bool
}

// ErrRefused is in the chain of every error that blames the archive and not
// this machine: trying again with the same bytes cannot help.
var ErrRefused = errors.New("archive refused")

// EntryError is a refusal that one entry caused.
type EntryError struct {
	Name   string // as in the archive, possibly hostile: quote it
	Reason string
}

func (e *EntryError) Error() string {
	name := e.Name
	if len(name) > 128 {
		name = name[:128] + "…"
	}
	return fmt.Sprintf("archive entry %q: %s", name, e.Reason)
}

func (e *EntryError) Unwrap() error { return ErrRefused }

// Extract makes the entries of the uncompressed tar stream r inside dir, which
// must be an empty directory that nothing else writes to. It reads up to the
// end-of-archive mark and leaves what follows unread. dir stays open and stays
// the caller's.
//
// After an error the content of dir is of no use. An error that the archive is
// to blame for wraps [ErrRefused]; others come from the file system or from r.
// The caller needs CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP and MKNOD, and
// SYS_ADMIN for [OverlayTrusted]; for an image none of them.
func Extract(ctx context.Context, dir *os.File, r io.Reader, o Options) (Result, error) {
	m, err := newMaker(dir, o)
	if err != nil {
		return Result{}, err
	}
	x := &extractor{make: m, limits: o.Limits.OrDefault()}
	err = x.run(ctx, tar.NewReader(r))
	if err != nil {
		m.abandon()
		return x.result, err
	}
	return x.result, m.finish()
}

func newMaker(dir *os.File, o Options) (maker, error) {
	if o.Image {
		return newImage(dir, o)
	}
	return newDisk(dir, o.Whiteouts)
}

// extractor is the state of one Extract. It decides what an entry may be; the
// maker makes it.
type extractor struct {
	make   maker
	limits Limits
	result Result
}

func (x *extractor) run(ctx context.Context, tr *tar.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return tarError(err)
		}
		if err := x.entry(h, tr); err != nil {
			return err
		}
	}
}

// entry makes one entry of the archive, whose content comes from body.
func (x *extractor) entry(h *tar.Header, body io.Reader) error {
	if err := x.account(h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeXGlobalHeader { // git archive writes one; it describes no file
		return nil
	}
	name, err := splitName(h.Name, x.limits)
	if err != nil {
		return &EntryError{h.Name, err.Error()}
	}
	if len(name) == 0 {
		return x.rootEntry(h)
	}
	dirs, base := name[:len(name)-1], name[len(name)-1]
	if err := x.make.enter(dirs); err != nil {
		return named(h, err)
	}
	if w, ok := whiteoutOf(base); ok {
		return named(h, x.whiteout(w, len(dirs) == 0))
	}
	return named(h, x.create(base, h, body))
}

// account applies the limits that need no look at the tree.
func (x *extractor) account(h *tar.Header) error {
	x.result.Entries++
	if x.result.Entries > x.limits.Entries {
		return &EntryError{h.Name, fmt.Sprintf("more than %d entries", x.limits.Entries)}
	}
	if !isRegular(h.Typeflag) {
		return nil
	}
	// Size is the one after holes are filled, so a sparse bomb is refused
	// before its first byte.
	if h.Size < 0 || h.Size > x.limits.Bytes-x.result.Bytes {
		return &EntryError{h.Name, fmt.Sprintf("files add up to more than %d bytes", x.limits.Bytes)}
	}
	x.result.Bytes += h.Size
	return nil
}

// tarError tells damage of the archive, which is its own fault, from failures
// of the reader below it.
func tarError(err error) error {
	switch {
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, tar.ErrInsecurePath):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: ends in the middle of an entry: %w", ErrRefused, err)
	}
	return fmt.Errorf("read archive: %w", err)
}

// named adds the entry's name to an error that lacks it.
func named(h *tar.Header, err error) error {
	if err == nil {
		return nil
	}
	var refusal refusal
	if errors.As(err, &refusal) {
		return &EntryError{h.Name, string(refusal)}
	}
	return fmt.Errorf("unpack %q: %w", h.Name, err)
}

// refusal is a reason to refuse an entry, before the entry's name is known.
type refusal string

func (r refusal) Error() string { return string(r) }
