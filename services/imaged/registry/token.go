package registry

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	maxTokenBytes = 1 << 20
	// defaultTokenLife is the token protocol's when expires_in is absent.
	defaultTokenLife = 60 * time.Second
	// tokenMargin is taken off a token's life, so that none expires on its way.
	tokenMargin = 5 * time.Second
	// clientID is how token servers know this program.
	clientID = "berth"
	// maxGrants bounds the cache; past it the whole cache is dropped, as tokens are cheap.
	maxGrants = 1024
)

// grantKey is what a token is good for. The caller's credentials are part of it: one
// person's token never serves another.
type grantKey struct {
	origin string
	scopes string
	caller [sha256.Size]byte
}

// grant is what a registry's last challenge was and what answered it.
type grant struct {
	busy      chan struct{} // holds one element while somebody fetches
	challenge *challenge    // nil until the first 401
	header    string        // Authorization to send; "" for none
	expires   time.Time     // zero: never
}

type grants struct {
	mu *sync.Mutex
	m  map[grantKey]*grant
}

func newGrants() grants { return grants{mu: new(sync.Mutex), m: make(map[grantKey]*grant)} }

func (g grants) get(key grantKey) *grant {
	g.mu.Lock()
	defer g.mu.Unlock()
	if found, ok := g.m[key]; ok {
		return found
	}
	if len(g.m) >= maxGrants {
		clear(g.m)
	}
	g.m[key] = newGrant()
	return g.m[key]
}

func newGrant() *grant { return &grant{busy: make(chan struct{}, 1)} }

