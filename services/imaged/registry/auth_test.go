package registry

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/internal/fault"
)

// tokenServer hands out tokens to alice. Its tokens are secrets, too.
func tokenServer(lifetime int) http.HandlerFunc {
	var n atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if ok && (user != "alice" || password != markerPass) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"token": fmt.Sprintf("t%d-%s", n.Add(1), marker), "expires_in": lifetime})
	}
}

// bearerOnly guards a handler: without a token of tokenServer there is a challenge.
func bearerOnly(realm string, h http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); !strings.HasPrefix(a, "Bearer t") || !strings.HasSuffix(a, marker) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="registry.test",scope="repository:team/web:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	}
}

// TestS17CredentialsStayHome crosses every sort of realm with every sort of redirect and
// then looks at what each server was sent.
func TestS17CredentialsStayHome(t *testing.T) {
	realms := map[string]bool{ // realm: whether it may be asked for a token
		"https://registry.test/token":        true,
		"https://auth.test/token":            true,
		"http://registry.test/token":         false,
		"http://auth.test/token":             false,
		"http://169.254.169.254/token":       false,
		"https://alice:x@evil.test/token":    false,
		"/token":                             false,
		"//auth.test/token":                  false,
		"ftp://auth.test/token":              false,
		"https:auth.test":                    false,
		"":                                   false,
		"https://evil.test\\@auth.test/":     false,
		"gopher://registry.test:443/token":   false,
		"file:///etc/passwd":                 false,
		"https://registry.test:8443/token/2": true,
	}
	locations := map[string]bool{ // Location: whether the blob can be had there
		"":                                    true, // no redirect
		"/store/blob":                         true,
		"https://cdn.test/blob?sig=" + marker: true,
		"https://registry.test:8443/blob":     true,
		"https://cdn.test/back":               true,  // which sends the client back to the registry
		"http://cdn.test/blob":                false, // down to clear HTTP
		"http://registry.test/blob":           false,
		"https://u:p@cdn.test/blob":           false,
		"https://cdn.test/down":               false, // which then goes down to clear HTTP
		"https://cdn.test/401":                false, // which asks for a login of its own
		"file:///etc/passwd":                  false,
		"https://":                            false,
		"://":                                 false,
	}
	blob, desc := randomBlob(t, 5000)
	for realm, goodRealm := range realms {
		for location, goodLocation := range locations {
			t.Run(strings.ReplaceAll(realm+" "+location, "/", "_"), func(t *testing.T) {
				w := newWorld(t)
				fake := newFake(blob)
				serveBlob := func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(blob) }
				registry := bearerOnly(realm, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					if location != "" && strings.Contains(r.URL.Path, "/blobs/") {
						rw.Header().Set("Location", location)
						rw.WriteHeader(http.StatusTemporaryRedirect)
						return
					}
					fake.ServeHTTP(rw, r)
				}))
				tokens := tokenServer(300)
				w.serve("https://registry.test", func(rw http.ResponseWriter, r *http.Request) {
					switch r.URL.Path {
					case "/token":
						tokens(rw, r)
					case "/store/blob", "/back":
						serveBlob(rw, r)
					default:
						registry(rw, r)
					}
				})
				other := func(rw http.ResponseWriter, r *http.Request) {
					switch r.URL.Path {
					case "/token", "/token/2":
						tokens(rw, r)
					case "/back":
						http.Redirect(rw, r, "https://registry.test/back", http.StatusFound)
					case "/down":
						http.Redirect(rw, r, "http://cdn.test/blob", http.StatusFound)
					case "/401":
						rw.Header().Set("WWW-Authenticate", `Basic realm="gimme"`)
						rw.WriteHeader(http.StatusUnauthorized)
					default:
						serveBlob(rw, r)
					}
				}
				for _, at := range []string{"https://auth.test", "https://cdn.test", "https://registry.test:8443", "https://evil.test",
					"http://registry.test", "http://auth.test", "http://cdn.test", "http://169.254.169.254"} {
					w.serve(at, other)
				}

				rc, err := w.client().Blob(t.Context(), named(t, "registry.test/team/web"), desc, 0, markerAuth)
				if err == nil {
					rc.Close()
				}
				if (err == nil) != (goodRealm && goodLocation) {
					t.Errorf("Blob: %v", err)
				}
				if err != nil && strings.Contains(told(err), marker) {
					t.Errorf("S-45: a secret is in the error: %v", err)
				}
				left := false
				for _, v := range w.seen() {
					if v.origin != "https://registry.test:443" {
						left = left || !strings.HasPrefix(v.path, "/token")
					}
					isRealm := strings.HasPrefix(v.path, "/token") && strings.HasPrefix(realm, "https://") && goodRealm
					switch {
					case strings.HasPrefix(v.origin, "http://"):
						t.Errorf("clear HTTP was spoken: %+v", v)
					case v.authorization == "":
					case v.origin == "https://registry.test:443" && !left:
					case isRealm && strings.HasPrefix(v.authorization, "Basic "):
					default:
						t.Errorf("credentials went astray: %+v", v)
					}
				}
			})
		}
	}
}

