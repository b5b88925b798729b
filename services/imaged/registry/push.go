package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/internal/fault"
)

// expectContinueAbove is the size from which on an upload first asks whether it is welcome:
// a round trip is cheaper than sending it to be refused.
const expectContinueAbove = 1 << 20

// PushBlob makes sure a repository has a blob. It reports skipped if nothing had to be
// sent, because the blob was there or could be mounted from repository mountFrom of the
// same registry (a path such as "library/nginx"; may be empty). open yields the blob from
// its start and may be called again for a retry, after which progress, which may be nil and
// is called from another goroutine, counts from zero again.
func (c *Client) PushBlob(ctx context.Context, repo reference.Named, desc ocispec.Descriptor, open func() (io.ReadCloser, error), mountFrom string, auth Auth, progress func(sent int64)) (skipped bool, err error) {
	rp, err := parseRepository(repo)
	if err != nil {
		return false, err
	}
	if err := checkBlob(desc); err != nil {
		return false, err
	}
	scopes := []string{pushScope(rp)}
	if mountFrom != "" {
		source, err := reference.ParseNormalizedNamed(rp.name + "/" + mountFrom)
		if err != nil || !reference.IsNameOnly(source) || reference.Path(source) != mountFrom {
			return false, invalid("repository %q to mount from is malformed", mountFrom)
		}
		scopes = append(scopes, "repository:"+mountFrom+":pull")
	}
	p := &blobPush{Client: c, repo: rp, desc: desc, scopes: scopes, auth: auth}
	if there, err := p.exists(ctx); err != nil || there {
		return there, err
	}
	if p.session = c.sessions.take(p.key()); p.session == nil {
		if p.session, err = p.begin(ctx, mountFrom); err != nil || p.session == nil {
			return err == nil, err
		}
		p.fresh = true
	}
	err = p.put(ctx, open, progress)
	if err != nil && (ctx.Err() != nil || fault.Is(err, fault.Unavailable)) {
		c.sessions.keep(p.key(), p.session)
	}
	return false, err
}

// blobPush is one PushBlob on its way.
type blobPush struct {
	*Client
	repo   repository
	desc   ocispec.Descriptor
	scopes []string
	auth   Auth

	session *url.URL // where the registry wants the blob; nil for none
	fresh   bool     // nothing was sent there yet
}

func (p *blobPush) request(ctx context.Context, method, path string) (*request, error) {
	r, err := p.newRequest(ctx, p.repo.site, "push "+p.repo.String(), method, p.repo.path+"/blobs/"+path, p.auth, p.scopes...)
	if err == nil {
		r.object = "blob " + p.desc.Digest.String()
	}
	return r, err
}

// exists asks whether the repository has the blob. A registry that cannot say is taken to
// say no.
func (p *blobPush) exists(ctx context.Context) (bool, error) {
	r, err := p.request(ctx, http.MethodHead, p.desc.Digest.String())
	if err != nil {
		return false, err
	}
	resp, err := p.do(ctx, r)
	if err != nil {
		return false, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		resp.close()
		return resp.ContentLength < 0 || resp.ContentLength == p.desc.Size, nil
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		resp.close()
		return false, nil
	}
	return false, r.statusError(resp)
}

// begin opens an upload session and returns where to send the blob; nil if it was mounted.
func (p *blobPush) begin(ctx context.Context, mountFrom string) (*url.URL, error) {
	r, err := p.request(ctx, http.MethodPost, "uploads/")
	if err != nil {
		return nil, err
	}
	if mountFrom != "" {
		r.url.RawQuery = url.Values{"mount": {p.desc.Digest.String()}, "from": {mountFrom}}.Encode()
	}
	r.setBody(nil)
	resp, err := p.do(ctx, r)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusCreated && mountFrom != "":
		resp.close()
		return nil, nil
	case resp.StatusCode == http.StatusAccepted:
		resp.close()
		location, err := r.redirect(r.url, resp.Header.Get("Location"))
		if err != nil {
			return nil, err
		}
		return location, nil
	}
	return nil, r.statusError(resp)
}

// put sends the blob to the session: in one request if nothing was sent there before, else from where the registry says
// it stands. Where a session does not survive a failure, another is begun.
func (p *blobPush) put(ctx context.Context, open func() (io.ReadCloser, error), progress func(int64)) error {
	r, err := p.request(ctx, http.MethodPut, "uploads/")
	if err != nil {
		return err
	}
	registry := origin(r.url)
	resp, err := p.retry(ctx, r, func(ctx context.Context, r *request) (*response, error) {
		if p.session != nil && !p.fresh {
			resp, err := p.resume(ctx, registry, open, progress)
			if err != nil || resp != nil {
				return resp, err
			}
			p.session = nil // gone
		}
		if p.session == nil {
			if p.session, err = p.begin(ctx, ""); err != nil {
				return nil, err
			}
		}
		p.fresh = false
		return p.send(ctx, registry, p.part(r, http.MethodPut, p.withDigest(), open, 0, progress))
	})
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusNoContent {
		return r.statusError(resp)
	}
	defer resp.close()
	return r.checkStored(resp, p.desc.Digest)
}

// part is a copy of r that sends the blob from offset on.
func (p *blobPush) part(r *request, method string, to *url.URL, open func() (io.ReadCloser, error), offset int64, progress func(int64)) *request {
	part := *r
	part.method, part.url, part.header, part.size = method, to, r.header.Clone(), p.desc.Size-offset
	part.open = func() (io.ReadCloser, error) { return openAt(open, offset) }
	if progress != nil {
		part.progress = func(sent int64) { progress(offset + sent) }
	}
	part.header.Set("Content-Type", "application/octet-stream")
	if part.size > expectContinueAbove {
		part.header.Set("Expect", "100-continue")
	}
	return &part
}

