package registry

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"berth/internal/fault"
	"berth/internal/faultpoint"
)

var (
	uploadBegun = faultpoint.Declare("imaged.upload-begun", "a registry has begun an upload, nothing of the blob is sent")
	uploadSent  = faultpoint.Declare("imaged.upload-sent", "a registry has the whole blob, which the store does not know")
)

const (
	// A request sends what takes about a second, within these bounds: docker-registry, for one, throws an upload away if it
	// breaks off in the middle of a request, and syncs its file after each. S3 behind a registry wants 5 MiB.
	leastChunk, firstChunk, mostChunk = 8 << 20, 16 << 20, 128 << 20
	maxChunk                          = 1 << 30 // that a registry may ask for
	// chunkGrace is how long the chunk on its way may still take when its push is cancelled: where it ends, any registry
	// can go on.
	chunkGrace = 3 * time.Second
	// maxRestarts is how often one push begins a blob anew because its upload was lost.
	maxRestarts = 3
)

// upload sends a blob to its session. A blob of several chunks goes by PATCH, chunk by chunk, and after each of them the
// session is written down; a small one, or one for a registry that wants no chunks, by one PUT. When something broke off
// the registry is asked how much it has. The digest of the whole, with which a session ends, is compared by the registry.
type upload struct {
	*blobPush
	source   source
	progress func(int64)

	hold     hold
	chunk    int64 // bytes of the next request, as far as the registry agrees
	session  session
	certain  bool  // session.sent is what the registry has
	whole    bool  // this registry takes no chunks
	restarts int   // sessions that were of no use
	furthest int64 // bytes a session has ever had
}

// push makes sure the registry has the blob. It asks before it takes up an upload that another began: whoever may not push
// here ends at that.
func (u *upload) push(ctx context.Context, mountFrom string) (skipped bool, err error) {
	if there, err := u.exists(ctx); err != nil || there {
		return there, err
	}
	if u.session.at == nil {
		if u.session, err = u.begin(ctx, mountFrom); err != nil || u.session.at == nil {
			return err == nil, err
		}
		u.certain = true
		u.hold.keep(u.session)
	}
	if err := uploadBegun.Hit(); err != nil {
		return false, err
	}
	if err := u.run(ctx); err != nil {
		return false, err
	}
	return false, uploadSent.Hit()
}

// run sends everything. What breaks off is taken up again as long as the registry gets more of it.
func (u *upload) run(ctx context.Context) error {
	r, err := u.request(ctx, http.MethodPut, "uploads/")
	if err != nil {
		return err
	}
	for {
		before := u.furthest
		resp, err := u.retry(ctx, r, u.attempt)
		if err == nil && resp.StatusCode >= 400 {
			err = r.statusError(resp)
		}
		if err != nil && ctx.Err() == nil && u.furthest-before >= minProgress && fault.Is(err, fault.Unavailable) {
			continue
		}
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusNoContent {
			return r.statusError(resp)
		}
		defer resp.close()
		return r.checkStored(resp, u.desc.Digest)
	}
}

// attempt goes on from where the session stands until the blob is stored or something breaks off. The answer is the
// registry's last.
func (u *upload) attempt(ctx context.Context, r *request) (*response, error) {
	for {
		if u.session.at == nil {
			if err := u.restart(ctx); err != nil {
				return nil, err
			}
		}
		if !u.certain {
			if resp, err := u.ask(ctx, r); err != nil || resp != nil {
				return resp, err
			}
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		left := u.desc.Size - u.session.sent
		if u.session.sent == 0 && (u.whole || left <= u.chunkSize()) {
			resp, err := u.send(ctx, r, http.MethodPut, u.withDigest(), left)
			if err != nil || u.restarts >= maxRestarts || !lost(resp) {
				return resp, err
			}
			resp.close()
			u.drop()
			continue
		}
		if left == 0 {
			resp, err := u.send(ctx, r, http.MethodPut, u.withDigest(), 0)
			if err != nil || !refusesChunks(resp) {
				return resp, err
			}
			resp.close() // what was sent does not fit together: once more, in one piece
			u.whole = true
			u.drop()
			continue
		}
		if resp, err := u.patch(ctx, r, min(left, u.chunkSize())); err != nil || resp != nil {
			return resp, err
		}
	}
}

func (u *upload) chunkSize() int64 { return max(u.chunk, u.session.least) }

// took adapts the size of chunks to how long one took.
func (u *upload) took(d time.Duration) {
	switch {
	case d < time.Second/2:
		u.chunk = min(2*u.chunk, u.chunks.most)
	case d > 2*time.Second:
		u.chunk = max(u.chunk/2, u.chunks.least)
	}
}

// restart begins a session anew.
func (u *upload) restart(ctx context.Context) (err error) {
	u.restarts++
	if u.session, err = u.begin(ctx, ""); err == nil {
		u.certain = true
		u.hold.keep(u.session)
	}
	return err
}

// drop gives the session up.
func (u *upload) drop() { u.session, u.certain = session{}, false }

// patch sends the next n bytes. An answer is one that only waiting may cure, or nothing.
func (u *upload) patch(ctx context.Context, r *request, n int64) (*response, error) {
	end := u.session.sent + n
	sending, stop := withGrace(ctx, chunkGrace)
	defer stop()
	began := time.Now()
	resp, err := u.send(sending, r, http.MethodPatch, u.session.at, n)
	if err != nil {
		return nil, err
	}
	switch code := resp.StatusCode; {
	case code == http.StatusAccepted || code == http.StatusNoContent || code == http.StatusCreated:
		resp.close()
		has, said := received(resp)
		if !said {
			has = end
		}
		if !u.moved(r, resp) || has > end || has < u.session.sent || has == u.session.sent && n > 0 {
			u.whole = true // it counts otherwise than we do
			u.drop()
			return nil, nil
		}
		u.session.sent, u.certain, u.furthest = has, true, max(u.furthest, has)
		u.hold.keep(u.session)
		u.took(time.Since(began))
		return nil, nil
	case code == http.StatusRequestedRangeNotSatisfiable && u.restarts < maxRestarts:
		resp.close() // it stands elsewhere; asked, it will say where, or that it is gone
		u.restarts++
		return nil, nil
	case code == http.StatusNotFound && u.session.sent > 0 && u.restarts < maxRestarts:
		resp.close()
		u.drop()
		return nil, nil
	case refusesChunks(resp):
		resp.close()
		u.whole = true
		u.drop()
		return nil, nil
	}
	return resp, nil
}

// lost tells whether a session is of no use any more.
func lost(resp *response) bool {
	return resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusRequestedRangeNotSatisfiable
}

// refusesChunks tells whether an answer to a chunk may mean that there should be none.
func refusesChunks(resp *response) bool {
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusLengthRequired, http.StatusUnsupportedMediaType, http.StatusNotImplemented:
		return true
	}
	return lost(resp)
}