// TestS17ClearHTTP has a registry that speaks clear HTTP by configuration. Its realm may do
// so only on the same host, or where that is configured, too.
func TestS17ClearHTTP(t *testing.T) {
	for realm, good := range map[string]bool{
		"http://plain.test:5000/token": true,
		"http://plain.test:5001/token": true,
		"https://auth.test/token":      true,
		"http://clear-auth.test/token": true,
		"http://auth.test/token":       false,
	} {
		w := newWorld(t)
		fake := newFake()
		fake.addImage(t)
		tokens := tokenServer(300)
		registry := bearerOnly(realm, fake)
		both := func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				tokens(rw, r)
				return
			}
			registry(rw, r)
		}
		for _, at := range []string{"http://plain.test:5000", "http://plain.test:5001", "http://auth.test", "http://clear-auth.test", "https://auth.test"} {
			w.serve(at, both)
		}
		c := w.client(func(o *Options) {
			o.Hosts["plain.test:5000"] = Host{PlainHTTP: true}
			o.Hosts["clear-auth.test"] = Host{PlainHTTP: true}
		})
		_, err := c.Resolve(t.Context(), named(t, "plain.test:5000/team/web:v1"), markerAuth)
		if (err == nil) != good {
			t.Errorf("realm %s: %v", realm, err)
		}
		for _, v := range w.seen() {
			if !good && v.authorization != "" {
				t.Errorf("realm %s was given credentials: %+v", realm, v)
			}
		}
	}
}

// TestS17TLSNeverRetriedInClear: a registry that is not on the loopback is not spoken to in
// clear, be its certificate wrong or be there no TLS at all.
func TestS17TLSNeverRetriedInClear(t *testing.T) {
	w := newWorld(t)
	never := func(http.ResponseWriter, *http.Request) {}
	w.serve("https://other-ca.test", never)
	w.serve("http://other-ca.test", never)
	delete(w.hosts, "other-ca.test")
	w.serve("http://clear.test:443", never)
	w.serve("http://clear.test:5000", never)
	c := w.client()
	wantError(t, c.Ping(t.Context(), "other-ca.test", markerAuth), fault.FailedPrecondition, "connect to registry other-ca.test: its certificate is signed by an unknown authority")
	wantError(t, c.Ping(t.Context(), "clear.test", markerAuth), fault.FailedPrecondition, "it does not speak TLS")
	wantError(t, c.Ping(t.Context(), "clear.test:5000", markerAuth), fault.FailedPrecondition, "it does not speak TLS")
	if v := w.seen(); len(v) != 0 {
		t.Errorf("requests were made: %+v", v)
	}
	insecure := w.client(func(o *Options) {
		o.Hosts = map[string]Host{"clear.test:5000": {Insecure: true}, "other-ca.test": {Insecure: true}}
	})
	for _, host := range []string{"clear.test:5000", "other-ca.test"} {
		if err := insecure.Ping(t.Context(), host, Auth{}); err != nil {
			t.Errorf("insecure by configuration: %v", err)
		}
	}
}