// send sends a request of the session. Elsewhere than to the registry the bytes may go, as it wants it, but not the
// credentials.
func (p *blobPush) send(ctx context.Context, registry string, r *request) (*response, error) {
	if origin(r.url) == registry {
		return p.authorized(ctx, r)
	}
	resp, err := p.exchange(ctx, r)
	if err == nil {
		resp.left = true
	}
	return resp, err
}

// withDigest is where the session ends. Its query is the registry's; ours is added to it.
func (p *blobPush) withDigest() *url.URL {
	to := *p.session
	query := to.Query()
	query.Set("digest", p.desc.Digest.String())
	to.RawQuery = query.Encode()
	return &to
}

// resume asks the session how far it is, sends the rest and ends it. No answer and no error: the session is of no use
// any more.
func (p *blobPush) resume(ctx context.Context, registry string, open func() (io.ReadCloser, error), progress func(int64)) (*response, error) {
	r, err := p.request(ctx, http.MethodGet, "uploads/")
	if err != nil {
		return nil, err
	}
	r.url = p.session
	resp, err := p.send(ctx, registry, r)
	if err != nil {
		return nil, err
	}
	at, ok := received(resp)
	resp.close()
	if !ok || at > p.desc.Size || !p.moved(r, resp) {
		return nil, nil
	}
	if at < p.desc.Size {
		patch := p.part(r, http.MethodPatch, p.session, open, at, progress)
		patch.header.Set("Content-Range", fmt.Sprintf("%d-%d", at, p.desc.Size-1))
		if resp, err = p.send(ctx, registry, patch); err != nil {
			return nil, err
		}
		resp.close()
		if resp.StatusCode != http.StatusAccepted || !p.moved(r, resp) {
			return nil, nil
		}
	}
	end := *r
	end.method, end.url = http.MethodPut, p.withDigest()
	end.setBody(nil)
	resp, err = p.send(ctx, registry, &end)
	if err == nil && resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusNoContent {
		resp.close() // what was sent before did not fit: once more from the beginning
		return nil, nil
	}
	return resp, err
}

// moved follows a session to where the registry says it continues.
func (p *blobPush) moved(r *request, resp *response) bool {
	location := resp.Header.Get("Location")
	if location == "" {
		return true
	}
	to, err := r.redirect(p.session, location)
	if err == nil {
		p.session = to
	}
	return err == nil
}

// received is how many bytes a session has: "Range: 0-99" means 100, and "0-0" of registries that mean none by it is
// taken for none, too.
func received(resp *response) (int64, bool) {
	if resp.StatusCode != http.StatusNoContent && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusAccepted {
		return 0, false
	}
	first, last, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Range"), "bytes="), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || first != "0" || err != nil || n <= 0 {
		return 0, false
	}
	return n + 1, true
}

// openAt opens what is sent at an offset.
func openAt(open func() (io.ReadCloser, error), offset int64) (io.ReadCloser, error) {
	rc, err := open()
	if err != nil || offset == 0 {
		return rc, err
	}
	if s, ok := rc.(io.Seeker); ok {
		_, err = s.Seek(offset, io.SeekStart)
	} else {
		_, err = io.CopyN(io.Discard, rc, offset)
	}
	if err != nil {
		rc.Close()
		return nil, err
	}
	return rc, nil
}

// checkStored compares the digest a registry says it stored, if it says.
func (r *request) checkStored(resp *response, want digest.Digest) error {
	answered := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	if answered == "" {
		return nil
	}
	return r.checkAnsweredDigest(answered, want)
}

// PushManifest stores a manifest or index under ref's tag, or under its digest, which then
// has to be that of raw. The blobs and manifests it names must be there already. It returns
// the digest of raw.
func (c *Client) PushManifest(ctx context.Context, ref reference.Named, mediaType string, raw []byte, auth Auth) (digest.Digest, error) {
	t, err := parseTarget(ref)
	if err != nil {
		return "", err
	}
	dgst := digest.FromBytes(raw)
	if t.digest != "" {
		dgst = t.digest.Algorithm().FromBytes(raw)
		if dgst != t.digest {
			return "", invalid("manifest has digest %s, not %s", dgst, t.digest)
		}
	}
	resp, r, err := c.putManifest(ctx, t, mediaType, raw, auth)
	if err != nil {
		return "", err
	}
	defer resp.close()
	if err := r.checkStored(resp, dgst); err != nil {
		return "", err
	}
	return dgst, nil
}

// putManifest stores raw, and gives the answer to be closed.
func (c *Client) putManifest(ctx context.Context, t target, mediaType string, raw []byte, auth Auth) (*response, *request, error) {
	if _, err := CheckManifest(raw, mediaType); err != nil {
		return nil, nil, fmt.Errorf("push %s: %w", t.text, err)
	}
	r, err := c.newRequest(ctx, t.site, "push "+t.text, http.MethodPut, t.path+"/manifests/"+t.last(), auth, pushScope(t.repository))
	if err != nil {
		return nil, nil, err
	}
	r.header.Set("Content-Type", mediaType)
	r.setBody(raw)
	resp, err := c.do(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK {
		return nil, nil, r.statusError(resp)
	}
	return resp, r, nil
}
