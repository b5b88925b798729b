package registry

import (
	"context"
	_ "crypto/sha256" // digest algorithms that validDigest accepts
	_ "crypto/sha512"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/internal/fault"
	"berth/services/imaged/strictjson"
)

// MaxManifestBytes is the largest manifest or index accepted, as distribution-spec advises.
const MaxManifestBytes = 4 << 20

// Docker's names for what OCI later standardised, and for what came before.
const (
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"

	mediaTypeSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	mediaTypeSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

var acceptManifests = strings.Join([]string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
	MediaTypeDockerIndex, MediaTypeDockerManifest,
}, ", ")

// IsIndex tells whether a media type is a list of manifests, one a platform.
func IsIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == MediaTypeDockerIndex
}

// IsManifest tells whether a media type is an image manifest of a kind we read.
func IsManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == MediaTypeDockerManifest
}

// target is what a reference points at within its repository.
type target struct {
	repository
	tag    string        // empty if there is a digest
	digest digest.Digest // wins over a tag, as with docker
	text   string        // familiar to the user: repo:tag or repo@digest
}

func (t target) last() string {
	if t.digest != "" {
		return t.digest.String()
	}
	return t.tag
}

// parseTarget validates a reference that must be tagged or digested.
func parseTarget(ref reference.Named) (target, error) {
	repo, err := parseRepository(ref)
	if err != nil {
		return target{}, err
	}
	t := target{repository: repo}
	if digested, ok := ref.(reference.Digested); ok {
		t.digest = digested.Digest()
		t.text = t.repository.String() + "@" + t.digest.String()
		return t, validDigest(t.digest)
	}
	tagged, ok := ref.(reference.Tagged)
	if !ok {
		return target{}, invalid("image name %q needs a tag or digest", ref.Name())
	}
	t.tag = tagged.Tag()
	t.text = t.repository.String() + ":" + t.tag
	if reference.TagRegexp.FindString(t.tag) != t.tag || t.tag == "" {
		return target{}, invalid("tag %q is malformed", t.tag)
	}
	return t, nil
}

func pullScope(r repository) string { return "repository:" + r.path + ":pull" }
func pushScope(r repository) string { return "repository:" + r.path + ":pull,push" }

// Resolve asks what a tag or digest points at without fetching it, where the registry can
// say. The descriptor's size and media type are the registry's word until Manifest confirms
// them.
func (c *Client) Resolve(ctx context.Context, ref reference.Named, auth Auth) (ocispec.Descriptor, error) {
	t, err := parseTarget(ref)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return pullFrom(ctx, c, t.repository, auth, func(from repository, auth Auth) (ocispec.Descriptor, error) {
		return c.resolve(ctx, t, from, auth)
	})
}

func (c *Client) resolve(ctx context.Context, t target, from repository, auth Auth) (ocispec.Descriptor, error) {
	resp, r, err := c.askManifest(ctx, t, from, http.MethodHead, auth)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		defer resp.close()
	case http.StatusMethodNotAllowed, http.StatusNotImplemented, http.StatusBadRequest:
		resp.close()
		return c.resolveByGet(ctx, t, from, auth)
	default:
		return ocispec.Descriptor{}, r.statusError(resp)
	}
	desc := ocispec.Descriptor{
		MediaType: mediaType(resp),
		Digest:    digest.Digest(resp.Header.Get("Docker-Content-Digest")),
		Size:      resp.ContentLength,
	}
	if desc.Digest == "" || desc.Size < 0 || !(IsIndex(desc.MediaType) || IsManifest(desc.MediaType)) {
		return c.resolveByGet(ctx, t, from, auth)
	}
	if err := r.checkAnsweredDigest(desc.Digest, t.digest); err != nil {
		return ocispec.Descriptor{}, err
	}
	if desc.Size > MaxManifestBytes {
		return ocispec.Descriptor{}, r.bodyError("manifest", MaxManifestBytes, errTooLong)
	}
	return desc, nil
}

func (c *Client) resolveByGet(ctx context.Context, t target, from repository, auth Auth) (ocispec.Descriptor, error) {
	m, err := c.manifest(ctx, t, from, auth)
	return m.desc, err
}

// Manifest fetches the manifest or index that ref points at. The bytes are returned as they
// came, as their digest is the image's name; they have been checked against that digest,
// and to be one JSON document of the media type in the descriptor.
func (c *Client) Manifest(ctx context.Context, ref reference.Named, auth Auth) ([]byte, ocispec.Descriptor, error) {
	t, err := parseTarget(ref)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	m, err := pullFrom(ctx, c, t.repository, auth, func(from repository, auth Auth) (document, error) {
		return c.manifest(ctx, t, from, auth)
	})
	return m.raw, m.desc, err
}

// document is a manifest or index that has been checked.
type document struct {
	raw  []byte
	desc ocispec.Descriptor
}