// send sends n bytes of the blob, from where the session stands, or nothing to end it. Elsewhere than to the registry the
// bytes may go, as it wants it, but not the credentials.
func (u *upload) send(ctx context.Context, r *request, method string, to *url.URL, n int64) (*response, error) {
	part := *r
	part.method, part.url, part.header = method, to, r.header.Clone()
	switch {
	case method == http.MethodGet:
	case n == 0:
		part.setBody(nil)
		u.certain = false
	default:
		from := u.session.sent
		part.open, part.size = u.source.from(from, n), n
		if u.progress != nil {
			part.progress = func(sent int64) { u.progress(from + sent) }
		}
		part.header.Set("Content-Type", "application/octet-stream")
		if method == http.MethodPatch {
			part.header.Set("Content-Range", fmt.Sprintf("%d-%d", from, from+n-1))
		}
		if n > expectContinueAbove && from == 0 {
			part.header.Set("Expect", "100-continue")
		}
		u.certain = false
	}
	if origin(to) == origin(r.url) {
		return u.authorized(ctx, &part)
	}
	resp, err := u.exchange(ctx, &part)
	if err == nil {
		resp.left = true
	}
	return resp, err
}

// withDigest is where the session ends. Its query is the registry's; ours is added to it.
func (u *upload) withDigest() *url.URL {
	to := *u.session.at
	query := to.Query()
	query.Set("digest", u.desc.Digest.String())
	to.RawQuery = query.Encode()
	return &to
}

// ask asks the registry how far the session is. A session that it does not know is dropped. Of a registry that does not
// answer such questions what it has acknowledged is believed: another one it will refuse.
func (u *upload) ask(ctx context.Context, r *request) (*response, error) {
	resp, err := u.send(ctx, r, http.MethodGet, u.session.at, 0)
	if err != nil {
		return nil, err
	}
	if code := resp.StatusCode; code == http.StatusTooManyRequests || code >= 500 && code != http.StatusNotImplemented || code == http.StatusUnauthorized {
		return resp, nil
	}
	resp.close()
	has, ok := received(resp)
	switch {
	case ok && has <= u.desc.Size && u.moved(r, resp):
		u.session.sent, u.certain, u.furthest = has, true, max(u.furthest, has)
		u.hold.keep(u.session)
	case (resp.StatusCode == http.StatusMethodNotAllowed || resp.StatusCode == http.StatusNotImplemented) && u.session.sent > 0:
		u.certain = true
	default:
		u.drop()
	}
	return nil, nil
}

// moved follows a session to where the registry says it continues.
func (u *upload) moved(r *request, resp *response) bool {
	location := resp.Header.Get("Location")
	if location == "" {
		return true
	}
	to, err := r.redirect(u.session.at, location)
	if err == nil {
		u.session.at = to
	}
	return err == nil
}

// received is how many bytes a session has: "Range: 0-99" means 100. "0-0" is taken for none, which most registries mean
// by it.
func received(resp *response) (int64, bool) {
	if resp.StatusCode != http.StatusNoContent && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusAccepted {
		return 0, false
	}
	first, last, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Range"), "bytes="), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || first != "0" || err != nil || n < 0 {
		return 0, false
	}
	if n == 0 {
		return 0, true
	}
	return n + 1, true
}

// Lingering is ctx, except that it ends only when a push that is cancelled with ctx has ended its last chunk. It is for
// blobs that are read from elsewhere while they are pushed. The caller calls the function when it needs it no more.
func Lingering(ctx context.Context) (context.Context, context.CancelFunc) {
	return withGrace(ctx, chunkGrace)
}

// withGrace is ctx, except that it ends only so much later.
func withGrace(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	inner, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(d, func() { cancel(context.Cause(ctx)) })
		context.AfterFunc(inner, func() { timer.Stop() })
	})
	return inner, func() { stop(); cancel(nil) }
}
