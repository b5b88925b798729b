package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

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
	h, found, err := c.sessions.take(ctx, p.key())
	if err != nil {
		return false, fmt.Errorf("push %s: %w", rp, err)
	}
	u := &upload{blobPush: p, hold: h, session: found, chunk: c.chunks.first, source: source{open: open}, progress: progress}
	defer u.source.close()
	skipped, err = u.push(ctx, mountFrom)
	if err != nil && (ctx.Err() != nil || fault.Is(err, fault.Unavailable)) {
		h.leave()
	} else {
		h.done()
	}
	return skipped, err
}

// blobPush is one PushBlob on its way.
type blobPush struct {
	*Client
	repo   repository
	desc   ocispec.Descriptor
	scopes []string
	auth   Auth
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

// begin opens an upload session; its address is nil if the blob was mounted.
func (p *blobPush) begin(ctx context.Context, mountFrom string) (session, error) {
	r, err := p.request(ctx, http.MethodPost, "uploads/")
	if err != nil {
		return session{}, err
	}
	if mountFrom != "" {
		r.url.RawQuery = url.Values{"mount": {p.desc.Digest.String()}, "from": {mountFrom}}.Encode()
	}
	r.setBody(nil)
	resp, err := p.do(ctx, r)
	if err != nil {
		return session{}, err
	}
	switch {
	case resp.StatusCode == http.StatusCreated && mountFrom != "":
		resp.close()
		return session{}, nil
	case resp.StatusCode == http.StatusAccepted:
		resp.close()
		location, err := r.redirect(r.url, resp.Header.Get("Location"))
		if err != nil {
			return session{}, err
		}
		least, _ := strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64)
		return session{at: location, least: min(max(least, 0), maxChunk)}, nil
	}
	return session{}, r.statusError(resp)
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