func (c *Client) manifest(ctx context.Context, t target, from repository, auth Auth) (document, error) {
	resp, r, err := c.askManifest(ctx, t, from, http.MethodGet, auth)
	if err != nil {
		return document{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return document{}, r.statusError(resp)
	}
	defer resp.close()
	if resp.ContentLength > MaxManifestBytes {
		return document{}, r.bodyError("manifest", MaxManifestBytes, errTooLong)
	}
	raw, err := readLimited(resp.Body, MaxManifestBytes)
	if err != nil {
		return document{}, r.bodyError("manifest", MaxManifestBytes, err)
	}
	algorithm := digest.SHA256
	if t.digest != "" {
		algorithm = t.digest.Algorithm()
	}
	desc := ocispec.Descriptor{Digest: algorithm.FromBytes(raw), Size: int64(len(raw))}
	if t.digest != "" && desc.Digest != t.digest {
		return document{}, r.fail(corrupt, fmt.Sprintf("%s sent a manifest with another digest, %s", r.who, desc.Digest), "")
	}
	if answered := digest.Digest(resp.Header.Get("Docker-Content-Digest")); answered != "" && t.digest == "" {
		if err := r.checkAnsweredDigest(answered, ""); err != nil {
			return document{}, err
		}
		if actual := answered.Algorithm().FromBytes(raw); actual != answered {
			return document{}, r.fail(corrupt, fmt.Sprintf("%s says the manifest is %s but sent %s", r.who, answered, actual), "")
		}
		desc.Digest = answered
	}
	desc.MediaType, err = CheckManifest(raw, mediaType(resp))
	if err != nil {
		p := problem{fault.KindOf(err), fault.ReasonOf(err)}
		return document{}, r.fail(p, r.outside(err.Error()), "")
	}
	return document{raw, desc}, nil
}

func (c *Client) askManifest(ctx context.Context, t target, from repository, method string, auth Auth) (*response, *request, error) {
	r, err := c.newRequest(ctx, from.site, "pull "+t.text, method, from.path+"/manifests/"+t.last(), auth, pullScope(from))
	if err != nil {
		return nil, nil, err
	}
	r.header.Set("Accept", acceptManifests)
	resp, err := c.do(ctx, r)
	return resp, r, err
}

// checkAnsweredDigest validates a digest that a registry sent before anybody uses it.
func (r *request) checkAnsweredDigest(answered, want digest.Digest) error {
	if answered.Validate() != nil {
		return r.fail(corrupt, fmt.Sprintf("%s answered with a malformed digest %q", r.who, r.outside(string(answered))), "")
	}
	if want != "" && answered.Algorithm() == want.Algorithm() && answered != want {
		return r.fail(corrupt, fmt.Sprintf("%s answered with another digest, %s", r.who, answered), "")
	}
	return nil
}

func mediaType(resp *response) string {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// CheckManifest makes sure that raw means one thing only, and returns its media type.
// declared is what came with it (Content-Type, or a descriptor's mediaType) and may be
// empty.
//
// One digest can be read as manifest or as index, depending on who reads (CVE-2021-41190),
// so the two must not mix, the document's own mediaType must agree with the declared one,
// and no name may occur twice in an object: parsers differ in which of the two they take.
func CheckManifest(raw []byte, declared string) (string, error) {
	if len(raw) > MaxManifestBytes {
		return "", tooLarge.errorf("manifest has %d bytes, more than %d MiB", len(raw), MaxManifestBytes>>20)
	}
	fields, err := strictjson.Fields(raw)
	if err != nil {
		return "", corrupt.errorf("manifest is not valid: %s", oneLine(err.Error()))
	}
	var version int
	if v, ok := fields["schemaversion"]; ok && json.Unmarshal(v, &version) != nil {
		return "", corrupt.errorf("manifest has a malformed schemaVersion")
	}
	_, signed := fields["signatures"]
	_, fsLayers := fields["fslayers"]
	if version == 1 || signed || fsLayers || declared == mediaTypeSchema1 || declared == mediaTypeSchema1Signed {
		return "", unsupported.errorf("image has the obsolete schema 1 format of before 2017; it must be pushed anew with a current tool")
	}
	if version != 2 {
		return "", unsupported.errorf("manifest has schema version %d, only 2 is known", version)
	}

	var own string
	if v, ok := fields["mediatype"]; ok && json.Unmarshal(v, &own) != nil {
		return "", corrupt.errorf("manifest has a malformed mediaType")
	}
	known := func(t string) bool { return IsIndex(t) || IsManifest(t) }
	if known(declared) && own != "" && own != declared {
		return "", corrupt.errorf("manifest says it is %q but came as %q", oneLine(own), declared)
	}
	_, manifests := fields["manifests"]
	_, layers := fields["layers"]
	_, config := fields["config"]
	is := declared
	switch {
	case manifests && (layers || config):
		return "", corrupt.errorf("manifest is an image and an index at once")
	case known(declared):
	case own != "":
		is = own
	case manifests:
		is = ocispec.MediaTypeImageIndex
	case layers && config:
		is = ocispec.MediaTypeImageManifest
	}
	if IsIndex(is) && manifests || IsManifest(is) && layers && config {
		return is, nil
	}
	if !known(is) {
		return "", unsupported.errorf("media type %q is not an image", oneLine(is))
	}
	return "", corrupt.errorf("manifest is not the %q it says it is", is)
}
