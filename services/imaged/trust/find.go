package trust

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"

	"berth/internal/fault"
	"berth/services/imaged/registry"
	"berth/services/imaged/strictjson"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What cosign's signature specification calls things.
const (
	payloadType     = "application/vnd.dev.cosign.simplesigning.v1+json"
	artifactType    = "application/vnd.dev.cosign.artifact.sig.v1+json"
	signatureAnnot  = "dev.cosignproject.cosign/signature"
	signatureSuffix = ".sig"
)

const (
	maxSignatures = 64       // looked at, in all documents together
	maxReferrers  = 16       // documents about the image
	maxPayload    = 64 << 10 // bytes
	maxSignature  = 8 << 10  // bytes, in base64
)

// search looks for one good signature.
type search struct {
	Registry
	rule   *rule
	name   reference.Named
	digest digest.Digest
	auth   registry.Auth

	seen int
	why  error // what was wrong with the last one by a key of the rule
}

// run looks where cosign puts signatures: under a tag made of the digest, and, newer, among what is about the image.
func (s *search) run(ctx context.Context) (bool, error) {
	repo := reference.TrimNamed(s.name)
	tagged, err := reference.WithTag(repo, s.digest.Algorithm().String()+"-"+s.digest.Encoded()+signatureSuffix)
	if err == nil { // a tag of a sha512 digest would be too long
		if ok, err := s.document(ctx, tagged); ok || err != nil {
			return ok, err
		}
	}
	all, err := s.Referrers(ctx, repo, s.digest, artifactType, s.auth)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for i, d := range all {
		if i == maxReferrers {
			break
		}
		ref, err := reference.WithDigest(repo, d.Digest)
		if err != nil {
			continue
		}
		if ok, err := s.document(ctx, ref); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// absent reports that there are no signatures in some place, as opposed to a registry that does not say.
func absent(err error) bool {
	return fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unimplemented) || fault.Is(err, fault.DataLoss)
}

// document looks at the signatures that one manifest lists.
func (s *search) document(ctx context.Context, ref reference.Named) (bool, error) {
	raw, _, err := s.Manifest(ctx, ref, s.auth)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var doc struct {
		Layers []ocispec.Descriptor `json:"layers"`
	}
	if strictjson.Decode(raw, &doc) != nil {
		return false, nil
	}
	for _, l := range doc.Layers {
		signature := l.Annotations[signatureAnnot]
		if l.MediaType != payloadType || signature == "" || l.Size < 0 || l.Size > maxPayload || len(signature) > maxSignature {
			continue
		}
		if s.seen++; s.seen > maxSignatures {
			return false, nil
		}
		if ok, err := s.signature(ctx, l, signature); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// signature verifies one signature, and that it speaks of the image.
func (s *search) signature(ctx context.Context, desc ocispec.Descriptor, text string) (bool, error) {
	signature, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return false, nil
	}
	payload, err := s.payload(ctx, desc)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// The key first: what a stranger wrote is not read any further.
	if !s.rule.signed(payload, signature) {
		return false, nil
	}
	if err := s.rule.speaksOf(payload, s.name, s.digest); err != nil {
		s.why = err
		return false, nil
	}
	return true, nil
}

// payload fetches a payload. DataLoss if it is not what the manifest says.
func (s *search) payload(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fault.DataLoss.Errorf("BAD_SIGNATURE", "payload: %w", err)
	}
	if int64(len(desc.Data)) == desc.Size && digest.FromBytes(desc.Data) == desc.Digest {
		return desc.Data, nil
	}
	body, err := s.Blob(ctx, reference.TrimNamed(s.name), desc, 0, s.auth)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, maxPayload+1))
	if err != nil {
		return nil, fmt.Errorf("fetch a signature of %s: %w", s.digest, err)
	}
	if int64(len(raw)) != desc.Size || desc.Digest.Algorithm().FromBytes(raw) != desc.Digest {
		return nil, fault.DataLoss.Errorf("BAD_SIGNATURE", "payload %s came as something else", desc.Digest)
	}
	return raw, nil
}

// found says what there was instead of a good signature.
func (s *search) found() string {
	switch {
	case s.why != nil:
		return s.why.Error()
	case s.seen > maxSignatures:
		return fmt.Sprintf("none of the first %d is by one of its %d keys", maxSignatures, len(s.rule.keys))
	case s.seen > 0:
		return fmt.Sprintf("none of the %d there is by one of its %d keys", s.seen, len(s.rule.keys))
	}
	return "there is none"
}
