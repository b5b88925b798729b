package trust

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"berth/internal/fault"
	"berth/services/imaged/registry"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const repo = "registry.corp/team/app"

var image = digest.FromString("a manifest")

// TestSigned: a signature by a key of the rule is found, whatever kind of key, wherever it lies.
func TestSigned(t *testing.T) {
	for kind, s := range signers(t) {
		for _, where := range []string{"tag", "referrer", "inline"} {
			f := newFake()
			payload := payloadOf(repo, image)
			l := f.layer(payload, s.sign(t, payload))
			switch where {
			case "referrer":
				raw := document(t, l)
				d := digest.FromBytes(raw)
				f.manifests[d.String()] = raw
				f.about[image] = []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(raw))}}
			case "inline":
				l.Data = payload
				delete(f.blobs, l.Digest)
				fallthrough
			default:
				f.attach(t, image, l)
			}
			p := policy(t, f, Rule{Repositories: []string{"registry.corp/team/*"}, Require: Signed, Keys: []string{signers(t)["rsa"].file(t), s.file(t)}})
			for _, pulled := range []string{repo + ":v1", repo + "@" + image.String(), repo + ":v1@" + image.String()} {
				if err := p.Check(t.Context(), name(t, pulled), image, registry.Auth{}); err != nil {
					t.Errorf("%s, %s, %s: %v", kind, where, pulled, err)
				}
			}
			other := digest.FromString("another manifest")
			if err := p.Check(t.Context(), name(t, repo+":v1"), other, registry.Auth{}); fault.ReasonOf(err) != Missing {
				t.Errorf("%s, %s: another image passes: %v", kind, where, err)
			}
		}
	}
}

// TestRefused: each of these lacks something, and the error says what in one line.
func TestRefused(t *testing.T) {
	all := signers(t)
	ours, theirs := all["ecdsa-p256"], all["ed25519"]
	other := digest.FromString("another manifest")
	with := func(payload string) func(*fake) {
		return func(f *fake) { f.attach(t, image, f.layer([]byte(payload), ours.sign(t, []byte(payload)))) }
	}
	good := string(payloadOf(repo, image))
	for want, set := range map[string]func(*fake){
		"there is none": func(*fake) {},
		"none of the 1 there is by one of its 1 keys": func(f *fake) {
			f.attach(t, image, f.layer([]byte(good), theirs.sign(t, []byte(good))))
		},
		"the signature is for registry.corp/team/other":     with(string(payloadOf("registry.corp/team/other", image))),
		"the signature is for registry.corp/team/app/v2":    with(string(payloadOf(repo+"/v2", image))),
		"the signature is for the tag v0":                   with(string(payloadOf(repo+":v0", image))),
		"is no name":                                        with(string(payloadOf("", image))),
		fmt.Sprintf("the signature is of %q", other):        with(string(payloadOf(repo, other))),
		`the signature is of ""`:                            with(`{"critical":{"type":"cosign container image signature","identity":{"docker-reference":"` + repo + `"}}}`),
		`what was signed is a "atomic container signature"`: with(strings.Replace(good, "cosign container image", "atomic container", 1)),
		`what was signed is a ""`:                           with(`{}`),
		"what was signed is not valid":                      with(strings.Replace(good, `"optional"`, `"critical":{},"optional"`, 1)),
		`has a part "expires" that is not understood`:       with(strings.Replace(good, `"critical":{`, `"critical":{"expires":1,`, 1)),
		"none of the 2 there is by one of its 1 keys": func(f *fake) { // bytes changed after signing, and a signature that is none
			signature := ours.sign(t, []byte(good))
			changed := f.layer([]byte(good+" "), signature)
			broken := f.layer([]byte(good), nil)
			broken.Annotations[signatureAnnot] = "!"
			f.attach(t, image, changed, broken)
		},
		"none of the 3 there is by one of its 1 keys": func(f *fake) { // payloads that are not there, not what they should be, not as long
			l := f.layer([]byte(good), ours.sign(t, []byte(good)))
			absent, swapped, short := l, l, l
			absent.Digest = other
			swapped.Digest = digest.FromString("swapped")
			f.blobs[swapped.Digest] = []byte(good)
			short.Size--
			f.attach(t, image, absent, swapped, short)
		},
	} {
		f := newFake()
		set(f)
		p := policy(t, f, Rule{Repositories: []string{"registry.corp/**"}, Require: Signed, Keys: []string{ours.file(t)}})
		err := p.Check(t.Context(), name(t, repo+":v1"), image, registry.Auth{})
		if !fault.Is(err, fault.PermissionDenied) || fault.ReasonOf(err) != Missing || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
			continue
		}
		for _, must := range []string{repo + ":v1", `"registry.corp/**"`, image.String()} {
			if !strings.Contains(err.Error(), must) || strings.Contains(err.Error(), "\n") {
				t.Errorf("message lacks %q, or is not one line: %v", must, err)
			}
		}
	}
}

