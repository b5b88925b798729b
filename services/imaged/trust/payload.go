package trust

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"berth/services/imaged/strictjson"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// signatureKind is what the payload calls itself (cosign, "Simple Signing" in SIGNATURE_SPEC.md).
const signatureKind = "cosign container image signature"

// speaksOf makes sure that a payload, which a key of the rule signed, is about the image that was fetched as name and
// came to the digest d.
func (r *rule) speaksOf(payload []byte, name reference.Named, d digest.Digest) error {
	var doc struct {
		Critical map[string]json.RawMessage `json:"critical"`
	}
	var kind string
	var image struct {
		Digest string `json:"docker-manifest-digest"`
	}
	var identity struct {
		Reference string `json:"docker-reference"`
	}
	if err := strictjson.Decode(payload, &doc); err != nil {
		return errors.New("what was signed is not valid")
	}
	parts := map[string]any{"type": &kind, "image": &image, "identity": &identity}
	for key, raw := range doc.Critical { // what is critical and not understood must not be passed over
		into, ok := parts[key]
		if !ok || json.Unmarshal(raw, into) != nil {
			return fmt.Errorf("what was signed has a part %.40q that is not understood", key)
		}
	}
	switch {
	case kind != signatureKind:
		return fmt.Errorf("what was signed is a %.60q", kind)
	case image.Digest != d.String():
		return fmt.Errorf("the signature is of %.80q", image.Digest)
	}
	return r.identity(identity.Reference, name)
}

// identity compares the name that was signed with the one that is pulled: a signature of one repository's image must
// not do for another's, nor that of an old tag for a new one.
func (r *rule) identity(text string, name reference.Named) error {
	signed, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return fmt.Errorf("the signature is for %.100q, which is no name", text)
	}
	// Docker's registry under its other name.
	repo := signed.Name()
	if rest, ok := strings.CutPrefix(repo, "index.docker.io/"); ok {
		repo = "docker.io/" + rest
	}
	ok := repo == name.Name()
	if len(r.SignedAs) > 0 {
		_, ok = fits(r.SignedAs, repo)
	}
	if !ok {
		return fmt.Errorf("the signature is for %.200s", repo)
	}
	tag, tagged := signed.(reference.Tagged)
	asked, byTag := name.(reference.Tagged)
	_, byDigest := name.(reference.Canonical)
	if tagged && byTag && !byDigest && tag.Tag() != asked.Tag() {
		return fmt.Errorf("the signature is for the tag %s", tag.Tag())
	}
	return nil
}