func TestS17WrongHostInCertificate(t *testing.T) {
	w := newWorld(t)
	w.serve("https://real.test", func(http.ResponseWriter, *http.Request) {})
	w.servers["alias.test:443"] = w.servers["real.test:443"]
	w.hosts["alias.test"] = w.hosts["real.test"]
	wantError(t, w.client().Ping(t.Context(), "alias.test", Auth{}), fault.FailedPrecondition, "its certificate is for another host")
}

// TestS17UploadElsewhere: a session on another origin gets the bytes and nothing else.
func TestS17UploadElsewhere(t *testing.T) {
	blob, desc := randomBlob(t, 3<<20)
	for location, good := range map[string]bool{
		"https://upload.test/session?id=" + marker: true,
		"https://registry.test:8443/session":       true,
		"http://upload.test/session":               false,
		"http://registry.test/session":             false,
		"":                                         false,
	} {
		w := newWorld(t)
		var got int64
		tokens := tokenServer(300)
		w.serve("https://registry.test", func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				tokens(rw, r)
				return
			}
			bearerOnly("https://registry.test/token", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					rw.Header().Set("Location", location)
					rw.WriteHeader(http.StatusAccepted)
					return
				}
				rw.WriteHeader(http.StatusNotFound)
			}))(rw, r)
		})
		session := func(rw http.ResponseWriter, r *http.Request) {
			b := make([]byte, 1<<20)
			for {
				n, err := r.Body.Read(b)
				got += int64(n)
				if err != nil {
					break
				}
			}
			rw.WriteHeader(http.StatusCreated)
		}
		for _, at := range []string{"https://upload.test", "https://registry.test:8443", "http://upload.test", "http://registry.test"} {
			w.serve(at, session)
		}
		_, err := w.client().PushBlob(t.Context(), named(t, "registry.test/team/web"), desc, opener(blob), "", markerAuth, nil)
		if (err == nil) != good || good && got != desc.Size {
			t.Errorf("upload to %q: %d bytes, %v", location, got, err)
		}
		if err != nil && strings.Contains(told(err), marker) {
			t.Errorf("S-45: a secret is in the error: %v", err)
		}
		for _, v := range w.seen() {
			if v.origin != "https://registry.test:443" && v.authorization != "" || strings.HasPrefix(v.origin, "http://") {
				t.Errorf("upload to %q: credentials or clear HTTP: %+v", location, v)
			}
		}
	}
}

// TestS45RegistryEchoesSecrets: a registry puts what it was sent into its error message.
func TestS45RegistryEchoesSecrets(t *testing.T) {
	for _, status := range []int{http.StatusForbidden, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusTeapot} {
		w := newWorld(t)
		w.serve("https://registry.test", func(rw http.ResponseWriter, r *http.Request) {
			a := r.Header.Get("Authorization")
			if a == "" {
				rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				rw.WriteHeader(http.StatusUnauthorized)
				return
			}
			_, password, _ := r.BasicAuth()
			rw.WriteHeader(status)
			_ = json.NewEncoder(rw).Encode(map[string]any{"errors": []any{map[string]string{"code": "X", "message": "you sent " + a + "\n\x1b[31m" + password}}})
		})
		_, err := w.client().Resolve(t.Context(), named(t, "registry.test/team/web:v1"), markerAuth)
		if err == nil {
			t.Fatal("no error")
		}
		text := told(err)
		if strings.Contains(text, marker) || strings.Contains(text, strings.TrimPrefix(markerAuth.basic(), "Basic ")) || strings.ContainsAny(text, "\n\x1b") {
			t.Errorf("status %d: %q", status, text)
		}
	}
}

