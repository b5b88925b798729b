package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"berth/internal/fault"
)

const (
	maxRedirects = 5
	// maxErrorBytes of an error's body are looked at.
	maxErrorBytes = 64 << 10
	maxBackoff    = 5 * time.Second
	// maxRetryAfter is the longest a registry may make a caller wait without asking them.
	maxRetryAfter = 60 * time.Second
	// worthANotice is a pause that the user is told of.
	worthANotice = time.Second
)

// request is one request of a call, as often as it has to be sent.
type request struct {
	site   site
	who    string // whom connection errors blame: "registry docker.io"
	doing  string // what the user wanted: "pull docker.io/library/nginx:latest"
	object string // what a 404 is about: "blob sha256:…"; empty for the image itself
	method string
	url    *url.URL
	header http.Header // without Authorization, but for token requests
	scopes []string    // of the token protocol: repository:library/nginx:pull
	auth   Auth
	said   *said // shared by the copies of a request and its token requests

	// identity, if not nil, makes this a login: cached tokens do not count, and a refresh
	// token is asked for and put here.
	identity *Secret

	open     func() (io.ReadCloser, error) // the body, from its start; nil for none
	size     int64                         // of the body
	progress func(sent int64)              // of the body; may be nil
}

func (r *request) setBody(b []byte) {
	r.open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	r.size = int64(len(b))
}

// newRequest addresses a path below a registry's /v2/.
func (c *Client) newRequest(ctx context.Context, s site, doing, method, path string, auth Auth, scopes ...string) (*request, error) {
	scheme, err := c.scheme(ctx, s)
	if err != nil {
		return nil, err
	}
	return &request{
		site:   s,
		who:    "registry " + s.name,
		doing:  doing,
		method: method,
		url:    &url.URL{Scheme: scheme, Host: s.host, Path: "/v2/" + path},
		header: make(http.Header),
		scopes: scopes,
		auth:   auth,
		said:   new(said),
	}, nil
}

// response is an answer that has not been read. It must be closed.
type response struct {
	*http.Response
	left bool   // another origin than the request's gave it
	host string // that gave it
}

// close keeps the connection if little is left to read on it.
func (r *response) close() {
	_, _ = io.CopyN(io.Discard, r.Body, maxErrorBytes)
	_ = r.Body.Close()
}

// do sends a request with whatever authorization the registry asks for, following redirects
// and retrying. Any status may come back, 401 included.
func (c *Client) do(ctx context.Context, r *request) (*response, error) {
	return c.retry(ctx, r, c.authorized)
}

// authorized sends r once or, if the registry asks for authorization, twice. A second 401
// is final: that is what ends a 401 loop.
func (c *Client) authorized(ctx context.Context, r *request) (*response, error) {
	g := c.grants.get(grantKey{origin: origin(r.url), scopes: strings.Join(r.scopes, " "), caller: r.auth.fingerprint()})
	if r.identity != nil {
		g = newGrant()
	}
	header, err := c.current(ctx, g, r)
	if err != nil {
		return nil, err
	}
	resp, err := c.exchange(ctx, r.with(header))
	if err != nil || resp.StatusCode != http.StatusUnauthorized || resp.left {
		return resp, err
	}
	offered := parseChallenges(resp.Header.Values("WWW-Authenticate"))
	if len(offered) == 0 {
		return resp, nil
	}
	resp.close()
	if header, err = c.renew(ctx, g, r, header, offered); err != nil {
		return nil, err
	}
	return c.exchange(ctx, r.with(header))
}

// with returns a copy of r that carries an Authorization.
func (r *request) with(authorization string) *request {
	if authorization == "" {
		return r
	}
	_, token, _ := strings.Cut(authorization, " ")
	r.said.add(token)
	copied := *r
	copied.header = r.header.Clone()
	copied.header.Set("Authorization", authorization)
	return &copied
}

// retry repeats what a moment's wait may cure. Errors come back described.
func (c *Client) retry(ctx context.Context, r *request, send func(context.Context, *request) (*response, error)) (*response, error) {
	for attempt := 0; ; attempt++ {
		resp, err := send(ctx, r)
		wait, again := c.delay(resp, err, attempt)
		if !again {
			if err != nil {
				c.forget(r.site)
				return nil, c.connectError(ctx, r, err)
			}
			return resp, nil
		}
		why := ""
		if err != nil {
			why = c.connectError(ctx, r, err).Error()
		} else {
			why = resp.Status
			resp.close()
		}
		c.log.Debug("retrying a registry request", "registry", r.site.name, "method", r.method,
			"path", r.outside(r.url.Path), "attempt", attempt+1, "wait", wait, "error", r.outside(why))
		if wait >= worthANotice {
			what := "does not answer"
			if err == nil && resp.StatusCode == http.StatusTooManyRequests {
				what = "limits requests"
			}
			notice(ctx, fmt.Sprintf("%s %s, next try in %v", r.who, what, wait.Round(time.Second)))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, c.connectError(ctx, r, ctx.Err())
		}
	}
}

