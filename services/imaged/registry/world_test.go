package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	registrytest "berth/test/registry"
)

// Secrets of the tests, which must turn up nowhere but in headers and token requests.
const (
	marker     = "s3cret-marker" // every secret contains it
	markerPass = "pw-" + marker
)

var markerAuth = Auth{Username: "alice", Password: markerPass}

// world is a small internet of servers with names, all behind one client's dialer. It
// records who was sent what.
type world struct {
	t      *testing.T
	ca     *registrytest.CA
	caFile string
	hosts  map[string]Host

	mu      sync.Mutex
	servers map[string]string // host:port to the address it really has
	visits  []visit
	log     bytes.Buffer
}

// visit is one request as a server saw it.
type visit struct {
	origin, method, path, authorization, body string
	query                                     url.Values
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, ca: registrytest.NewCA(t), hosts: make(map[string]Host), servers: make(map[string]string)}
	w.caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(w.caFile, w.ca.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if strings.Contains(w.logged(), marker) {
			t.Errorf("S-45: a secret is in the log:\n%s", w.logged())
		}
	})
	return w
}

// serve makes a server for an origin such as https://registry.test or
// http://plain.test:5000.
func (w *world) serve(at string, h http.HandlerFunc) {
	w.t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		w.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		v := visit{origin: origin(u), method: r.Method, path: r.URL.Path, query: r.URL.Query(), authorization: r.Header.Get("Authorization")}
		if r.Header.Get("Content-Type") == "application/x-www-form-urlencoded" {
			b, _ := io.ReadAll(r.Body)
			v.body = string(b)
		}
		w.mu.Lock()
		w.visits = append(w.visits, v)
		w.mu.Unlock()
		h(rw, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if u.Scheme == "https" {
		certPEM, keyPEM := w.ca.Issue(w.t, u.Hostname())
		cert, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			w.t.Fatal(err)
		}
		s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		s.StartTLS()
		w.hosts[u.Host] = Host{CAFiles: []string{w.caFile}}
	} else {
		s.Start()
	}
	// A handler that stalls ends with its request's context, so Close does not wait for it.
	w.t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers[strings.TrimPrefix(strings.TrimPrefix(origin(u), "https://"), "http://")] = s.Listener.Addr().String()
}

// client makes a client that lives in this world. Waits are short.
func (w *world) client(change ...func(*Options)) *Client {
	o := Options{Hosts: w.hosts, StallTimeout: 2 * time.Second,
		Log: hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &lockedWriter{w: w}})}
	for _, f := range change {
		f(&o)
	}
	c := New(o)
	c.backoff = time.Millisecond
	c.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		w.mu.Lock()
		real, ok := w.servers[address]
		w.mu.Unlock()
		if !ok {
			return nil, &net.DNSError{Err: "no such host", Name: address, IsNotFound: true}
		}
		return (&net.Dialer{}).DialContext(ctx, network, real)
	}
	w.t.Cleanup(c.Close)
	return c
}

type lockedWriter struct{ w *world }

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.w.log.Write(p)
}

func (w *world) logged() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.String()
}

func (w *world) seen() []visit {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]visit(nil), w.visits...)
}

// count tells how often a path was asked for.
func (w *world) count(method, path string) int {
	n := 0
	for _, v := range w.seen() {
		if v.method == method && strings.HasPrefix(v.path, path) {
			n++
		}
	}
	return n
}

// fake is a registry that behaves: one repository, read only, ranges and all.
type fake struct {
	blobs     map[string][]byte // by digest
	manifests map[string][]byte // by tag or digest
}

func newFake(blobs ...[]byte) *fake {
	f := &fake{blobs: make(map[string][]byte), manifests: make(map[string][]byte)}
	for _, b := range blobs {
		f.blobs[digest.FromBytes(b).String()] = b
	}
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, last, _ := strings.Cut(r.URL.Path[strings.LastIndex(r.URL.Path, "/")-1:], "/")
	switch {
	case r.URL.Path == "/v2/":
	case strings.Contains(r.URL.Path, "/blobs/") && f.blobs[last] != nil:
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.blobs[last]))
	case strings.Contains(r.URL.Path, "/manifests/") && f.manifests[last] != nil:
		raw := f.manifests[last]
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(raw).String())
		_, _ = w.Write(raw)
	default:
		http.Error(w, `{"errors":[{"code":"NAME_UNKNOWN","message":"unknown"}]}`, http.StatusNotFound)
	}
}

// addImage puts an image of one layer under tag v1 and returns its manifest.
func (f *fake) addImage(t *testing.T) []byte {
	layer, layerDesc := randomBlob(t, 1000)
	raw := manifestOf(t, layerDesc, layerDesc)
	f.blobs[layerDesc.Digest.String()] = layer
	f.manifests["v1"], f.manifests[digest.FromBytes(raw).String()] = raw, raw
	return raw
}
