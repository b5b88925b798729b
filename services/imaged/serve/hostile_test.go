package serve

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/services/imaged/images"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func parse(name string) (reference.Named, error) { return images.ParseName(name) }

// raw sends a request as it stands and gives the first line of the answer: http.Client would clean its path.
func (r *rig) raw(method, path string) string {
	r.Helper()
	conn, err := net.Dial("tcp", r.host())
	r.check(err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YWRhOmNvcnJlY3QgaG9yc2U=\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", method, path)
	buf := make([]byte, 64<<10)
	n, _ := conn.Read(buf)
	line, _, _ := strings.Cut(string(buf[:n]), "\r\n")
	return line
}

// TestS16ServedNames: names and digests that are none are refused before anything is looked up or made of them.
func TestS16ServedNames(t *testing.T) {
	r := newRig(t, anybody())
	before := r.tree()
	good := digest.FromString("x").String()
	for _, repo := range []string{"../etc", "a/../../b", "%2e%2e/%2e%2e", "a%2f..%2f..", "A", "a//b", "a/", "-a", "a\x00b", "a%00b", "a b", "a%20b", "a@b", "a:b", strings.Repeat("a", 256), "ä", "a%c3%a4", "..", "."} {
		repo = strings.NewReplacer("\x00", "%00", " ", "%20").Replace(repo)
		for _, path := range []string{"/v2/" + repo + "/blobs/" + good, "/v2/" + repo + "/manifests/v1", "/v2/" + repo + "/tags/list", "/v2/" + repo + "/blobs/uploads/", "/v2/" + repo + "/referrers/" + good} {
			for _, method := range []string{"GET", "PUT", "POST", "PATCH", "DELETE"} {
				line := r.raw(method, path)
				if status := strings.Fields(line + " - -")[1]; !strings.HasPrefix(status, "4") && !strings.HasPrefix(status, "3") {
					t.Errorf("%s %s: %q", method, path, line)
				}
			}
		}
	}
	for _, d := range []string{"sha256:" + strings.Repeat("a", 63), "sha256:" + strings.Repeat("A", 64), "md5:" + strings.Repeat("a", 32), "sha256:", ":", "sha256:%2e%2e"} {
		r.want(r.do("GET", "/v2/app/blobs/"+d, ""), 400, digestInvalid)
		r.want(r.do("DELETE", "/v2/app/manifests/"+d, ""), 400, digestInvalid)
		r.want(r.do("PUT", "/v2/app/manifests/"+d, "{}"), 400, digestInvalid)
		r.want(r.do("POST", "/v2/app/blobs/uploads/?digest="+d, "x"), 400, digestInvalid)
		r.want(r.do("POST", "/v2/app/blobs/uploads/?mount="+d, ""), 400, digestInvalid)
	}
	if after := r.tree(); after != before {
		t.Errorf("store was\n%s\nis\n%s", before, after)
	}
}

// tree is the names of all files of the store but its records.
func (r *rig) tree() string {
	var all []string
	filepath.Walk(r.dir, func(path string, _ os.FileInfo, _ error) error {
		if !strings.Contains(path, "/journal") {
			all = append(all, path)
		}
		return nil
	})
	return strings.Join(all, "\n")
}

// TestF20PushedWrongBytes: what does not come to its digest, or its length, is never visible, and leaves nothing.
func TestF20PushedWrongBytes(t *testing.T) {
	r := newRig(t, anybody())
	wrong := digest.FromString("other").String()
	r.want(r.do("POST", "/v2/app/blobs/uploads/?digest="+wrong, "bytes"), 400, digestInvalid)
	place := r.do("POST", "/v2/app/blobs/uploads/", "").header.Get("Location")
	r.want(r.do("PATCH", place, "0123456789", "Content-Range", "0-9"), 202, "")
	r.want(r.do("PATCH", place, "0123", "Content-Range", "5-8"), 416, uploadInvalid)
	r.want(r.do("PATCH", place, "0123", "Content-Range", "10-99"), 400, sizeInvalid)
	r.want(r.do("PATCH", place, "0123", "Content-Range", "bytes 10-13/14"), 400, uploadInvalid)
	r.want(r.do("PATCH", place, "0123", "Content-Range", "10-3"), 416, uploadInvalid)
	if a := r.do("GET", place, ""); a.header.Get("Range") != "0-9" {
		t.Errorf("upload stands at %s", a.header.Get("Range"))
	}
	r.want(r.do("PUT", place+"?digest="+wrong, "more"), 400, digestInvalid)
	r.want(r.do("GET", place, ""), 404, uploadUnknown)
	r.want(r.do("GET", "/v2/app/blobs/"+wrong, ""), 404, blobUnknown)
	r.wantFiles(0, 0, 0)

	// The same for manifests, and for descriptors that lie about what is here.
	own, _ := r.arch()
	i := r.pushParts("app", own, "one")
	r.want(r.putManifest("app", wrong, i.raw, i.desc.MediaType), 400, digestInvalid)
	lie := strings.Replace(string(i.raw), fmt.Sprintf(`"size":%d`, i.layer.Size), `"size":1`, 1)
	r.want(r.putManifest("app", "v1", []byte(lie), i.desc.MediaType), 400, manifestInvalid)
	lacks := strings.Replace(string(i.raw), i.layer.Digest.String(), wrong, 1)
	r.want(r.putManifest("app", "v1", []byte(lacks), i.desc.MediaType), 400, manifestBlobUnknown)
	r.want(r.do("GET", "/v2/app/tags/list", ""), 200, "")
	if n := len(r.images.List()); n != 0 {
		t.Errorf("%d images", n)
	}
}

// TestUploadBreaksOff: bytes of a request that breaks off stay, and the client goes on behind them.
func TestUploadBreaksOff(t *testing.T) {
	r := newRig(t, anybody())
	place := r.do("POST", "/v2/app/blobs/uploads/", "").header.Get("Location")
	conn, err := net.Dial("tcp", r.host())
	r.check(err)
	fmt.Fprintf(conn, "PUT %s?digest=%s HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YWRhOmNvcnJlY3QgaG9yc2U=\r\nContent-Length: 10\r\n\r\n01234", place, digest.FromString("0123456789"))
	time.Sleep(100 * time.Millisecond)
	r.want(r.do("PATCH", place, "x"), 409, uploadInvalid) // the other request still has it
	conn.Close()
	deadline := time.Now().Add(5 * time.Second)
	for r.do("GET", place, "").status != 204 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if a := r.do("GET", place, ""); a.header.Get("Range") != "0-4" {
		t.Fatalf("upload stands at %q", a.header.Get("Range"))
	}
	r.want(r.do("PATCH", place, "56789", "Content-Range", "5-9"), 202, "")
	r.want(r.do("PUT", place+"?digest="+digest.FromString("0123456789").String(), ""), 201, "")
}

// TestS14ServedManifests: manifests that are too large, nested too deep, or mean two things are refused (S-15 too).
func TestS14ServedManifests(t *testing.T) {
	r := newRig(t, anybody())
	index := func(inner string) string { return `{"schemaVersion":2,"manifests":[]` + inner + `}` }
	r.want(r.putManifest("app", "v1", bytes.Repeat([]byte(" "), 4<<20+1), ocispec.MediaTypeImageIndex), 413, sizeInvalid)
	for name, text := range map[string]string{
		"not JSON":                 "x",
		"nothing":                  "",
		"deep":                     index(`,"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100)),
		"a key twice":              index(`,"manifests":[]`),
		"a key in two cases":       index(`,"Manifests":[]`),
		"manifest and index":       index(`,"layers":[],"config":{}`),
		"of another type":          index(`,"mediaType":"application/vnd.oci.image.manifest.v1+json"`),
		"too many":                 `{"schemaVersion":2,"manifests":[` + strings.TrimSuffix(strings.Repeat(`{"digest":"sha256:`+strings.Repeat("a", 64)+`","size":1},`, 1100), ",") + `]}`,
		"a digest that is a path":  `{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}`,
		"a negative size":          `{"schemaVersion":2,"manifests":[{"digest":"sha256:` + strings.Repeat("a", 64) + `","size":-1}]}`,
		"a subject that is a path": index(`,"subject":{"digest":"../x","size":1}`),
	} {
		if a := r.putManifest("app", "v1", []byte(text), ocispec.MediaTypeImageIndex); a.status != 400 || a.code() != manifestInvalid {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	r.want(r.putManifest("app", "v1", []byte(`{"schemaVersion":1,"fsLayers":[]}`), "application/vnd.docker.distribution.manifest.v1+json"), 400, manifestInvalid)
	r.wantFiles(0, 0, 0)
}

// TestS13ServedBombs: a layer that unpacks to more than is allowed makes no image; it stays a blob that somebody pushed.
func TestS13ServedBombs(t *testing.T) {
	r := newRig(t, anybody())
	own, _ := r.arch()
	i := r.pushImage("app", "v1", own, strings.Repeat("\x00", 65<<20))
	if n := len(r.images.List()); n != 0 {
		t.Errorf("%d images of a bomb", n)
	}
	r.want(r.do("GET", "/v2/app/manifests/v1", ""), 200, "")
	r.want(r.do("DELETE", "/v2/app/manifests/"+i.desc.Digest.String(), ""), 202, "")
	r.wantFiles(2, 0, 0)
}

// TestSlowClients: who sends or takes nothing is cut off, whatever it has begun.
func TestSlowClients(t *testing.T) {
	r := newRig(t, anybody())
	r.server.stall = 300 * time.Millisecond
	big := r.pushBlob("app", bytes.Repeat([]byte("x"), 32<<20))
	place := r.do("POST", "/v2/app/blobs/uploads/", "").header.Get("Location")
	auth := "Host: x\r\nAuthorization: Basic YWRhOmNvcnJlY3QgaG9yc2U=\r\n"
	for name, begin := range map[string]string{
		"upload":   "PATCH " + place + " HTTP/1.1\r\n" + auth + "Content-Length: 1000\r\n\r\nabc",
		"manifest": "PUT /v2/app/manifests/v1 HTTP/1.1\r\n" + auth + "Content-Length: 1000\r\n\r\n{",
		"download": "GET /v2/app/blobs/" + big.Digest.String() + " HTTP/1.1\r\n" + auth + "\r\n",
	} {
		conn, err := net.Dial("tcp", r.host())
		r.check(err)
		fmt.Fprint(conn, begin)
		began := time.Now()
		time.Sleep(1500 * time.Millisecond) // takes nothing meanwhile
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		sum, buf := 0, make([]byte, 1<<20)
		for {
			n, err := conn.Read(buf)
			if sum += n; err != nil {
				if os.IsTimeout(err) {
					t.Errorf("%s: still served after %s", name, time.Since(began))
				}
				break
			}
		}
		if sum >= 32<<20 {
			t.Errorf("%s: all %d bytes came", name, sum)
		}
		conn.Close()
	}
	r.server.stall = stallTimeout
	r.want(r.do("GET", "/v2/", ""), 200, "")
}

// TestUploadsBounded: so many uploads at once and no more, and who has one is not disturbed.
func TestUploadsBounded(t *testing.T) {
	r := newRig(t, anybody())
	for range maxUploads {
		r.want(r.do("POST", "/v2/app/blobs/uploads/", ""), 202, "")
	}
	a := r.do("POST", "/v2/app/blobs/uploads/", "")
	if r.want(a, 429, tooMany); a.header.Get("Retry-After") == "" {
		t.Error("it does not say when to come again")
	}
	r.wantFiles(0, maxUploads, 0)
	r.want(r.do("GET", "/v2/", ""), 200, "")
}

// TestF12ServedDiskFull: a push that finds the disk full is told so and leaves nothing; with room again it goes through.
func TestF12ServedDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("SKIPPED: mounting needs root: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	r := newRigIn(t, dir, anybody())
	big := strings.Repeat("x", 20<<20)
	place := r.do("POST", "/v2/app/blobs/uploads/", "").header.Get("Location")
	r.want(r.do("PATCH", place, big), http.StatusInsufficientStorage, tooMany)
	r.want(r.do("GET", place, ""), 404, uploadUnknown)
	r.want(r.do("POST", "/v2/app/blobs/uploads/?digest="+digest.FromString(big).String(), big), http.StatusInsufficientStorage, tooMany)
	r.wantFiles(0, 0, 0)

	// The blobs fit, what the layer unpacks to does not.
	own, _ := r.arch()
	i := r.pushParts("app", own, big)
	r.want(r.putManifest("app", "v1", i.raw, i.desc.MediaType), http.StatusInsufficientStorage, tooMany)
	r.want(r.do("GET", "/v2/app/manifests/v1", ""), 404, manifestUnknown)
	r.wantFiles(2, 0, 0)
	r.pushImage("app", "v1", own, "small")
	if _, err := r.images.Find("localhost:5000/app:v1"); err != nil {
		t.Error(err)
	}
	r.restart()
	r.want(r.do("GET", "/v2/app/manifests/v1", ""), 200, "")
}