// delay decides whether to send again and when.
func (c *Client) delay(resp *response, err error, attempt int) (time.Duration, bool) {
	if attempt >= c.retries {
		return 0, false
	}
	backoff := min(c.backoff<<attempt, maxBackoff)
	// Between half and all of it, so that clients that failed together come back apart.
	backoff = backoff/2 + rand.N(backoff/2+1)
	if err != nil {
		var own *fault.Error
		return backoff, !errors.As(err, &own) && isBrokenConnection(err)
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		return 0, false
	}
	if asked, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now()); ok {
		return max(asked, backoff), asked <= maxRetryAfter
	}
	return backoff, true
}

// retryAfter reads a Retry-After header: seconds or a date (RFC 9110 §10.2.3).
func retryAfter(value string, now time.Time) (time.Duration, bool) {
	value = strings.TrimSpace(value)
	if secs, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(secs) * time.Second, true
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0), true
	}
	return 0, false
}

// exchange sends r once and follows redirects of GET and HEAD. Authorization is dropped at
// the first redirect to another origin and never picked up again.
func (c *Client) exchange(ctx context.Context, r *request) (*response, error) {
	ctx, w := newWatch(ctx, c.stall)
	u, header, left := r.url, r.header.Clone(), false
	header.Set("User-Agent", c.userAgent)
	for hops := 0; ; hops++ {
		resp, err := c.roundTrip(ctx, w, r, u, header)
		if err != nil {
			w.end()
			if u != r.url {
				err = &hopError{host: u.Host, err: err}
			}
			return nil, err
		}
		if r.open != nil || !isRedirect(resp.StatusCode) {
			resp.Body = &watchedBody{ReadCloser: resp.Body, ctx: ctx, watch: w, throttle: &c.down}
			return &response{Response: resp, left: left, host: u.Host}, nil
		}
		_ = resp.Body.Close()
		next, err := r.redirect(u, resp.Header.Get("Location"))
		if err == nil && hops == maxRedirects {
			err = r.fail(refused, fmt.Sprintf("%s redirects more than %d times", r.who, maxRedirects), "")
		}
		if err != nil {
			w.end()
			return nil, err
		}
		if origin(next) != origin(u) {
			left = true
			header.Del("Authorization")
		}
		u = next
	}
}

