package trust

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"berth/internal/fault"
	"berth/services/imaged/registry"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fake is a registry in memory, of one repository.
type fake struct {
	manifests map[string][]byte // by tag or digest
	blobs     map[digest.Digest][]byte
	about     map[digest.Digest][]ocispec.Descriptor
	requests  int
	read      int64 // bytes of blobs that were taken
	err       error // what each request fails with
}

func newFake() *fake {
	return &fake{manifests: map[string][]byte{}, blobs: map[digest.Digest][]byte{}, about: map[digest.Digest][]ocispec.Descriptor{}}
}

func (f *fake) Manifest(_ context.Context, ref reference.Named, _ registry.Auth) ([]byte, ocispec.Descriptor, error) {
	if f.requests++; f.err != nil {
		return nil, ocispec.Descriptor{}, f.err
	}
	key := ""
	switch r := ref.(type) {
	case reference.Canonical:
		key = r.Digest().String()
	case reference.Tagged:
		key = r.Tag()
	}
	raw, ok := f.manifests[key]
	if !ok {
		return nil, ocispec.Descriptor{}, fault.NotFound.Errorf("X", "no %s", key)
	}
	return raw, ocispec.Descriptor{Digest: digest.FromBytes(raw), Size: int64(len(raw))}, nil
}

func (f *fake) Referrers(_ context.Context, _ reference.Named, d digest.Digest, kind string, _ registry.Auth) ([]ocispec.Descriptor, error) {
	if f.requests++; f.err != nil {
		return nil, f.err
	}
	if kind != artifactType {
		return nil, nil
	}
	return f.about[d], nil
}

func (f *fake) Blob(_ context.Context, _ reference.Named, d ocispec.Descriptor, _ int64, _ registry.Auth) (io.ReadCloser, error) {
	if f.requests++; f.err != nil {
		return nil, f.err
	}
	raw, ok := f.blobs[d.Digest]
	if !ok {
		return nil, fault.NotFound.Errorf("X", "no %s", d.Digest)
	}
	return io.NopCloser(&counted{bytes.NewReader(raw), &f.read}), nil
}

type counted struct {
	io.Reader
	n *int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	*c.n += int64(n)
	return n, err
}

// signer is a private key that signs as cosign does with a key of its kind.
type signer struct {
	key  crypto.Signer
	hash crypto.Hash // zero: the message itself
}

func signers(t testing.TB) map[string]signer {
	t.Helper()
	made := func(k crypto.Signer, err error) crypto.Signer {
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	return map[string]signer{
		"ecdsa-p256":        {made(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), crypto.SHA256},
		"ecdsa-p384":        {made(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), crypto.SHA256},
		"ecdsa-p384-sha384": {made(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), crypto.SHA384},
		"rsa":               {made(rsa.GenerateKey(rand.Reader, 2048)), crypto.SHA256},
		"ed25519":           {made(ed, err), 0},
	}
}

func (s signer) sign(t testing.TB, payload []byte) []byte {
	t.Helper()
	message := payload
	if s.hash != 0 {
		h := s.hash.New()
		h.Write(payload)
		message = h.Sum(nil)
	}
	signature, err := s.key.Sign(rand.Reader, message, s.hash)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

// file writes the public key, as `cosign generate-key-pair` does.
func (s signer) file(t testing.TB) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return write(t, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func write(t testing.TB, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key.pub")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// payloadOf is what cosign signs.
func payloadOf(name string, d digest.Digest) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, name, d)
}

// layer stores a payload and describes it with its signature.
func (f *fake) layer(payload, signature []byte) ocispec.Descriptor {
	d := digest.FromBytes(payload)
	f.blobs[d] = payload
	return ocispec.Descriptor{MediaType: payloadType, Digest: d, Size: int64(len(payload)),
		Annotations: map[string]string{signatureAnnot: base64.StdEncoding.EncodeToString(signature)}}
}

// document is a manifest of signatures.
func document(t testing.TB, layers ...ocispec.Descriptor) []byte {
	t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: layers,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("{}"), Size: 2}}
	m.SchemaVersion = 2
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func tagOf(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() + ".sig" }

// attach puts signatures where cosign does.
func (f *fake) attach(t testing.TB, d digest.Digest, layers ...ocispec.Descriptor) {
	f.manifests[tagOf(d)] = document(t, layers...)
}

func name(t testing.TB, text string) reference.Named {
	t.Helper()
	n, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		t.Fatal(err)
	}
	return reference.TagNameOnly(n)
}

func policy(t testing.TB, f *fake, rules ...Rule) *Policy {
	t.Helper()
	p, err := New(f, rules)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func opener(text string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader([]byte(text))), nil }
}
