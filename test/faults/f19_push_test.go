//go:build e2e

package faults

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/test/harness"
	registrytest "berth/test/registry"

	"github.com/opencontainers/go-digest"
)

// keeping is a registry that keeps what it got of an upload, as registries but docker-registry do, and counts what comes.
type keeping struct {
	mu        sync.Mutex
	uploads   map[string][]byte // by number
	blobs     map[string][]byte // by digest
	manifests map[string][]byte // by tag or digest
	came      int               // bytes of blobs
	gone      bool              // answers nothing
}

func (k *keeping) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	last := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.gone {
		panic(http.ErrAbortHandler)
	}
	upload := strings.Contains(r.URL.Path, "/blobs/uploads/")
	body, known := k.uploads[last]
	switch {
	case r.URL.Path == "/v2/":
	case upload && r.Method == http.MethodPost:
		last, body = fmt.Sprint(len(k.uploads)), []byte{}
		k.uploads[last] = body
		k.located(rw, r, last, http.StatusAccepted)
	case upload && !known:
		rw.WriteHeader(http.StatusNotFound)
	case upload && r.Method == http.MethodGet:
		k.located(rw, r, last, http.StatusNoContent)
	case upload && r.Method == http.MethodPatch:
		if !strings.HasPrefix(r.Header.Get("Content-Range"), fmt.Sprintf("%d-", len(body))) {
			rw.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		k.take(last, r)
		k.located(rw, r, last, http.StatusAccepted)
	case upload && r.Method == http.MethodPut:
		if r.ContentLength > 0 {
			k.uploads[last] = nil
			k.take(last, r)
		}
		d := digest.FromBytes(k.uploads[last]).String()
		if d != r.URL.Query().Get("digest") {
			rw.WriteHeader(http.StatusBadRequest)
			return
		}
		k.blobs[d] = k.uploads[last]
		delete(k.uploads, last)
		rw.WriteHeader(http.StatusCreated)
	case strings.Contains(r.URL.Path, "/manifests/") && r.Method == http.MethodPut:
		raw, _ := io.ReadAll(r.Body)
		k.manifests[last], k.manifests[digest.FromBytes(raw).String()] = raw, raw
		rw.WriteHeader(http.StatusCreated)
	case strings.Contains(r.URL.Path, "/manifests/") && k.manifests[last] != nil:
		rw.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		rw.Header().Set("Docker-Content-Digest", digest.FromBytes(k.manifests[last]).String())
		rw.Write(k.manifests[last])
	case k.blobs[last] != nil:
		rw.Header().Set("Content-Length", fmt.Sprint(len(k.blobs[last])))
		rw.Write(k.blobs[last])
	default:
		rw.WriteHeader(http.StatusNotFound)
	}
}

func (k *keeping) located(rw http.ResponseWriter, r *http.Request, upload string, status int) {
	rw.Header().Set("Location", r.URL.Path[:strings.LastIndexByte(r.URL.Path, '/')+1]+upload)
	rw.Header().Set("Range", fmt.Sprintf("0-%d", max(len(k.uploads[upload])-1, 0)))
	rw.WriteHeader(status)
}

// take reads what comes for an upload, without the lock while it waits. An upload that breaks off keeps what it has.
func (k *keeping) take(upload string, r *http.Request) {
	buf := make([]byte, 64<<10)
	for {
		k.mu.Unlock()
		n, err := r.Body.Read(buf)
		k.mu.Lock()
		k.uploads[upload] = append(k.uploads[upload], buf[:n]...)
		k.came += n
		if err == io.EOF {
			return
		}
		if err != nil || k.gone {
			panic(http.ErrAbortHandler)
		}
	}
}

func (k *keeping) bytes() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.came
}

func (k *keeping) leave(gone bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gone = gone
}