func (c *Client) roundTrip(ctx context.Context, w *watch, r *request, u *url.URL, header http.Header) (*http.Response, error) {
	t, err := c.transport(u.Host)
	if err != nil {
		return nil, badConfig.errorf("set up connection to %s: %w", u.Host, err)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), nil)
	if err != nil {
		return nil, r.fail(refused, "registry "+r.site.name+" leads to a malformed address", "")
	}
	req.Header = header.Clone()
	var sent *outgoing
	if r.open != nil {
		rc, err := r.open()
		if err != nil {
			return nil, unreadableLocal.errorf("%s: open what is to be sent: %w", r.doing, err)
		}
		sent = &outgoing{ReadCloser: rc, ctx: ctx, watch: w, throttle: &c.up, size: r.size, progress: r.progress}
		req.Body, req.ContentLength = sent, r.size
		if r.size == 0 {
			_ = rc.Close()
			req.Body = http.NoBody // with a body of unknown length net/http would send chunks
		}
	}
	w.resume()
	resp, err := t.RoundTrip(req)
	w.pause(0)
	if err == nil {
		return resp, nil
	}
	if sent != nil {
		if failed := sent.failure(); failed != nil {
			return nil, unreadableLocal.errorf("%s: read what is to be sent: %w", r.doing, failed)
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return nil, err
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirect resolves a Location and refuses the ones that would weaken the connection.
func (r *request) redirect(from *url.URL, location string) (*url.URL, error) {
	to, err := from.Parse(location)
	if location == "" || err != nil || to.Host == "" || to.User != nil || to.Opaque != "" ||
		to.Scheme != "http" && to.Scheme != "https" {
		return nil, r.fail(refused, r.who+" redirects to a malformed address", "")
	}
	if from.Scheme == "https" && to.Scheme != "https" {
		return nil, r.fail(refused, fmt.Sprintf("%s redirects from https to clear http at %s", r.who, r.outside(to.Host)), "it must stay on https")
	}
	to.Fragment = ""
	return to, nil
}

// origin is scheme, host and port of a URL, the port always given.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port
}

// fail makes an error about r.
func (r *request) fail(p problem, what, hint string) error {
	e := p.errorf("%s: %s", r.doing, what).With("registry", r.site.name)
	if hint != "" {
		e = e.Hint("%s", hint)
	}
	return e
}

func (r *request) loginNeeded() error {
	return r.fail(loginNeeded, "registry "+r.site.name+" asks for a login", "log in with: berth login "+r.site.name)
}

// loginRefused is the answer to a second 401, or to one from the token server.
func (r *request) loginRefused() error {
	switch {
	case r.auth.Anonymous():
		return r.fail(loginNeeded, "registry "+r.site.name+" grants no access without a login",
			"check the name, or log in with: berth login "+r.site.name)
	case r.auth.IdentityToken != "" || r.auth.RegistryToken != "":
		return r.fail(loginRefused, "registry "+r.site.name+" does not accept the stored token",
			"log in again with: berth login "+r.site.name)
	case len(r.scopes) == 0:
		return r.fail(loginRefused, "registry "+r.site.name+" does not accept this user name and password",
			"check both and try again")
	}
	return r.fail(loginRefused, "registry "+r.site.name+" does not accept the login of "+oneLine(r.auth.Username)+" for this",
		"check the name, or log in with: berth login "+r.site.name)
}

// statusError turns an answer that is not a success into an error, and closes it.
func (r *request) statusError(resp *response) error {
	defer resp.close()
	who := r.who
	if resp.left {
		who = "storage host " + r.outside(resp.host) + " of " + r.who
	}
	said := r.complaint(resp)
	object := r.object
	if object != "" {
		object += " "
	}
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized && !resp.left:
		return r.loginRefused()
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return r.fail(denied, "access denied by "+who+said, "check the name and whether this login may do it")
	case code == http.StatusNotFound:
		hint := "check the name and tag"
		if object != "" {
			hint = "the image in the registry is incomplete"
		}
		return r.fail(notFound, object+"not found in "+who, hint)
	case code == http.StatusTooManyRequests:
		hint := "try again later"
		if after, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now()); ok {
			hint = fmt.Sprintf("try again in %v", after.Round(time.Second))
		}
		return r.fail(unavailable, who+" limits requests and this one was over"+said, hint)
	case code == http.StatusRequestEntityTooLarge:
		return r.fail(tooLarge, who+" refuses it as too large"+said, "")
	case code == http.StatusMethodNotAllowed, code == http.StatusNotImplemented:
		return r.fail(unsupported, who+" does not support this"+said, "")
	case code >= 500, code == http.StatusRequestTimeout:
		return r.fail(unavailable, fmt.Sprintf("%s answered %d %s%s", who, code, http.StatusText(code), said), "try again later")
	default:
		return r.fail(unsupported, fmt.Sprintf("%s answered %d %s%s", who, code, http.StatusText(code), said), "")
	}
}

// complaint is what the body of an error says, ready to be appended: ": name unknown".
func (r *request) complaint(resp *response) string {
	if resp.left {
		return "" // XML of a storage service, with half the signed request in it
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	if err != nil {
		return ""
	}
	var list struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &list) != nil || len(list.Errors) == 0 {
		return ""
	}
	text := list.Errors[0].Message
	if text == "" {
		text = list.Errors[0].Code
	}
	if text = r.outside(text); text == "" {
		return ""
	}
	return ": " + text
}

var errTooLong = errors.New("longer than its limit")

// readLimited reads all of r, or fails with errTooLong.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errTooLong
	}
	return b, err
}

// bodyError describes a failed readLimited.
func (r *request) bodyError(what string, limit int64, err error) error {
	if errors.Is(err, errTooLong) {
		return r.fail(tooLarge, fmt.Sprintf("%s sent a %s of more than %d MiB", r.who, what, limit>>20), "")
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("read %s from %s: %w", what, r.who, err)
	}
	return r.fail(unavailable, fmt.Sprintf("%s broke off sending a %s: %s", r.who, what, r.outside(err.Error())), "try again")
}
