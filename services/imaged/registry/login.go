package registry

import (
	"context"
	"net/http"
)

// Ping checks that host is a registry and that it accepts auth. A registry that asks nobody
// for a login accepts any.
func (c *Client) Ping(ctx context.Context, host string, auth Auth) error {
	_, err := c.Login(ctx, host, auth)
	return err
}

// Login is Ping, and returns the identity token to keep instead of the password, if the
// registry's token server gives one; most give none.
func (c *Client) Login(ctx context.Context, host string, auth Auth) (Secret, error) {
	s, err := parseSite(host)
	if err != nil {
		return "", err
	}
	r, err := c.newRequest(ctx, s, "log in to "+s.name, http.MethodGet, "", auth)
	if err != nil {
		return "", err
	}
	var identity Secret
	r.identity = &identity
	resp, err := c.do(ctx, r)
	if err != nil {
		return "", err
	}
	if resp.StatusCode == http.StatusNotFound {
		resp.close()
		return "", r.fail(unsupported, s.name+" is not a container registry, or one of before 2015", "check the address")
	}
	if resp.StatusCode != http.StatusOK {
		return "", r.statusError(resp)
	}
	resp.close()
	return identity, nil
}