// TestS45MalformedAnswersAreNotQuoted: a registry sends the Authorization back in places
// where net/http's own errors would quote it.
func TestS45MalformedAnswersAreNotQuoted(t *testing.T) {
	for _, answer := range []string{"%s\r\n\r\n", "HTTP/1.1 %s\r\n\r\n", "HTTP/1.1 200 OK\r\n%s\r\n\r\n", "HTTP/1.1 200 OK\r\n%s: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: %s\r\n\r\n", "HTTP/1.1 302 %s\r\nLocation: https://%[1]s/\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 302 X\r\nLocation: http://%s/\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 418 %s\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 503 %s\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nDocker-Content-Digest: %s\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Type: application/%s\r\nContent-Length: 2\r\n\r\n{}"} {
		w := newWorld(t)
		w.serve("https://registry.test", func(rw http.ResponseWriter, r *http.Request) {
			_, password, ok := r.BasicAuth()
			if !ok {
				rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				rw.WriteHeader(http.StatusUnauthorized)
				return
			}
			hijack(rw, func(w io.Writer) { fmt.Fprintf(w, answer, password) })
		})
		_, err := w.client().Resolve(t.Context(), named(t, "registry.test/team/web:v1"), markerAuth)
		if err == nil || strings.Contains(told(err), marker) {
			t.Errorf("%q: %v", answer, err)
		}
	}
}

func TestS45SecretPrintsStars(t *testing.T) {
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if s := fmt.Sprintf(verb, markerAuth) + fmt.Sprintf(verb, Secret(marker)); strings.Contains(s, marker) || strings.Contains(s, "6d61726b6572") {
			t.Errorf("%s prints %s", verb, s)
		}
	}
	if b, err := json.Marshal(markerAuth); err != nil || strings.Contains(string(b), marker) {
		t.Errorf("JSON: %s, %v", b, err)
	}
}

// TestS16 feeds what must never become part of a URL or path.
func TestS16MalformedNamesAreRefused(t *testing.T) {
	w := newWorld(t)
	w.serve("https://registry.test", func(http.ResponseWriter, *http.Request) {})
	c := w.client()
	repo := named(t, "registry.test/team/web")
	good := digest.FromString("x")
	for _, d := range []digest.Digest{"", "sha256:", "sha256:../x", "sha256:" + digest.Digest(strings.Repeat("A", 64)),
		"sha256:" + digest.Digest(strings.Repeat("a", 63)), "sha256:" + digest.Digest(strings.Repeat("a", 65)), "md5:" + digest.Digest(strings.Repeat("a", 32)),
		"sha256:" + digest.Digest(strings.Repeat("a", 63)) + "\n", good + "?x", good + "/../../x", "../" + good} {
		desc := ocispec.Descriptor{Digest: d, Size: 5}
		_, err := c.Blob(t.Context(), repo, desc, 0, Auth{})
		wantError(t, err, fault.InvalidArgument, "digest")
		_, err = c.PushBlob(t.Context(), repo, desc, opener(nil), "", Auth{}, nil)
		wantError(t, err, fault.InvalidArgument, "digest")
		_, err = c.Resolve(t.Context(), rawDigested{rawRef{name: repo.Name()}, d}, Auth{})
		wantError(t, err, fault.InvalidArgument, "digest")
	}
	for _, name := range []string{"", "registry.test", "registry.test/../x", "registry.test/a/../b", "registry.test/A", "registry.test/a?b", "registry.test/a#b",
		"registry.test@evil.test/a", "user:pw@registry.test/a", "registry.test/a b", "registry.test//a", "registry.test/a/", "registry.test/a\n", "registry.test/%2e%2e/a", "https://registry.test/a"} {
		if name == "registry.test" {
			continue // that is docker.io/library/registry.test
		}
		_, err := c.Blob(t.Context(), rawRef{name: name}, ocispec.Descriptor{Digest: good, Size: 5}, 0, Auth{})
		wantError(t, err, fault.InvalidArgument, "malformed")
	}
	for _, tag := range []string{"", "a/b", "../x", "a?b", "a b", "-a", ".a", strings.Repeat("a", 129), "a\n"} {
		_, err := c.Resolve(t.Context(), rawRef{name: repo.Name(), tag: tag}, Auth{})
		wantError(t, err, fault.InvalidArgument, "malformed")
	}
	for _, from := range []string{"../x", "A", "a?b", "a:b", "a@" + good.String(), "a b", "/a"} {
		_, err := c.PushBlob(t.Context(), repo, ocispec.Descriptor{Digest: good, Size: 5}, opener(nil), from, Auth{}, nil)
		wantError(t, err, fault.InvalidArgument, "malformed")
	}
	for _, host := range []string{"", "a b", "registry.test/x", "u:p@registry.test", "registry.test?x", "https://registry.test", "registry.test:x", "host"} {
		wantError(t, c.Ping(t.Context(), host, Auth{}), fault.InvalidArgument, "registry address")
	}
	if v := w.seen(); len(v) != 0 {
		t.Errorf("requests were made: %+v", v)
	}
}

