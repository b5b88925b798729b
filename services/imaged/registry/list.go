package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/distribution/reference"

	"berth/internal/fault"
)

const (
	// pageSize is how many names a page is asked to have; a registry may give fewer.
	pageSize     = 1000
	maxPageBytes = 4 << 20
	// maxPages ends a registry that always has another page.
	maxPages = 1000
)

// Tags lists the tags of a repository, in the registry's order.
func (c *Client) Tags(ctx context.Context, repo reference.Named, auth Auth) ([]string, error) {
	rp, err := parseRepository(repo)
	if err != nil {
		return nil, err
	}
	r, err := c.newRequest(ctx, rp.site, "list the tags of "+rp.String(), http.MethodGet, rp.path+"/tags/list", auth, pullScope(rp))
	if err != nil {
		return nil, err
	}
	var all []string
	err = c.pages(ctx, r, func(raw []byte) error {
		var page struct {
			Tags []string `json:"tags"` // null for a repository whose tags were all deleted
		}
		if err := json.Unmarshal(raw, &page); err != nil {
			return err
		}
		for _, tag := range page.Tags {
			if reference.TagRegexp.FindString(tag) != tag || tag == "" {
				return fmt.Errorf("malformed tag %q", oneLine(tag))
			}
			all = append(all, tag)
		}
		return nil
	})
	return all, err
}

// Repositories lists the repositories of a registry, by its catalogue. Public registries have none.
func (c *Client) Repositories(ctx context.Context, host string, auth Auth) ([]string, error) {
	s, err := parseSite(host)
	if err != nil {
		return nil, err
	}
	r, err := c.newRequest(ctx, s, "list the repositories of "+s.name, http.MethodGet, "_catalog", auth, "registry:catalog:*")
	if err != nil {
		return nil, err
	}
	r.object = "a catalogue"
	var all []string
	err = c.pages(ctx, r, func(raw []byte) error {
		var page struct {
			Repositories []string `json:"repositories"`
		}
		if err := json.Unmarshal(raw, &page); err != nil {
			return err
		}
		for _, name := range page.Repositories {
			if _, err := reference.WithName(s.name + "/" + name); err != nil {
				return fmt.Errorf("malformed name %q", oneLine(name))
			}
			all = append(all, name)
		}
		return nil
	})
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unimplemented) {
		return nil, r.fail(unsupported, "registry "+s.name+" has no catalogue", "search on its web page")
	}
	return all, err
}

// pages sends r and follows the Link headers of the answers (RFC 8288, rel="next"), as long as they stay below the
// registry's own /v2/.
func (c *Client) pages(ctx context.Context, r *request, add func(raw []byte) error) error {
	r.url.RawQuery = url.Values{"n": {strconv.Itoa(pageSize)}}.Encode()
	for range maxPages {
		resp, err := c.do(ctx, r)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return r.statusError(resp)
		}
		raw, err := readLimited(resp.Body, maxPageBytes)
		resp.close()
		if err != nil {
			return r.bodyError("list", maxPageBytes, err)
		}
		if err := add(raw); err != nil {
			return r.fail(corrupt, r.who+" sent a malformed list: "+r.outside(err.Error()), "")
		}
		next, ok := nextLink(resp.Header.Values("Link"))
		if !ok {
			return nil
		}
		u, err := r.redirect(r.url, next)
		if err != nil {
			return err
		}
		if origin(u) != origin(r.url) || !strings.HasPrefix(u.Path, "/v2/") {
			return r.fail(refused, r.who+" continues its list at another place", "")
		}
		if u.String() == r.url.String() {
			return r.fail(corrupt, r.who+" sends the same page of a list again and again", "")
		}
		r.url = u
	}
	return r.fail(tooLarge, fmt.Sprintf("%s sent more than %d pages", r.who, maxPages), "")
}

// nextLink is the target of rel="next".
func nextLink(headers []string) (string, bool) {
	for _, h := range headers {
		for link := range strings.SplitSeq(h, ",") {
			target, params, ok := strings.Cut(strings.TrimSpace(link), ">")
			if ok && strings.HasPrefix(target, "<") && (strings.Contains(params, `rel="next"`) || strings.Contains(params, "rel=next")) {
				return target[1:], true
			}
		}
	}
	return "", false
}