func (g *grant) lock(ctx context.Context) error {
	select {
	case g.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *grant) unlock() { <-g.busy }

func (g *grant) valid(now time.Time) bool {
	return g.header != "" && (g.expires.IsZero() || now.Before(g.expires))
}

// current returns the Authorization to try first: the cached one, a fresh one if that has
// expired, none if this registry has not asked yet. If the old challenge cannot be answered
// any more it is forgotten, as the registry may by now ask differently or not at all.
func (c *Client) current(ctx context.Context, g *grant, r *request) (string, error) {
	if err := g.lock(ctx); err != nil {
		return "", err
	}
	defer g.unlock()
	if g.valid(time.Now()) || g.challenge == nil {
		return g.header, nil
	}
	if err := c.fill(ctx, g, r); err != nil {
		g.challenge = nil
		return "", ctx.Err()
	}
	return g.header, nil
}

// renew answers a 401 that came in spite of the Authorization sent. If another call has
// renewed the grant meanwhile, its result is taken.
func (c *Client) renew(ctx context.Context, g *grant, r *request, sent string, offered []challenge) (string, error) {
	if err := g.lock(ctx); err != nil {
		return "", err
	}
	defer g.unlock()
	if g.header != sent && g.valid(time.Now()) {
		return g.header, nil
	}
	chosen := choose(offered)
	if chosen == nil {
		return "", r.fail(unsupported, "registry "+r.site.name+" asks for a kind of login that is not supported", "Basic and Bearer are")
	}
	g.challenge = chosen
	if err := c.fill(ctx, g, r); err != nil {
		g.challenge = nil
		return "", err
	}
	return g.header, nil
}

// choose prefers a token, which says less about its owner than a password does.
func choose(offered []challenge) *challenge {
	for _, scheme := range []string{"bearer", "basic"} {
		for i := range offered {
			if offered[i].scheme == scheme {
				return &offered[i]
			}
		}
	}
	return nil
}

// fill answers g.challenge. The caller holds the grant's lock.
func (c *Client) fill(ctx context.Context, g *grant, r *request) error {
	g.header, g.expires = "", time.Time{}
	if g.challenge.scheme == "basic" {
		if r.auth.Username == "" {
			return r.loginNeeded()
		}
		g.header = r.auth.basic()
		return nil
	}
	if r.auth.RegistryToken != "" {
		g.header = "Bearer " + string(r.auth.RegistryToken)
		return nil
	}
	token, life, err := c.fetchToken(ctx, g.challenge, r)
	if err != nil {
		return err
	}
	g.header, g.expires = "Bearer "+token, time.Now().Add(life-min(tokenMargin, life/2))
	return nil
}

// tokenAnswer is the body of a token server's 200.
type tokenAnswer struct {
	Token       string `json:"token"`
	AccessToken string `json:"access_token"` // the OAuth2 name of the same thing
	ExpiresIn   int64  `json:"expires_in"`   // seconds
	Refresh     Secret `json:"refresh_token"`
}

// fetchToken asks the realm for an access token, by the rules in the package comment.
func (c *Client) fetchToken(ctx context.Context, ch *challenge, r *request) (string, time.Duration, error) {
	realm, err := c.realm(ch.params["realm"], r)
	if err != nil {
		return "", 0, err
	}
	form := url.Values{}
	if service := ch.params["service"]; service != "" {
		form.Set("service", service)
	}
	scopes := append([]string(nil), r.scopes...)
	// A registry behind a proxy may know the repository by another name than we do.
	if asked := ch.params["scope"]; asked != "" && !contains(scopes, asked) {
		scopes = append(scopes, asked)
	}

	t := &request{
		site:   r.site,
		who:    "token server " + r.outside(realm.Host) + " of registry " + r.site.name,
		doing:  r.doing,
		method: http.MethodGet,
		url:    realm,
		header: http.Header{"Accept": {"application/json"}},
		auth:   r.auth,
		said:   r.said,
	}
	if r.auth.IdentityToken != "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", string(r.auth.IdentityToken))
		form.Set("client_id", clientID)
		form.Set("scope", strings.Join(scopes, " "))
		t.method = http.MethodPost
		t.header.Set("Content-Type", "application/x-www-form-urlencoded")
		t.setBody([]byte(form.Encode()))
	} else {
		for _, scope := range scopes {
			form.Add("scope", scope)
		}
		if r.auth.Username != "" {
			form.Set("account", r.auth.Username)
			if r.identity != nil {
				form.Set("offline_token", "true")
				form.Set("client_id", clientID)
			}
			t = t.with(r.auth.basic())
		}
		query := realm.Query()
		for k, v := range form {
			query[k] = v
		}
		realm.RawQuery = query.Encode()
	}

	resp, err := c.retry(ctx, t, c.exchange)
	if err != nil {
		return "", 0, err
	}
	defer resp.close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusBadRequest:
		// 400 is OAuth2's answer to a refresh token it does not like (RFC 6749 §5.2).
		return "", 0, r.loginRefused()
	default:
		return "", 0, t.statusError(resp)
	}
	body, err := readLimited(resp.Body, maxTokenBytes)
	if err != nil {
		return "", 0, t.bodyError("token", maxTokenBytes, err)
	}
	var answer tokenAnswer
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", 0, t.fail(corrupt, t.who+" answered something that is not a token", "")
	}
	token := answer.Token
	if token == "" {
		token = answer.AccessToken
	}
	if !isVisibleASCII(token) {
		return "", 0, t.fail(corrupt, t.who+" answered without a usable token", "")
	}
	if r.identity != nil {
		*r.identity = answer.Refresh
	}
	life := defaultTokenLife
	if answer.ExpiresIn > 0 {
		life = time.Duration(min(answer.ExpiresIn, 24*3600)) * time.Second
	}
	return token, life, nil
}

// realm validates the URL a challenge wants us to send credentials to.
func (c *Client) realm(raw string, r *request) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" || u.Hostname() == "" {
		return nil, r.fail(refused, "registry "+r.site.name+" names a malformed token server", "")
	}
	u.Fragment = ""
	switch u.Scheme {
	case "https":
		return u, nil
	case "http":
		plain := r.url.Scheme == "http" &&
			(u.Hostname() == r.url.Hostname() ||
				isLoopback(u.Host) && isLoopback(r.url.Host) ||
				c.hosts[u.Host].PlainHTTP || c.hosts[u.Host].Insecure)
		if plain {
			return u, nil
		}
	}
	return nil, r.fail(refused, fmt.Sprintf("registry %s wants credentials sent unprotected to %s", r.site.name, r.outside(u.Host)), "it must name an https token server")
}

func contains(list []string, s string) bool {
	for _, item := range list {
		if item == s {
			return true
		}
	}
	return false
}

// isVisibleASCII keeps line breaks and the like out of a header.
func isVisibleASCII(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s != ""
}
