package pull

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/fault"
	"berth/services/imaged/registry"
	"berth/services/imaged/trust"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Referrers is of a registry that has none.
func (f *fakeRegistry) Referrers(context.Context, reference.Named, digest.Digest, string, registry.Auth) ([]ocispec.Descriptor, error) {
	return nil, nil
}

// trusting makes the puller obey rules, whose keys are that of the function it gives: that signs a digest of a repository
// as cosign does.
func (r *rig) trusting(rules ...trust.Rule) (sign func(repo string, d digest.Digest)) {
	r.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		r.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		r.Fatal(err)
	}
	file := filepath.Join(r.TempDir(), "key.pub")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		r.Fatal(err)
	}
	for i := range rules {
		if rules[i].Require == trust.Signed {
			rules[i].Keys = []string{file}
		}
	}
	if r.puller.Trust, err = trust.New(r.registry, rules); err != nil {
		r.Fatal(err)
	}
	return func(repo string, d digest.Digest) {
		payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, repo, d)
		l := r.registry.addBlob("application/vnd.dev.cosign.simplesigning.v1+json", payload)
		l.Annotations = map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(ed25519.Sign(private, payload))}
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{l}, Config: r.registry.addBlob(ocispec.MediaTypeImageConfig, []byte("{}"))}
		m.SchemaVersion = 2
		raw, err := json.Marshal(m)
		if err != nil {
			r.Fatal(err)
		}
		r.registry.addManifest(repo+":"+d.Algorithm().String()+"-"+d.Encoded()+".sig", ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw)}, raw)
	}
}

var signed = trust.Rule{Repositories: []string{"docker.io/team/**"}, Require: trust.Signed}

// TestTrust: what is not signed leaves nothing, by tag, digest and with all tags; what is signed is pulled.
func TestTrust(t *testing.T) {
	r := newRig(t)
	sign := r.trusting(signed, trust.Rule{Repositories: []string{"docker.io/bad/*"}, Require: trust.Reject})
	good := r.registry.addImage(t, "team/app:1", "amd64", "gzip", layerTar(t, "a", "1"))
	bad := r.registry.addImage(t, "team/app:2", "amd64", "gzip", layerTar(t, "a", "2"))
	r.registry.addImage(t, "bad/app:1", "amd64", "gzip", layerTar(t, "a", "3"))
	r.registry.addImage(t, "free/app:1", "amd64", "gzip", layerTar(t, "a", "4"))
	sign("team/app", good.Digest)
	for name, reason := range map[string]string{
		"team/app:2": trust.Missing, "team/app@" + bad.Digest.String(): trust.Missing, "team/app:1@" + bad.Digest.String(): trust.Missing, "bad/app:1": "REJECTED_BY_POLICY",
	} {
		_, err := r.pull(name)
		if !fault.Is(err, fault.PermissionDenied) || fault.ReasonOf(err) != reason {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.settle(0, 0)
	if p, bytes, err := r.store.Partials(); p+int(bytes) != 0 || err != nil {
		t.Errorf("%d downloads are kept, %v", p, err)
	}
	for _, d := range r.registry.layers {
		if n := r.registry.requests[d]; n > 0 {
			t.Errorf("layer %s was asked for", d)
		}
	}
	r.mustPull("team/app:1")
	r.mustPull("team/app@" + good.Digest.String())
	r.mustPull("free/app:1")
	if _, err := r.puller.PullTags(context.Background(), Request{Name: parse("team/app")}, r.puller.PullOne); fault.ReasonOf(err) != trust.Missing {
		t.Errorf("all tags, one of which is not signed: %v", err)
	}
	sign("team/app", bad.Digest)
	if all, err := r.puller.PullTags(context.Background(), Request{Name: parse("team/app")}, r.puller.PullOne); err != nil || len(all) != 2 {
		t.Errorf("all tags, signatures among them: %+v, %v", all, err)
	}
}

// TestTrustIndex: an index's signature is enough for what it lists, and so is that of the manifest that is picked.
func TestTrustIndex(t *testing.T) {
	host := platforms.DefaultSpec().Architecture
	for _, which := range []string{"index", "manifest", "other"} {
		r := newRig(t)
		sign := r.trusting(signed)
		one := r.registry.addImage(t, "one", host, "gzip", layerTar(t, "arch", "one"))
		two := r.registry.addImage(t, "two", "s390x", "gzip", layerTar(t, "arch", "two"))
		index := r.registry.addIndex(t, "team/multi:1", one, two)
		sign("team/multi", map[string]digest.Digest{"index": index, "manifest": one.Digest, "other": two.Digest}[which])
		_, err := r.pull("team/multi:1")
		if (err == nil) != (which != "other") || err != nil && (fault.ReasonOf(err) != trust.Missing || !strings.Contains(err.Error(), index.String())) {
			t.Errorf("the %s is signed: %v", which, err)
		}
		all, err := r.puller.PullPlatforms(context.Background(), Request{Name: parse("team/multi:1")})
		if which == "index" && (err != nil || len(all) != 3) || which != "index" && fault.ReasonOf(err) != trust.Missing {
			t.Errorf("all platforms, the %s is signed: %+v, %v", which, all, err)
		}
	}
}

// movingRegistry gives a tag another meaning each time it is asked for it.
type movingRegistry struct {
	*fakeRegistry
	tag   string
	means []string // names
}

func (m *movingRegistry) Manifest(ctx context.Context, ref reference.Named, auth registry.Auth) ([]byte, ocispec.Descriptor, error) {
	if ref.String() == m.tag && len(m.means) > 0 {
		ref, m.means = parse(m.means[0]), m.means[1:]
	}
	return m.fakeRegistry.Manifest(ctx, ref, auth)
}

// TestTrustResolvesOnce: a tag that moves while its signature is looked for does not bring in what is not signed.
func TestTrustResolvesOnce(t *testing.T) {
	for _, order := range [][]string{{"good:1", "bad:1"}, {"bad:1", "good:1"}} {
		r := newRig(t)
		sign := r.trusting(signed)
		good := r.registry.addImage(t, "good:1", "amd64", "gzip", layerTar(t, "a", "good"))
		r.registry.addImage(t, "bad:1", "amd64", "gzip", layerTar(t, "a", "bad"))
		sign("team/app", good.Digest)
		r.puller.Registry = &movingRegistry{r.registry, "docker.io/team/app:1", append(order, order...)}
		result, err := r.pull("team/app:1")
		if order[0] == "good:1" && (err != nil || result.Target != good.Digest || r.content(result, "a") != "good") {
			t.Errorf("%v: %+v, %v", order, result, err)
		}
		if order[0] == "bad:1" && fault.ReasonOf(err) != trust.Missing {
			t.Errorf("%v: %+v, %v", order, result, err)
		}
	}
}