// rawRef is a reference that no parser has seen.
type rawRef struct{ name, tag string }

func (r rawRef) Name() string   { return r.name }
func (r rawRef) String() string { return r.name }
func (r rawRef) Tag() string    { return r.tag }

type rawDigested struct {
	rawRef
	digest digest.Digest
}

func (r rawDigested) Digest() digest.Digest { return r.digest }

func TestTokenIsSharedByCallsAndNotByCallers(t *testing.T) {
	w := newWorld(t)
	blob, desc := randomBlob(t, 5000)
	w.serve("https://registry.test", bearerOnly("https://auth.test/token", newFake(blob)))
	w.serve("https://auth.test", tokenServer(300))
	c := w.client()
	repo := named(t, "registry.test/team/web")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			rc, err := c.Blob(t.Context(), repo, desc, 0, markerAuth)
			if err != nil {
				t.Error(err)
				return
			}
			rc.Close()
		})
	}
	wg.Wait()
	if n := w.count(http.MethodGet, "/token"); n != 1 {
		t.Errorf("%d tokens were fetched for 20 calls of one person, want 1", n)
	}
	_, err := c.Blob(t.Context(), repo, desc, 0, Auth{Username: "bob", Password: "wrong"})
	wantError(t, err, fault.Unauthenticated, "does not accept the login of bob")
	for _, v := range w.seen() {
		if scope := v.query.Get("scope"); v.path == "/token" && (scope != "repository:team/web:pull" || v.query.Get("service") != "registry.test") {
			t.Errorf("token request %v", v.query)
		}
	}
}

func TestTokenIsRenewedBeforeItExpires(t *testing.T) {
	w := newWorld(t)
	blob, desc := randomBlob(t, 5000)
	w.serve("https://registry.test", bearerOnly("https://auth.test/token", newFake(blob)))
	w.serve("https://auth.test", tokenServer(1))
	c := w.client()
	for range 2 {
		readBlob(t, c, named(t, "registry.test/team/web"), desc, 0, markerAuth)
		time.Sleep(600 * time.Millisecond) // the margin is half of so short a life
	}
	if n := w.count(http.MethodGet, "/token"); n != 2 {
		t.Errorf("%d tokens were fetched, want 2", n)
	}
	if n := w.count(http.MethodGet, "/v2/team/web/blobs/"); n != 3 {
		t.Errorf("%d blob requests, want 3: only the first may be turned away", n)
	}
}

// TestRegistryChangesItsMind: what a registry once asked for is not held against it.
func TestRegistryChangesItsMind(t *testing.T) {
	w := newWorld(t)
	fake := newFake()
	fake.addImage(t)
	var guard atomic.Pointer[http.HandlerFunc]
	set := func(h http.HandlerFunc) { guard.Store(&h) }
	w.serve("https://registry.test", func(rw http.ResponseWriter, r *http.Request) { (*guard.Load())(rw, r) })
	w.serve("https://auth.test", tokenServer(1))
	c := w.client()
	ref := named(t, "registry.test/team/web:v1")
	basic := func(rw http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		fake.ServeHTTP(rw, r)
	}
	for step, s := range []struct {
		guard http.HandlerFunc
		auth  Auth
		good  bool
	}{
		{basic, Auth{}, false},
		{fake.ServeHTTP, Auth{}, true},
		{bearerOnly("https://gone.test/token", fake), Auth{}, false},
		{bearerOnly("https://auth.test/token", fake), Auth{}, true},
		{bearerOnly("https://gone.test/token", fake), Auth{}, true}, // the token is still good
		{basic, Auth{}, false},
		{basic, markerAuth, true},
		{bearerOnly("https://auth.test/token", fake), markerAuth, true},
	} {
		set(s.guard)
		if _, err := c.Resolve(t.Context(), ref, s.auth); (err == nil) != s.good {
			t.Errorf("step %d: %v", step, err)
		}
	}
}

