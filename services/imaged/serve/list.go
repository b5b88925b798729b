package serve

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"berth/services/imaged/manifest"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxList      = 10_000  // names in one answer
	maxReferrers = 2 << 20 // bytes of descriptors in one answer; all clients read 4 MiB
)

// tags lists a repository's tags.
func (c *call) tags() {
	all, ok := c.Hosted.Tags(c.path)
	for _, repo := range others(c.path) {
		if ok {
			break
		}
		for name := range c.Images.NamesIn(repo) {
			ok = true
			if tag, is := strings.CutPrefix(name, repo+":"); is {
				all = append(all, tag)
			}
		}
		slices.Sort(all)
	}
	if !ok {
		c.fail(http.StatusNotFound, nameUnknown, "no repository %s", c.path)
		return
	}
	if page, ok := c.page(all); ok {
		c.json(http.StatusOK, struct {
			Name string   `json:"name"`
			Tags []string `json:"tags"`
		}{c.path, page})
	}
}

// catalog lists the repositories.
func (c *call) catalog() {
	all := map[string]bool{}
	for _, path := range c.Hosted.Repositories() {
		all[path] = true
	}
	for repo := range c.Images.Repositories() {
		if path, ok := pathOf(repo, c.Hosted.Name); ok {
			all[path] = true
		}
	}
	if page, ok := c.page(slices.Sorted(maps.Keys(all))); ok {
		c.json(http.StatusOK, struct {
			Repositories []string `json:"repositories"`
		}{page})
	}
}

// page cuts a sorted list to what the parameters n and last ask for, and says where it goes on.
func (c *call) page(all []string) ([]string, bool) {
	q := c.r.URL.Query()
	n := maxList
	if text := q.Get("n"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 0 {
			c.fail(http.StatusBadRequest, unsupported, "n=%.40q is not a number of entries", text)
			return nil, false
		}
		n = min(n, maxList)
	}
	if last := q.Get("last"); last != "" {
		i, found := slices.BinarySearch(all, last)
		if found {
			i++
		}
		all = all[i:]
	}
	page := append([]string{}, all[:min(n, len(all))]...)
	if n > 0 && n < len(all) {
		c.next(url.Values{"n": {strconv.Itoa(n)}, "last": {page[n-1]}})
	}
	return page, true
}

// next says where a list goes on.
func (c *call) next(q url.Values) {
	c.w.Header().Set("Link", fmt.Sprintf("<%s?%s>; rel=\"next\"", c.r.URL.EscapedPath(), q.Encode()))
}

// referrers lists the manifests that are about subject. Annotations are read from the manifests, which makes answers of
// megabytes: they go in pages.
func (c *call) referrers(subject digest.Digest) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	q := c.r.URL.Query()
	artifactType, last := q.Get("artifactType"), q.Get("last")
	if artifactType != "" {
		c.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	size := 0
	for _, m := range c.Hosted.Referrers(c.path, subject) {
		if m.Digest.String() <= last || artifactType != "" && m.Type != artifactType {
			continue
		}
		raw, err := c.Store.ReadAll(m.Digest, manifest.MaxBytes)
		if err != nil {
			c.Log.Error("read manifest", "digest", m.Digest, "error", err)
			continue
		}
		var doc struct {
			Annotations map[string]string `json:"annotations"`
		}
		if json.Unmarshal(raw, &doc) != nil {
			continue
		}
		for k, v := range doc.Annotations {
			size += len(k) + len(v)
		}
		if size += 512; size > maxReferrers && len(index.Manifests) > 0 {
			next := url.Values{"last": {index.Manifests[len(index.Manifests)-1].Digest.String()}}
			if artifactType != "" {
				next.Set("artifactType", artifactType)
			}
			c.next(next)
			break
		}
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: m.MediaType, Digest: m.Digest, Size: m.Size, ArtifactType: m.Type, Annotations: doc.Annotations,
		})
	}
	c.w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	c.json(http.StatusOK, index)
}
