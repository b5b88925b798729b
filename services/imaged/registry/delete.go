package registry

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func deleteScope(r repository) string { return "repository:" + r.path + ":delete,pull,push" }

// Delete removes what ref names from its registry: the tag alone, if ref has one, or the manifest with all its tags, if
// ref has a digest. Blobs go when the registry next collects its garbage.
//
// Registries of before OCI 1.1, docker-registry among them, cannot delete a tag without the manifest behind it, which
// other tags may name. There the tag is moved to a manifest made for the purpose, which is then deleted.
func (c *Client) Delete(ctx context.Context, ref reference.Named, auth Auth) error {
	t, err := parseTarget(ref)
	if err != nil {
		return err
	}
	status, resp, r, err := c.delete(ctx, t, auth)
	switch {
	case err != nil:
		return err
	case status == http.StatusAccepted || status == http.StatusOK || status == http.StatusNoContent:
		resp.close()
		return nil
	case t.digest == "" && (status == http.StatusBadRequest || status == http.StatusMethodNotAllowed || status == http.StatusNotFound || status == http.StatusNotImplemented):
		resp.close()
		return c.deleteTag(ctx, t, auth)
	case status == http.StatusMethodNotAllowed:
		resp.close()
		return r.fail(unsupported, "registry "+t.name+" does not delete", "allow it in the registry's configuration")
	}
	return r.statusError(resp)
}

func (c *Client) delete(ctx context.Context, t target, auth Auth) (int, *response, *request, error) {
	r, err := c.newRequest(ctx, t.site, "delete "+t.text, http.MethodDelete, t.path+"/manifests/"+t.last(), auth, deleteScope(t.repository))
	if err != nil {
		return 0, nil, nil, err
	}
	resp, err := c.do(ctx, r)
	if err != nil {
		return 0, nil, nil, err
	}
	return resp.StatusCode, resp, r, nil
}

// deleteTag deletes a tag by way of a manifest of its own.
func (c *Client) deleteTag(ctx context.Context, t target, auth Auth) error {
	if _, err := c.resolve(ctx, t, t.repository, auth); err != nil {
		return err // not there, or not ours to see
	}
	repo, err := reference.WithName(t.repository.String())
	if err != nil {
		return invalid("image name %q is malformed", t.repository.String())
	}
	config := []byte(fmt.Sprintf(`{"os":"none","architecture":"none","rootfs":{"type":"layers","diff_ids":[]},"comment":%q}`, rand.Text()))
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	open := func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(config))), nil }
	if _, err := c.PushBlob(ctx, repo, desc, open, "", auth, nil); err != nil {
		return err
	}
	raw, err := json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: desc, Layers: []ocispec.Descriptor{}})
	if err != nil {
		return err
	}
	tagged, err := reference.WithTag(repo, t.tag)
	if err != nil {
		return invalid("tag %q is malformed", t.tag)
	}
	d, err := c.PushManifest(ctx, tagged, ocispec.MediaTypeImageManifest, raw, auth)
	if err != nil {
		return err
	}
	digested, err := reference.WithDigest(repo, d)
	if err != nil {
		return err
	}
	return c.Delete(ctx, digested, auth)
}
