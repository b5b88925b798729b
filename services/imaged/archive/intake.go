package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"berth/services/imaged/images"
	"berth/services/imaged/inflate"
	"berth/services/imaged/manifest"
	"berth/services/imaged/unpack"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// intake reads an archive from its beginning to its end, once: documents into
// memory, layers into the store. What they belong to is found out afterwards,
// for archives say so at their end.
type intake struct {
	*Loader
	lease    *images.Lease
	progress func(Progress)
	whole    bool // what is no image, but of the index of one, is wanted, too

	entries map[string]*entry // by name
	blobs   map[digest.Digest]*entry
	held    int64 // bytes of documents in memory

	layers *errgroup.Group
	commit *committer
	open   chan struct{} // one element for each layer that is not committed yet

	// content is the digest by an algorithm of what a layer in the store contains.
	content func(blob digest.Digest, a digest.Algorithm) (digest.Digest, error)
}

// entry is what an archive has under a name.
type entry struct {
	kind   kind
	link   string        // of a link: what it says it leads to
	hard   bool          // of a link: that is a name from the root
	raw    []byte        // of a document: all of it
	digest digest.Digest // of a document or layer
	size   int64
	form   inflate.Kind  // of a layer: how it is compressed
	diffID digest.Digest // of a layer: set once it is committed
	// notLayer is why what looks like a layer could not be unpacked.
	notLayer error
}

type kind int

const (
	directory kind = iota
	link
	document // JSON
	layer    // a tar archive, compressed or not
	blob     // neither, or a document that is too large to be held in memory; on the disk
	other    // of no use
)

// read takes in the whole stream r.
func (in *intake) read(ctx context.Context, r io.Reader) (err error) {
	limits := in.Workers.Inflate
	limits.Bytes = 1 << 50 // of all layers together: the disk is the limit, and what they expand to
	z, err := inflate.NewReader(r, limits)
	if err != nil {
		return streamError(err)
	}
	defer z.Close()
	in.layers, ctx = errgroup.WithContext(ctx)
	err = in.readEntries(ctx, tar.NewReader(z))
	if err == nil {
		err = trailer(z)
	}
	if lerr := in.layers.Wait(); lerr != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = lerr // what ended the reading, too
	}
	return err
}

func (in *intake) readEntries(ctx context.Context, tr *tar.Reader) error {
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return streamError(err)
		}
		if n >= maxEntries {
			return refused("it has more than %d entries", maxEntries)
		}
		if err := in.entry(ctx, h, tr); err != nil {
			return err
		}
	}
}

// trailer makes sure that nothing but padding follows the archive's end mark:
// other readers might go on there.
func trailer(r io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if len(bytes.TrimLeft(buf[:n], "\x00")) > 0 {
			return refused("something follows its end")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return streamError(err)
		}
	}
}

// streamError tells damage of the archive from failures to receive it.
func streamError(err error) error {
	switch {
	case errors.Is(err, inflate.ErrRefused), errors.Is(err, unpack.ErrRefused):
		return refused("%v", err)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, tar.ErrInsecurePath):
		return refused("it is not a tar archive, or damaged")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return refused("it ends too early")
	}
	return fmt.Errorf("read archive: %w", err)
}

func (in *intake) entry(ctx context.Context, h *tar.Header, body io.Reader) error {
	name, err := entryName(h.Name)
	if err != nil {
		return err
	}
	e := &entry{size: h.Size}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeDir:
		e.kind = directory
	case tar.TypeSymlink, tar.TypeLink:
		e.kind, e.link, e.hard = link, h.Linkname, h.Typeflag == tar.TypeLink
	case tar.TypeReg:
		if sparse(h) {
			return refused("entry %.100q has holes", name)
		}
	default:
		return refused("entry %.100q is neither file, directory nor link", name).Hint(importHint)
	}
	if old := in.entries[name]; old != nil {
		if old.kind == directory && e.kind == directory {
			return nil
		}
		return refused("entry %.100q occurs twice", name)
	}
	in.entries[name] = e
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	return in.file(ctx, name, e, body)
}

