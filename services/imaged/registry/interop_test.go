package registry

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/internal/fault"
	registrytest "berth/test/registry"
)

// TestSkopeoInterop pushes with us and pulls with skopeo, and the other way round, through
// the real registry.
func TestSkopeoInterop(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skipf("SKIPPED: needs skopeo (apt-get install skopeo): %v", err)
	}
	reg := registrytest.Start(t, registrytest.Options{TLS: true, Auth: true})
	c := New(Options{Hosts: map[string]Host{reg.Host: {CAFiles: []string{reg.CAFile}}}})
	ctx := t.Context()
	repo := named(t, reg.Ref("team/web"))

	layer := []byte("this is no tar file, and neither of us looks inside")
	layerDesc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(layer), Size: int64(len(layer))}
	config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[%q]}}`, layerDesc.Digest)
	configDesc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	for desc, b := range map[*ocispec.Descriptor][]byte{&layerDesc: layer, &configDesc: config} {
		if _, err := c.PushBlob(ctx, repo, *desc, opener(b), "", account, nil); err != nil {
			t.Fatal(err)
		}
	}
	raw := manifestOf(t, configDesc, layerDesc)
	if _, err := c.PushManifest(ctx, named(t, reg.Ref("team/web:ours")), ocispec.MediaTypeImageManifest, raw, account); err != nil {
		t.Fatal(err)
	}

	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(ctx, skopeo, args...).CombinedOutput(); err != nil {
			t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	creds := registrytest.User + ":" + registrytest.Password
	dir := "dir:" + t.TempDir()
	run("copy", "--src-tls-verify=false", "--src-creds", creds, "docker://"+reg.Ref("team/web:ours"), dir)
	if got, err := os.ReadFile(filepath.Join(strings.TrimPrefix(dir, "dir:"), "manifest.json")); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("skopeo pulled another manifest: %s, %v", got, err)
	}
	for format, mediaType := range map[string]string{"oci": ocispec.MediaTypeImageManifest, "v2s2": MediaTypeDockerManifest} {
		run("copy", "--format", format, "--dest-tls-verify=false", "--dest-creds", creds, dir, "docker://"+reg.Ref("theirs:"+format))
		ref := named(t, reg.Ref("theirs:"+format))
		got, desc, err := c.Manifest(ctx, ref, account)
		if err != nil || desc.MediaType != mediaType {
			t.Fatalf("%s: %+v, %v", format, desc, err)
		}
		var m ocispec.Manifest
		if err := json.Unmarshal(got, &m); err != nil || len(m.Layers) != 1 {
			t.Fatalf("%s: %s, %v", format, got, err)
		}
		if blob := readBlob(t, c, ref, m.Layers[0], 0, account); digest.FromBytes(blob) != m.Layers[0].Digest {
			t.Errorf("%s: layer has %d wrong bytes", format, len(blob))
		}
	}
}

// TestRealRegistryTokenAuth has the real registry verify tokens that a token server of the
// test signs for what the client asked, so that wrong scopes are found by the registry and
// not by us.
func TestRealRegistryTokenAuth(t *testing.T) {
	ca := registrytest.NewCA(t)
	certPEM, keyPEM := ca.Issue(t, "token.test")
	bundle := filepath.Join(t.TempDir(), "bundle.pem")
	if err := os.WriteFile(bundle, ca.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	cert, _ := pem.Decode(certPEM)
	keyDER, _ := pem.Decode(keyPEM)
	parsed, err := x509.ParsePKCS8PrivateKey(keyDER.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key := parsed.(*ecdsa.PrivateKey)
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		var access []map[string]any
		for _, scope := range r.URL.Query()["scope"] {
			parts := strings.SplitN(scope, ":", 3)
			actions := strings.Split(parts[2], ",")
			if user == "" {
				actions = []string{"pull"} // anonymous may look
			}
			access = append(access, map[string]any{"type": parts[0], "name": parts[1], "actions": actions})
		}
		if user != "" && (user != registrytest.User || password != registrytest.Password) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		token := signToken(t, key, cert.Bytes, map[string]any{"iss": "berth-test", "sub": user, "aud": r.URL.Query().Get("service"), "access": access,
			"nbf": time.Now().Add(-time.Minute).Unix(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(), "jti": rand.Text()})
		_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 3600})
	}))
	defer tokens.Close()
	reg := registrytest.Start(t, registrytest.Options{Extra: fmt.Sprintf(
		"auth: {token: {realm: %q, service: registry, issuer: berth-test, rootcertbundle: %q}}\n", tokens.URL+"/token", bundle)})

	c := New(Options{})
	roundTrip(t, c, reg.Host, account)
	ref := named(t, reg.Ref("team/web:v1"))
	if _, err := c.Resolve(t.Context(), ref, Auth{}); err != nil {
		t.Errorf("anonymous pull: %v", err)
	}
	blob, desc := randomBlob(t, 10)
	_, err = c.PushBlob(t.Context(), ref, desc, opener(blob), "", Auth{}, nil)
	wantError(t, err, fault.Unauthenticated, "push "+reg.Host+"/team/web: registry "+reg.Host+" grants no access without a login")
	_, err = c.Resolve(t.Context(), ref, Auth{Username: "tester", Password: "wrong"})
	wantError(t, err, fault.Unauthenticated, "does not accept the login of tester")
	wantError(t, c.Ping(t.Context(), reg.Host, Auth{Username: "tester", Password: "wrong"}), fault.Unauthenticated, "does not accept this user name and password")
}

// signToken makes a JWT as the registry's token specification has it, the certificate in
// its header.
func signToken(t *testing.T, key *ecdsa.PrivateKey, cert []byte, claims map[string]any) string {
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(cert)}}) + "." + part(claims)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}
