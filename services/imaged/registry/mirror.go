package registry

import (
	"context"
	"net/url"
	"time"

	"github.com/distribution/reference"

	"berth/internal/fault"
)

// awayLife is how long an unavailable mirror is passed over.
const awayLife = time.Minute

// parseMirror accepts scheme and host, with or without a port, and nothing more.
func parseMirror(base string) (site, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.User != nil ||
		u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return site{}, invalid("mirror %q: want https://host or https://host:port", redactURL(base))
	}
	// The domain of a reference is what a host may look like; a dot or port in it is not
	// needed here, so it is borrowed a port.
	host := u.Host
	if u.Port() == "" {
		host += ":1"
	}
	if named, err := reference.ParseNormalizedNamed(host + "/x"); err != nil || reference.Domain(named) != host {
		return site{}, invalid("mirror %q: malformed host", redactURL(base))
	}
	return site{name: u.Host, host: u.Host, scheme: u.Scheme}, nil
}

// redactURL keeps a password in a URL's userinfo out of messages, even if it does not
// parse.
func redactURL(s string) string {
	if u, err := url.Parse(s); err == nil {
		u.RawQuery = ""
		return u.Redacted()
	}
	return "(malformed URL)"
}

// pullFrom fetches something from the first mirror that has it, or else from the registry.
// Mirrors see no credentials, and what goes wrong with one is logged, not returned.
func pullFrom[T any](ctx context.Context, c *Client, repo repository, auth Auth, fetch func(repository, Auth) (T, error)) (T, error) {
	for _, m := range c.mirrors[repo.host] {
		if c.isAway(m) {
			continue
		}
		got, err := fetch(repository{site: m, path: repo.path}, Auth{})
		if err == nil || ctx.Err() != nil {
			return got, err
		}
		if fault.Is(err, fault.Unavailable) {
			c.setAway(m)
		}
		c.log.Debug("mirror did not serve", "mirror", m.name, "registry", repo.name, "error", err)
	}
	return fetch(repo, auth)
}

func (c *Client) isAway(m site) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Before(c.away[m.host])
}

func (c *Client) setAway(m site) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away[m.host] = time.Now().Add(awayLife)
}
