package serve

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	registrytest "berth/test/registry"
)

// run runs a program of somebody else's.
func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("SKIPPED: needs %s: %v", name, err)
	}
	cmd := exec.Command(name, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir, "TMPDIR=" + dir, "XDG_RUNTIME_DIR=" + dir}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// withTLS is c with a certificate, and the folder in which skopeo and podman look for its authority.
func withTLS(t *testing.T, c Config) (_ Config, ca, certs string) {
	t.Helper()
	authority := registrytest.NewCA(t)
	cert, key := authority.Issue(t, "127.0.0.1", "localhost")
	dir := t.TempDir()
	certs = filepath.Join(dir, "certs")
	if err := os.Mkdir(certs, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"cert.pem": cert, "key.pem": key, "certs/ca.crt": authority.PEM} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.Cert, c.Key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	return c, filepath.Join(certs, "ca.crt"), certs
}

// TestSkopeo copies images in and out, whole indexes too, by TLS and with a login, in both of the ways to ask for one.
func TestSkopeo(t *testing.T) {
	for name, c := range map[string]Config{"login": {Users: "yes", PushUsers: []string{pusher}}, "anonymous": anybody()} {
		t.Run(name, func(t *testing.T) {
			c, ca, certs := withTLS(t, c)
			r := newRig(t, c)
			r.trust(ca)
			own, other := r.arch()
			dir := t.TempDir()
			one, two := r.pushImage("src", "one", own, "one"), r.pushParts("src", other, "two")
			r.want(r.putManifest("src", two.desc.Digest.String(), two.raw, two.desc.MediaType), 201, "")
			index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{one.desc, two.desc}}
			index.SchemaVersion = 2
			raw := r.json(index)
			r.want(r.putManifest("src", "multi", raw, index.MediaType), 201, "")

			creds, at := pusher+":"+password, "docker://"+r.host()
			run(t, dir, "skopeo", "copy", "--all", "--src-creds", creds, "--src-cert-dir", certs, at+"/src:multi", "oci:"+dir+"/oci:multi")
			run(t, dir, "skopeo", "copy", "--all", "--dest-creds", creds, "--dest-cert-dir", certs, "oci:"+dir+"/oci:multi", at+"/dst:multi")
			if a := r.do("GET", "/v2/dst/manifests/multi", ""); a.body != string(raw) {
				t.Errorf("index came back as %s", a.body)
			}
			if found, err := r.images.Find("localhost:5000/dst:multi"); err != nil || found.ID != one.config.Digest {
				t.Errorf("image is %+v, %v", found, err)
			}
			// From one repository to another, where blobs are mounted, and in Docker's formats.
			run(t, dir, "skopeo", "copy", "--format", "v2s2", "--src-creds", creds, "--src-cert-dir", certs, "--dest-creds", creds, "--dest-cert-dir", certs, at+"/src:one", at+"/docker/app:v1")
			if a := r.do("GET", "/v2/docker/app/manifests/v1", ""); a.header.Get("Content-Type") != "application/vnd.docker.distribution.manifest.v2+json" {
				t.Errorf("manifest is of type %s", a.header.Get("Content-Type"))
			}
			var tags struct{ Tags []string }
			if err := json.Unmarshal([]byte(run(t, dir, "skopeo", "list-tags", "--creds", creds, "--cert-dir", certs, at+"/dst")), &tags); err != nil || strings.Join(tags.Tags, " ") != "multi" {
				t.Errorf("skopeo lists tags %v, %v", tags, err)
			}
			run(t, dir, "skopeo", "delete", "--creds", creds, "--cert-dir", certs, at+"/dst:multi")
			r.want(r.do("GET", "/v2/dst/manifests/multi", ""), 404, manifestUnknown)
			if name == "anonymous" {
				run(t, dir, "skopeo", "inspect", "--no-creds", "--cert-dir", certs, at+"/src:one")
			}
		})
	}
}

// TestPodman pulls with podman and pushes what it pulled.
func TestPodman(t *testing.T) {
	c, ca, certs := withTLS(t, Config{Users: "yes", PushUsers: []string{pusher}})
	r := newRig(t, c)
	r.trust(ca)
	own, _ := r.arch()
	i := r.pushImage("team/app", "v1", own, "one")
	dir := t.TempDir()
	podman := func(args ...string) string {
		t.Helper()
		return run(t, dir, "podman", append([]string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs"}, args...)...)
	}
	creds := []string{"--creds", pusher + ":" + password, "--cert-dir", certs}
	podman(append([]string{"pull", "-q"}, append(creds, r.host()+"/team/app:v1")...)...)
	if id := podman("images", "-q", "--no-trunc"); strings.TrimSpace(id) != i.config.Digest.String() {
		t.Errorf("podman has image %s, want %s", id, i.config.Digest)
	}
	podman(append([]string{"push", "-q"}, append(creds, r.host()+"/team/app:v1", r.host()+"/again:v1")...)...)
	if found, err := r.images.Find("localhost:5000/again:v1"); err != nil || len(found.Layers) != 1 || found.Layers[0].DiffID != r.diffID(i) {
		t.Errorf("podman pushed %+v, %v", found, err)
	}
	podman("rmi", "-af")
}

func (r *rig) diffID(i image) any {
	r.Helper()
	found, err := r.images.Find(i.config.Digest.String())
	r.check(err)
	return found.Layers[0].DiffID
}