// TestHostileSignatures: whoever can write to the repository can make the search neither long nor large, nor hide a
// registry that does not answer.
func TestHostileSignatures(t *testing.T) {
	ours, theirs := signers(t)["ecdsa-p256"], signers(t)["ecdsa-p256"]
	rule := Rule{Repositories: []string{"**"}, Require: Signed, Keys: []string{ours.file(t)}}
	check := func(f *fake) error {
		return policy(t, f, rule).Check(t.Context(), name(t, repo+":v1"), image, registry.Auth{})
	}

	many := newFake()
	var layers []ocispec.Descriptor
	for i := range 5000 {
		payload := fmt.Appendf(nil, "%d", i)
		layers = append(layers, many.layer(payload, theirs.sign(t, payload)))
	}
	many.attach(t, image, layers...)
	for i := range 500 {
		raw := document(t, layers[i])
		d := digest.FromBytes(raw)
		many.manifests[d.String()] = raw
		many.about[image] = append(many.about[image], ocispec.Descriptor{Digest: d})
	}
	if err := check(many); fault.ReasonOf(err) != Missing {
		t.Errorf("many signatures: %v", err)
	}
	if limit := maxSignatures + maxReferrers + 3; many.requests > limit {
		t.Errorf("%d requests for one image, want at most %d", many.requests, limit)
	}

	huge := newFake()
	l := huge.layer(bytes.Repeat([]byte(" "), 8<<20), nil)
	l.Annotations[signatureAnnot] = "eA=="
	lies := l
	lies.Size = 10
	long := huge.layer([]byte("x"), bytes.Repeat([]byte("x"), 1<<20))
	huge.attach(t, image, l, lies, long)
	if err := check(huge); fault.ReasonOf(err) != Missing || huge.read > 2*maxPayload {
		t.Errorf("huge payloads: %v, %d bytes were read", err, huge.read)
	}

	broken := newFake()
	broken.manifests[tagOf(image)] = []byte(`{"layers":[],"layers":[]}`)
	broken.about[image] = []ocispec.Descriptor{{Digest: "sha256:../../x"}, {Digest: image}}
	if err := check(broken); fault.ReasonOf(err) != Missing {
		t.Errorf("broken documents: %v", err)
	}

	away := newFake()
	away.err = fault.Unavailable.Errorf("X", "registry is away")
	if err := check(away); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a registry that is away: %v", err)
	}
}