// TestF19PushGoesOn interrupts a push in each way there is; the next one sends only what is missing.
func TestF19PushGoesOn(t *testing.T) {
	e, tar := harness.New(t), noisyTar(t)
	sendingGoesOn(t, e, func(t *testing.T, ref string) []string {
		e.Berth(t, "import", tar, ref)
		t.Cleanup(func() { e.Try("rmi", "-f", ref) })
		return []string{"push", "-q", ref}
	})
}

// TestF19CopyGoesOn is the same of a copy from one registry to another, which leaves nothing here, whatever becomes of it.
func TestF19CopyGoesOn(t *testing.T) {
	e := harness.New(t)
	from := registrytest.Start(t, registrytest.Options{}).Ref("source:1")
	e.Berth(t, "import", noisyTar(t), from)
	e.Berth(t, "push", "-q", from)
	e.Berth(t, "rmi", from)
	before := settledStore(t, e)
	sendingGoesOn(t, e, func(t *testing.T, ref string) []string {
		t.Cleanup(func() { sameStore(t, e, before) })
		return []string{"image", "copy", "-q", from, ref}
	})
}

// noise is how many bytes of an image of noisyTar do not compress.
const noise = 24_000_000

func noisyTar(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	harness.Sh(t, "sh", "-c", fmt.Sprintf("cp %s %s/fs.tar && head -c %d /dev/urandom >%[2]s/noise && tar -C %[2]s -rf %[2]s/fs.tar noise", harness.BusyboxTar(t), dir, noise))
	return dir + "/fs.tar"
}

// sendingGoesOn interrupts a command that sends an image of noisyTar to a registry. prepare is told the image's name there
// and says which command that is.
func sendingGoesOn(t *testing.T, e *harness.Engine, prepare func(t *testing.T, ref string) (command []string)) {
	const early = 3_000_000
	reg := &keeping{uploads: map[string][]byte{}, blobs: map[string][]byte{}, manifests: map[string][]byte{}}
	server := httptest.NewServer(reg)
	defer server.Close()
	defer server.CloseClientConnections()

	for name, interrupt := range map[string]func(*testing.T){
		"imaged is killed": func(t *testing.T) { e.Kill(t, "imaged") },
		"job is cancelled": func(t *testing.T) {
			e.Berth(t, "jobs", "cancel", strings.Fields(e.Berth(t, "jobs", "--format", "{{.ID}} {{.State}}"))[0])
		},
		"network is lost": func(t *testing.T) { reg.leave(true); server.CloseClientConnections() },
		"everything is killed": func(t *testing.T) {
			e.KillDaemons(t)
			if err := e.Up(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ref := strings.TrimPrefix(server.URL, "http://") + "/" + strings.ReplaceAll(name, " ", "-") + ":1"
			command := prepare(t, ref)
			reg.mu.Lock()
			reg.came, reg.blobs = 0, map[string][]byte{}
			reg.mu.Unlock()
			e.Berth(t, "registry", "limits", "--bandwidth", "2M")
			sending := e.Command(command...)
			if err := sending.Start(); err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, 20*time.Second, func() bool { return reg.bytes() > early }, "a part has been sent")
			interrupt(t)
			if err := sending.Wait(); err == nil {
				t.Fatal("what was interrupted succeeded")
			}
			reg.leave(false)
			e.Ready(t)
			e.Berth(t, "registry", "limits", "--bandwidth", "none")
			before := reg.bytes()
			e.Berth(t, command...)
			whole := 0
			reg.mu.Lock()
			for _, b := range reg.blobs {
				whole += len(b)
			}
			came := reg.came
			reg.mu.Unlock()
			if whole < noise || before < early || came < whole || came > whole+100_000 {
				t.Errorf("%d bytes came for %d, %d of them before", came, whole, before)
			}
			e.Try("rmi", ref)
			e.Berth(t, "pull", "-q", ref)
			if out := e.Berth(t, "run", "--rm", ref, "cat", "/www/index.html"); out != "hello from berth" {
				t.Errorf("the image says %q", out)
			}
			e.Berth(t, "rmi", ref)
		})
	}
}
