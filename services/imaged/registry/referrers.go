package registry

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/internal/fault"
)

// Referrers lists the manifests in repo that say they are about the manifest subject: signatures, SBOMs and the like.
// artifactType, if not empty, leaves out those of other types. Registries without the referrers API of OCI 1.1 keep such
// a list under a tag made of the digest.
func (c *Client) Referrers(ctx context.Context, repo reference.Named, subject digest.Digest, artifactType string, auth Auth) ([]ocispec.Descriptor, error) {
	rp, err := parseRepository(repo)
	if err != nil {
		return nil, err
	}
	if err := validDigest(subject); err != nil {
		return nil, err
	}
	all, err := c.referrersByAPI(ctx, rp, subject, artifactType, auth)
	if errors.Is(err, errNoReferrers) {
		all, _, err = c.referrersByTag(ctx, rp, subject, auth)
	}
	if err != nil {
		return nil, err
	}
	kept := all[:0]
	for _, d := range all {
		if artifactType == "" || d.ArtifactType == artifactType {
			kept = append(kept, d)
		}
	}
	return kept, nil
}

var errNoReferrers = errors.New("registry has no referrers API")

func (c *Client) referrersByAPI(ctx context.Context, rp repository, subject digest.Digest, artifactType string, auth Auth) ([]ocispec.Descriptor, error) {
	r, err := c.newRequest(ctx, rp.site, "list referrers of "+rp.String()+"@"+subject.String(), http.MethodGet, rp.path+"/referrers/"+subject.String(), auth, pullScope(rp))
	if err != nil {
		return nil, err
	}
	if artifactType != "" {
		r.url.RawQuery = url.Values{"artifactType": {artifactType}}.Encode()
	}
	r.header.Set("Accept", ocispec.MediaTypeImageIndex)
	resp, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest, http.StatusNotImplemented:
		return nil, errNoReferrers
	default:
		return nil, r.statusError(resp)
	}
	if mediaType(resp) != ocispec.MediaTypeImageIndex {
		return nil, errNoReferrers // a page for people, whatever was asked for
	}
	raw, err := readLimited(resp.Body, MaxManifestBytes)
	if err != nil {
		return nil, r.bodyError("list of referrers", MaxManifestBytes, err)
	}
	return readReferrers(raw)
}

// referrersByTag reads the list that clients keep in registries without the API, and gives its bytes' digest as well.
func (c *Client) referrersByTag(ctx context.Context, rp repository, subject digest.Digest, auth Auth) ([]ocispec.Descriptor, digest.Digest, error) {
	m, err := c.manifest(ctx, referrersTag(rp, subject), rp, auth)
	if fault.Is(err, fault.NotFound) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	all, err := readReferrers(m.raw)
	return all, m.desc.Digest, err
}

func referrersTag(rp repository, subject digest.Digest) target {
	tag := subject.Algorithm().String() + "-" + subject.Encoded()
	tag = tag[:min(len(tag), 128)]
	return target{repository: rp, tag: tag, text: rp.String() + ":" + tag}
}

func readReferrers(raw []byte) ([]ocispec.Descriptor, error) {
	if is, err := CheckManifest(raw, ocispec.MediaTypeImageIndex); err != nil || !IsIndex(is) {
		return nil, corrupt.errorf("list of referrers is not an index")
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, corrupt.errorf("list of referrers is malformed: %s", oneLine(err.Error()))
	}
	for _, d := range index.Manifests {
		if validDigest(d.Digest) != nil || d.Size < 0 {
			return nil, corrupt.errorf("list of referrers holds a malformed descriptor")
		}
	}
	return index.Manifests, nil
}

// addReferrer enters a manifest that was just pushed into the list under the tag, for registries that do not by
// themselves. Two clients that do so at the same time may lose one of the two entries; the protocol has no lock.
func (c *Client) addReferrer(ctx context.Context, rp repository, subject digest.Digest, desc ocispec.Descriptor, auth Auth) error {
	all, _, err := c.referrersByTag(ctx, rp, subject, auth)
	if err != nil {
		return err
	}
	for _, d := range all {
		if d.Digest == desc.Digest {
			return nil
		}
	}
	raw, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: append(all, desc)})
	if err != nil {
		return err
	}
	t := referrersTag(rp, subject)
	name, err := reference.WithName(rp.String())
	if err != nil {
		return err
	}
	tagged, err := reference.WithTag(name, t.tag)
	if err != nil {
		return err
	}
	_, err = c.PushManifest(ctx, tagged, ocispec.MediaTypeImageIndex, raw, auth)
	return err
}

// PushReferrer is PushManifest for a manifest that names a subject: it makes sure that Referrers of the subject lists it.
// desc describes raw, with the artifact type and annotations the list shall have.
func (c *Client) PushReferrer(ctx context.Context, ref reference.Named, raw []byte, subject digest.Digest, desc ocispec.Descriptor, auth Auth) error {
	t, err := parseTarget(ref)
	if err != nil {
		return err
	}
	if err := validDigest(subject); err != nil {
		return err
	}
	resp, r, err := c.putManifest(ctx, t, desc.MediaType, raw, auth)
	if err != nil {
		return err
	}
	defer resp.close()
	if err := r.checkStored(resp, desc.Digest); err != nil {
		return err
	}
	if resp.Header.Get("OCI-Subject") != "" { // the registry keeps the list itself
		return nil
	}
	return c.addReferrer(ctx, t.repository, subject, desc, auth)
}