func TestIdentityTokenIsPosted(t *testing.T) {
	w := newWorld(t)
	fake := newFake()
	fake.addImage(t)
	w.serve("https://registry.test", bearerOnly("https://auth.test/token", fake))
	w.serve("https://auth.test", func(rw http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(rw).Encode(map[string]any{"access_token": "t-" + marker})
	})
	_, err := w.client().Resolve(t.Context(), named(t, "registry.test/team/web:v1"), Auth{IdentityToken: "refresh-" + marker})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range w.seen() {
		if v.origin != "https://auth.test:443" {
			continue
		}
		want := "client_id=berth&grant_type=refresh_token&refresh_token=refresh-" + marker + "&scope=repository%3Ateam%2Fweb%3Apull&service=registry.test"
		if v.method != http.MethodPost || v.body != want || v.authorization != "" || len(v.query) != 0 {
			t.Errorf("token request %+v", v)
		}
	}
}

func TestRegistryTokenIsSentAsItIs(t *testing.T) {
	w := newWorld(t)
	fake := newFake()
	fake.addImage(t)
	w.serve("https://registry.test", bearerOnly("https://auth.test/token", fake))
	if _, err := w.client().Resolve(t.Context(), named(t, "registry.test/team/web:v1"), Auth{RegistryToken: "t-" + marker}); err != nil {
		t.Error(err)
	}
}

func TestLoginReturnsIdentityToken(t *testing.T) {
	w := newWorld(t)
	w.serve("https://registry.test", bearerOnly("https://auth.test/token", newFake()))
	w.serve("https://auth.test", func(rw http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != markerPass || r.URL.Query().Get("offline_token") != "true" {
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(rw).Encode(map[string]any{"token": "t-" + marker, "refresh_token": "r-" + marker})
	})
	c := w.client()
	if token, err := c.Login(t.Context(), "registry.test", markerAuth); err != nil || token != "r-"+marker {
		t.Errorf("Login = %q, %v", string(token), err)
	}
	_, err := c.Login(t.Context(), "registry.test", Auth{Username: "alice", Password: "wrong-" + marker})
	wantError(t, err, fault.Unauthenticated, "log in to registry.test: registry registry.test does not accept this user name and password")
}

func TestTokenServerMisbehaves(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		kind    fault.Kind
		text    string
	}{
		"huge": {func(rw http.ResponseWriter, _ *http.Request) {
			_, _ = rw.Write([]byte(strings.Repeat("x", maxTokenBytes+1)))
		}, fault.ResourceExhausted, "more than 1 MiB"},
		"not JSON":   {func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte("<html>")) }, fault.DataLoss, "not a token"},
		"no token":   {func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte("{}")) }, fault.DataLoss, "without a usable token"},
		"line break": {func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte(`{"token":"a\r\nX: y"}`)) }, fault.DataLoss, "without a usable token"},
		"down":       {func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(503) }, fault.Unavailable, "token server auth.test of registry registry.test answered 503"},
		"refuses":    {func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(401) }, fault.Unauthenticated, "does not accept the login of alice"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.serve("https://registry.test", bearerOnly("https://auth.test/token", newFake()))
			w.serve("https://auth.test", c.handler)
			_, err := w.client().Resolve(t.Context(), named(t, "registry.test/team/web:v1"), markerAuth)
			wantError(t, err, c.kind, c.text)
		})
	}
}
