package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob opens a blob for reading from byte offset on. desc gives digest and size, both of
// which are required: the reader ends with io.EOF after exactly the bytes from offset to
// desc.Size, with [*InterruptedError] if fewer come, and with Corrupt if more do. It does
// not hash; the caller must, over the whole blob.
//
// A registry that ignores ranges sends the whole blob again; the bytes before offset are
// then read and dropped.
func (c *Client) Blob(ctx context.Context, repo reference.Named, desc ocispec.Descriptor, offset int64, auth Auth) (io.ReadCloser, error) {
	rp, err := parseRepository(repo)
	if err != nil {
		return nil, err
	}
	if err := checkBlob(desc); err != nil {
		return nil, err
	}
	if offset < 0 || offset > desc.Size {
		return nil, invalid("offset %d lies outside blob %s of %d bytes", offset, desc.Digest, desc.Size)
	}
	if offset == desc.Size && offset > 0 {
		return http.NoBody, nil // an empty range cannot be asked for
	}
	return pullFrom(ctx, c, rp, auth, func(from repository, auth Auth) (io.ReadCloser, error) {
		return c.blob(ctx, rp, from, desc, offset, auth)
	})
}

// blob asks one registry or mirror for a blob of repo.
func (c *Client) blob(ctx context.Context, repo, from repository, desc ocispec.Descriptor, offset int64, auth Auth) (io.ReadCloser, error) {
	r, err := c.newRequest(ctx, from.site, "pull "+repo.String(), http.MethodGet, from.path+"/blobs/"+desc.Digest.String(), auth, pullScope(from))
	if err != nil {
		return nil, err
	}
	r.object = "blob " + desc.Digest.String()
	if offset > 0 {
		r.header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	b := &blobReader{body: resp.Body, request: r, at: offset, size: desc.Size}
	switch resp.StatusCode {
	case http.StatusOK:
		b.skip, b.at = offset, 0
	case http.StatusPartialContent:
		if err := r.checkRange(resp.Header.Get("Content-Range"), offset, desc.Size); err != nil {
			resp.Body.Close()
			return nil, err
		}
	default:
		return nil, r.statusError(resp)
	}
	if resp.ContentLength >= 0 && resp.ContentLength != desc.Size-b.at {
		resp.Body.Close()
		return nil, r.fail(corrupt, fmt.Sprintf("%s offers %d bytes of %s instead of %d", r.who, resp.ContentLength, r.object, desc.Size-b.at), "")
	}
	return b, nil
}

func checkBlob(desc ocispec.Descriptor) error {
	if err := validDigest(desc.Digest); err != nil {
		return err
	}
	if desc.Size < 0 {
		return invalid("blob %s has size %d", desc.Digest, desc.Size)
	}
	return nil
}

// checkRange reads Content-Range (RFC 9110 §14.4), "bytes 5-99/100", which has to be what
// was asked for.
func (r *request) checkRange(value string, offset, size int64) error {
	span, total, ok := strings.Cut(strings.TrimPrefix(value, "bytes "), "/")
	first, last, ok2 := strings.Cut(span, "-")
	if ok && ok2 && first == strconv.FormatInt(offset, 10) && last == strconv.FormatInt(size-1, 10) &&
		(total == "*" || total == strconv.FormatInt(size, 10)) {
		return nil
	}
	return r.fail(corrupt, fmt.Sprintf("%s sent range %q of %s instead of bytes %d-%d/%d", r.who, r.outside(value), r.object, offset, size-1, size), "")
}

// blobReader holds a body to the size it has to have.
type blobReader struct {
	body    io.ReadCloser
	request *request
	skip    int64 // leading bytes nobody wants
	at      int64 // next byte of the blob that body yields
	size    int64
	err     error // sticky
}

func (b *blobReader) Read(p []byte) (int, error) {
	if b.err == nil && b.at < b.skip {
		b.err = b.drop()
	}
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if b.at == b.size {
		b.err = b.atEnd()
		return 0, b.err
	}
	n, err := b.body.Read(p[:min(int64(len(p)), b.size-b.at)])
	b.at += int64(n)
	if err != nil && b.at < b.size {
		b.err = b.interrupted(err)
		return n, b.err
	}
	return n, nil
}

// drop reads up to skip. What it reads counts as progress, so a stall ends it too.
func (b *blobReader) drop() error {
	n, err := io.CopyN(io.Discard, b.body, b.skip-b.at)
	b.at += n
	if err != nil {
		b.at = b.skip // where the caller stands, for InterruptedError
		return b.interrupted(err)
	}
	return nil
}

// atEnd makes sure that nothing follows the last byte.
func (b *blobReader) atEnd() error {
	var one [1]byte
	n, err := b.body.Read(one[:])
	for n == 0 && err == nil {
		n, err = b.body.Read(one[:])
	}
	if n > 0 {
		return b.request.fail(corrupt, fmt.Sprintf("%s sent more than the %d bytes of %s", b.request.who, b.size, b.request.object), "")
	}
	// Every byte has come; how the connection ended after them does not matter.
	return io.EOF
}

func (b *blobReader) interrupted(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("read %s: %w", b.request.object, err)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return &InterruptedError{Offset: b.at, Size: b.size, Err: err}
}

func (b *blobReader) Close() error { return b.body.Close() }
