//go:build e2e

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

// TestSignaturePolicy has an engine that pulls from one registry only what a key signed. What is not signed leaves
// nothing, in a pull, in a run that would pull, and where a mirror has something else under the same name.
func TestSignaturePolicy(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "berth-signed.")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	harness.Sh(t, "chmod", "755", dir)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "team.pub")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	reg, mirror, free := registrytest.Start(t, registrytest.Options{}), registrytest.Start(t, registrytest.Options{}), registrytest.Start(t, registrytest.Options{})
	config := filepath.Join(dir, "berth.toml")
	text := fmt.Sprintf(`
[[imaged.signatures]]
repositories = ["%[1]s/never/**"]
require = "reject"

[[imaged.signatures]]
repositories = ["%[1]s/**"]
require = "signed"
keys = [%[2]q]
`, reg.Host, file)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	e := harness.New(t, "BERTH_CONFIG="+config)
	if info := e.Berth(t, "info"); !strings.Contains(info, "signature rules") {
		t.Errorf("berth info does not say that there is a policy:\n%s", info)
	}

	img := e.Busybox(t)
	push := func(name, label string) (digest string) {
		t.Helper()
		e.Berth(t, "import", "-c", "LABEL is="+label, "-c", `CMD ["echo","`+label+`"]`, harness.BusyboxTar(t), name)
		e.Berth(t, "push", "-q", name)
		digest = strings.TrimSpace(e.Berth(t, "image", "inspect", "-f", "{{index .RepoDigests 0}}", name))
		e.Berth(t, "rmi", name)
		return digest[strings.LastIndexByte(digest, '@')+1:]
	}
	app := reg.Ref("team/app:1")
	digest := push(app, "good")
	before := e.Berth(t, "images", "-aq")
	refuse := func(words []string, args ...string) {
		t.Helper()
		e.Fails(t, map[bool]int{true: 125, false: 1}[args[0] == "run"], words, args...)
		want(t, "images", e.Berth(t, "images", "-aq"), before)
		want(t, "containers", e.Berth(t, "ps", "-aq"), "")
	}
	missing := []string{"pull " + app + ": refused", `the policy for "` + reg.Host + `/**" wants a signature of ` + digest, "there is none"}
	refuse(missing, "pull", app)
	refuse(missing, "run", "--rm", app)
	refuse([]string{digest, "there is none"}, "pull", reg.Ref("team/app")+"@"+digest)
	refuse([]string{"rejects all images"}, "pull", reg.Ref("never/app:1"))

	// A signature of the same image in another repository is none.
	sign(t, key, reg.Host, "team/app", "127.0.0.1:1/team/app", digest)
	refuse([]string{"the signature is for 127.0.0.1:1/team/app"}, "pull", app)
	sign(t, key, reg.Host, "team/app", reg.Ref("team/app"), digest)
	want(t, "what is signed says", e.Berth(t, "run", "--rm", app), "good")
	e.Berth(t, "pull", "-q", reg.Ref("team/app")+"@"+digest)

	// Other registries, and what comes from archives, are not held to it.
	push(free.Ref("app:1"), "free")
	want(t, "what need not be signed says", e.Berth(t, "run", "--rm", free.Ref("app:1")), "free")
	e.Berth(t, "tag", img, reg.Ref("team/local:1"))
	e.Berth(t, "run", "--rm", reg.Ref("team/local:1"), "true")
	e.Berth(t, "rmi", app)
	e.Berth(t, "rmi", free.Ref("app:1"), reg.Ref("team/local:1"))
	before = e.Berth(t, "images", "-aq")

	// A mirror that has another image under the name: its signature is not there, nor is the mirror asked to vouch for it.
	other := push(mirror.Ref("team/app:1"), "evil")
	if err := os.WriteFile(config, []byte(text+fmt.Sprintf("\n[imaged.mirrors]\n%q = [%q]\n", reg.Host, "http://"+mirror.Host)), 0o644); err != nil {
		t.Fatal(err)
	}
	e.Berth(t, "down")
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	refuse([]string{"wants a signature of " + other, "there is none"}, "pull", app)

	// Copies between registries are neither stored nor run here, and are not held to it.
	e.Berth(t, "image", "copy", "-q", mirror.Ref("team/app:1"), reg.Ref("team/copy:1"))
}

// sign puts a signature into a registry, where and as cosign does.
func sign(t *testing.T, key *ecdsa.PrivateKey, host, repo, as, digest string) {
	t.Helper()
	payload := fmt.Sprintf(`{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, as, digest)
	sum := sha256.Sum256([]byte(payload))
	signature, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	blob := func(content string) string {
		sum := sha256.Sum256([]byte(content))
		d := "sha256:" + hex.EncodeToString(sum[:])
		place := send(t, "POST", "http://"+host+"/v2/"+repo+"/blobs/uploads/", "", "")
		send(t, "PUT", place+"&digest="+d, "application/octet-stream", content)
		return fmt.Sprintf(`"digest":%q,"size":%d`, d, len(content))
	}
	const media = "application/vnd.oci.image.manifest.v1+json"
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json",%s,"annotations":{"dev.cosignproject.cosign/signature":%q}}]}`,
		media, blob("{}"), blob(payload), base64.StdEncoding.EncodeToString(signature))
	send(t, "PUT", "http://"+host+"/v2/"+repo+"/manifests/"+strings.Replace(digest, ":", "-", 1)+".sig", media, manifest)
}

// send makes a request and gives the Location of the answer.
func send(t *testing.T, method, url, mediaType, body string) string {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s %s", method, url, resp.Status, text)
	}
	return resp.Header.Get("Location")
}