func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// file takes in a regular file by what it looks like: names mean nothing yet.
func (in *intake) file(ctx context.Context, name string, e *entry, body io.Reader) error {
	want, err := blobDigest(name)
	if err != nil {
		return err
	}
	buffered := bufio.NewReaderSize(body, 64<<10)
	head, err := buffered.Peek(blockSize)
	switch {
	case err == io.EOF:
		err = nil // it is shorter
	case err != nil:
		return streamError(err)
	}
	switch {
	case isLayer(head):
		if limit := in.Workers.Inflate.Largest(); e.size > limit {
			return refused("layer %.100q has more than %d bytes", name, limit)
		}
		e.kind, e.form = layer, inflate.KindOf(head)
		err = in.layer(ctx, name, e, want, buffered)
	case isDocument(head) && e.size <= manifest.MaxBytes && (want == "" || in.held+e.size <= maxDocument):
		e.kind = document
		err = in.document(e, want, buffered)
	case want != "" && (in.whole || isDocument(head) && e.size <= manifest.MaxBytes):
		e.kind = blob
		err = in.blob(ctx, e, want, buffered)
	default:
		e.kind = other
	}
	if err == nil && e.digest != "" {
		in.blobs[e.digest] = e
	}
	return err
}

// blockSize is the unit of tar archives.
const blockSize = 512

// isLayer recognises a tar archive by the checksum of its first header, an
// empty one by its end mark, and the compressions that layers come in.
func isLayer(head []byte) bool {
	if inflate.KindOf(head) != inflate.None {
		return true
	}
	if len(head) < blockSize {
		return false
	}
	const from, to = 148, 156 // the checksum's own field counts as blanks
	sum := 0
	for i, b := range head {
		if i >= from && i < to {
			b = ' '
		}
		sum += int(b)
	}
	field := strings.Trim(string(head[from:to]), " \x00")
	if field == "" {
		return len(bytes.TrimLeft(head, "\x00")) == 0
	}
	have, err := strconv.ParseInt(field, 8, 32)
	return err == nil && int(have) == sum
}

func isDocument(head []byte) bool {
	head = bytes.TrimLeft(head, " \t\r\n")
	return len(head) > 0 && (head[0] == '{' || head[0] == '[')
}

// document keeps a JSON document in memory.
func (in *intake) document(e *entry, want digest.Digest, body io.Reader) error {
	if in.held += e.size; in.held > maxDocument {
		return refused("its documents have more than %d MiB", maxDocument>>20)
	}
	var err error
	if e.raw, err = io.ReadAll(body); err != nil {
		return streamError(err)
	}
	algorithm := digest.Canonical
	if want != "" {
		algorithm = want.Algorithm()
	}
	if e.digest = algorithm.FromBytes(e.raw); want != "" && e.digest != want {
		return refused("blob %s came as %s", want, e.digest)
	}
	return nil
}

// lookup gives the entry called name, through links.
func (in *intake) lookup(name string) (*entry, error) {
	at, err := entryName(name)
	if err != nil {
		return nil, err
	}
	for range maxLinks {
		e := in.entries[at]
		if e == nil {
			return nil, refused("it has no file %.200q", name)
		}
		if e.kind != link {
			return e, nil
		}
		if at, err = linkTarget(at, e.link, e.hard); err != nil {
			return nil, err
		}
	}
	return nil, refused("link %.200q leads nowhere", name)
}

// documentAt gives the JSON document called name.
func (in *intake) documentAt(name string) (*entry, error) {
	e, err := in.lookup(name)
	if err == nil && (e.kind != document && e.kind != blob || e.size > manifest.MaxBytes) {
		err = refused("file %.200q is not a JSON document of at most %d MiB", name, manifest.MaxBytes>>20)
	}
	if err == nil {
		e.raw, err = in.bytesOf(e)
	}
	return e, err
}

// bytesOf gives all of a small file.
func (in *intake) bytesOf(e *entry) ([]byte, error) {
	if e.raw != nil {
		return e.raw, nil
	}
	if _, ok := in.lease.Blob(e.digest); !ok {
		return nil, refused("%s is not a JSON document of at most %d MiB", e.digest, manifest.MaxBytes>>20)
	}
	return in.Store.ReadAll(e.digest, manifest.MaxBytes)
}