// TestRules: the first rule that fits counts; reject and accept ask nobody.
func TestRules(t *testing.T) {
	key := signers(t)["ed25519"].file(t)
	f := newFake()
	p := policy(t, f,
		Rule{Repositories: []string{"docker.io/library/*", "localhost:5000/**"}, Require: Accept},
		Rule{Repositories: []string{"Registry.corp/secret/**"}, Require: Reject},
		Rule{Repositories: []string{"*.corp/*/*"}, Require: Signed, Keys: []string{key}},
		Rule{Repositories: []string{"**"}, Require: Reject},
	)
	for text, want := range map[string]string{
		"debian:12": "", "docker.io/library/debian": "", "localhost:5000/a/b/c": "", "bitnami/redis": "REJECTED_BY_POLICY",
		"registry.corp/secret/a": "REJECTED_BY_POLICY", "registry.corp/secret": "REJECTED_BY_POLICY", "registry.corp/a/b": Missing, "registry.corp/a/b/c": "REJECTED_BY_POLICY",
		"localhost:5001/a":  "REJECTED_BY_POLICY",
		"Registry.CORP/a/b": Missing, "registry.corp:443/a/b": Missing, "REGISTRY.corp:443/secret/a": "REJECTED_BY_POLICY", "docker.io/library/x/y": "REJECTED_BY_POLICY",
	} {
		before := f.requests
		err := p.Check(t.Context(), name(t, text), image, registry.Auth{})
		if fault.ReasonOf(err) != want {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
		if want != Missing && f.requests != before {
			t.Errorf("%s: the registry was asked", text)
		}
	}
	var none *Policy
	if needs, err := none.Needs(name(t, "x")); needs || err != nil || none.Rules() != 0 {
		t.Errorf("no policy: %v, %v", needs, err)
	}
	if p := policy(t, f); p != nil {
		t.Error("no rules make a policy")
	}
}

// TestSignedAs: a copy in another registry may carry the signature of where it came from, if the rule says so; Docker's
// registry has two names.
func TestSignedAs(t *testing.T) {
	s := signers(t)["ecdsa-p256"]
	for _, c := range []struct {
		signed, pulled string
		as             []string
		ok             bool
	}{
		{"upstream.example/app", "mirror.corp/app", nil, false},
		{"upstream.example/app", "mirror.corp/app", []string{"upstream.example/*"}, true},
		{"upstream.example/app:v2", "mirror.corp/app:v1", []string{"upstream.example/*"}, false},
		{"mirror.corp/app", "mirror.corp/app", []string{"upstream.example/*"}, false},
		{"index.docker.io/library/debian", "debian:12", nil, true},
		{"docker.io/library/debian:12", "debian:12", nil, true},
	} {
		f := newFake()
		payload := payloadOf(c.signed, image)
		f.attach(t, image, f.layer(payload, s.sign(t, payload)))
		p := policy(t, f, Rule{Repositories: []string{"**"}, Require: Signed, Keys: []string{s.file(t)}, SignedAs: c.as})
		if err := p.Check(t.Context(), name(t, c.pulled), image, registry.Auth{}); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestBadRules: rules that could not protect what they seem to are refused, with the number of the rule.
func TestBadRules(t *testing.T) {
	key := signers(t)["rsa"].file(t)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak := signer{key: small}.file(t)
	private := write(t, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED SIGSTORE PRIVATE KEY", Bytes: []byte("x")}))
	for want, r := range map[string]Rule{
		"repositories is missing":           {Require: Accept},
		"must begin with a registry":        {Repositories: []string{"debian"}, Require: Reject},
		"team/* must begin with a registry": {Repositories: []string{"team/*"}, Require: Reject},
		"must not have a tag":               {Repositories: []string{"registry.corp/app:v1"}, Require: Reject},
		"pattern registry.corp/[ is":        {Repositories: []string{"registry.corp/["}, Require: Reject},
		"pattern a.b/**/c is":               {Repositories: []string{"a.b/**/c"}, Require: Reject},
		`require = "yes"`:                   {Repositories: []string{"**"}, Require: "yes"},
		`require = "signed" wants keys`:     {Repositories: []string{"**"}, Require: Signed},
		`keys and signed_as go with`:        {Repositories: []string{"**"}, Require: Accept, Keys: []string{key}},
		"no such file":                      {Repositories: []string{"**"}, Require: Signed, Keys: []string{"/nowhere"}},
		"RSA key of 1024 bits":              {Repositories: []string{"**"}, Require: Signed, Keys: []string{weak}},
		"not a public key":                  {Repositories: []string{"**"}, Require: Signed, Keys: []string{private}},
		"not a list of public keys in PEM":  {Repositories: []string{"**"}, Require: Signed, Keys: []string{write(t, []byte(base64.StdEncoding.EncodeToString([]byte("x"))))}},
		"is no file":                        {Repositories: []string{"**"}, Require: Signed, Keys: []string{t.TempDir()}},
	} {
		_, err := New(newFake(), []Rule{{Repositories: []string{"**"}, Require: Accept}, r})
		if !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "rule 2") {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
