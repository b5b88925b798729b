package serve

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// answer is what came of a request.
type answer struct {
	status int
	header http.Header
	body   string
}

// code is the first error's.
func (a answer) code() string {
	var doc struct {
		Errors []struct{ Code string }
	}
	if json.Unmarshal([]byte(a.body), &doc) != nil || len(doc.Errors) == 0 {
		return ""
	}
	return doc.Errors[0].Code
}

// as sends a request; user "" sends no password. headers are pairs.
func (r *rig) as(user, method, path, body string, headers ...string) answer {
	r.Helper()
	req, err := http.NewRequest(method, r.url+path, strings.NewReader(body))
	r.check(err)
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		r.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	r.check(err)
	return answer{resp.StatusCode, resp.Header, string(raw)}
}

// do is as for the pusher.
func (r *rig) do(method, path, body string, headers ...string) answer {
	r.Helper()
	return r.as(pusher, method, path, body, headers...)
}

// want fails unless a request ends with status, and with code if it is an error.
func (r *rig) want(a answer, status int, code string) {
	r.Helper()
	if a.status != status || a.code() != code {
		r.Errorf("got %d %s, want %d %s: %.300s", a.status, a.code(), status, code, a.body)
	}
}

func (r *rig) pushBlob(repo string, content []byte) ocispec.Descriptor {
	r.Helper()
	d := digest.FromBytes(content)
	r.want(r.do("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), string(content)), http.StatusCreated, "")
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(content))}
}

// layerOf is a compressed layer with one file.
func (r *rig) layerOf(name, content string) (compressed []byte, diffID digest.Digest) {
	r.Helper()
	var plain, out bytes.Buffer
	w := tar.NewWriter(&plain)
	r.check(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}))
	_, err := w.Write([]byte(content))
	r.check(err)
	r.check(w.Close())
	z := gzip.NewWriter(&out)
	_, err = z.Write(plain.Bytes())
	r.check(err)
	r.check(z.Close())
	return out.Bytes(), digest.FromBytes(plain.Bytes())
}

// image is one that was or will be pushed.
type image struct {
	raw           []byte
	desc          ocispec.Descriptor
	config, layer ocispec.Descriptor
}

// pushParts makes an image for architecture arch with one file, and pushes all of it but the manifest.
func (r *rig) pushParts(repo, arch, content string) image {
	r.Helper()
	compressed, diffID := r.layerOf("file", content)
	i := image{layer: r.pushBlob(repo, compressed)}
	i.layer.MediaType = ocispec.MediaTypeImageLayerGzip
	config := fmt.Appendf(nil, `{"architecture":%q,"os":"linux","config":{"Cmd":["/file"]},"rootfs":{"type":"layers","diff_ids":[%q]}}`, arch, diffID)
	i.config = r.pushBlob(repo, config)
	i.config.MediaType = ocispec.MediaTypeImageConfig
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: i.config, Layers: []ocispec.Descriptor{i.layer}}
	m.SchemaVersion = 2
	i.raw = r.json(m)
	i.desc = ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(i.raw), Size: int64(len(i.raw)), Platform: &ocispec.Platform{OS: "linux", Architecture: arch}}
	return i
}

func (r *rig) json(v any) []byte {
	r.Helper()
	raw, err := json.Marshal(v)
	r.check(err)
	return raw
}

func (r *rig) putManifest(repo, ref string, raw []byte, mediaType string) answer {
	r.Helper()
	return r.do("PUT", "/v2/"+repo+"/manifests/"+ref, string(raw), "Content-Type", mediaType)
}

func (r *rig) pushImage(repo, tag, arch, content string) image {
	r.Helper()
	i := r.pushParts(repo, arch, content)
	r.want(r.putManifest(repo, tag, i.raw, i.desc.MediaType), http.StatusCreated, "")
	return i
}

// files counts what is in the store: blobs, files being staged or uploaded, unpacked layers.
func (r *rig) files() (blobs, staged, layers int) {
	r.Helper()
	count := func(pattern string) int {
		all, err := filepath.Glob(filepath.Join(r.dir, pattern))
		r.check(err)
		return len(all)
	}
	if uploads, notes := count("upload/*[^e]"), count("upload/*.note"); uploads != notes {
		r.Errorf("%d uploads and %d notes about them", uploads, notes)
	}
	return count("blobs/*/*"), count("staging/*") + count("upload/*.note"), count("l/*")
}

func (r *rig) wantFiles(blobs, staged, layers int) {
	r.Helper()
	if b, s, l := r.files(); b != blobs || s != staged || l != layers {
		r.Errorf("store has %d blobs, %d staged files, %d layers; want %d, %d, %d", b, s, l, blobs, staged, layers)
	}
}

func (r *rig) arch() (own, other string) {
	raw, err := os.ReadFile("/proc/sys/kernel/arch")
	if err == nil && strings.TrimSpace(string(raw)) == "aarch64" {
		return "arm64", "amd64"
	}
	return "amd64", "arm64"
}
