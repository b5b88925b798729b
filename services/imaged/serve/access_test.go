package serve

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAccess: who may do what, by every way of saying who one is.
func TestAccess(t *testing.T) {
	r := newRig(t, anybody())
	own, _ := r.arch()
	r.pushImage("app", "v1", own, "one")
	for _, c := range []struct {
		user, method, path string
		status             int
		code               string
	}{
		{"", "GET", "/v2/", 401, unauthorized},
		{"", "GET", "/v2/app/manifests/v1", 200, ""},
		{"", "POST", "/v2/app/blobs/uploads/", 401, unauthorized},
		{"", "PUT", "/v2/app/manifests/v1", 401, unauthorized},
		{"", "DELETE", "/v2/app/manifests/v1", 401, unauthorized},
		{puller, "GET", "/v2/", 200, ""},
		{puller, "GET", "/v2/app/manifests/v1", 200, ""},
		{puller, "POST", "/v2/app/blobs/uploads/", 403, denied},
		{puller, "DELETE", "/v2/app/manifests/v1", 403, denied},
		{"eve", "GET", "/v2/app/manifests/v1", 401, unauthorized},
	} {
		if a := r.as(c.user, c.method, c.path, ""); a.status != c.status || a.code() != c.code {
			t.Errorf("%q %s %s: %d %s", c.user, c.method, c.path, a.status, a.code())
		}
	}
	ask := r.as("", "GET", "/v2/", "").header.Get("WWW-Authenticate")
	if !strings.HasPrefix(ask, `Bearer realm="`+r.url+tokenPath) {
		t.Errorf("asks for %s", ask)
	}
	token := func(user string) string {
		var doc struct{ Token string }
		r.check(json.Unmarshal([]byte(r.as(user, "GET", tokenPath+"?service=x&scope=repository:app:pull", "").body), &doc))
		return doc.Token
	}
	bearer := func(token, method, path string) int {
		return r.as("", method, path, "", "Authorization", "Bearer "+token).status
	}
	for user, want := range map[string][3]int{"": {200, 200, 401}, puller: {200, 200, 403}, pusher: {200, 200, 202}} {
		token := token(user)
		got := [3]int{bearer(token, "GET", "/v2/"), bearer(token, "GET", "/v2/app/manifests/v1"), bearer(token, "POST", "/v2/app/blobs/uploads/")}
		if got != want {
			t.Errorf("token of %q: %v, want %v", user, got, want)
		}
	}
	old := r.server.access.seal(pusher, "1000000000")
	for _, forged := range []string{"x", old, token(puller) + "A", base64.RawURLEncoding.EncodeToString([]byte(`["ada","99999999999",""]`))} {
		if got := bearer(forged, "GET", "/v2/app/manifests/v1"); got != 401 {
			t.Errorf("forged token: %d", got)
		}
	}

	closed := newRig(t, Config{Users: "yes", PushUsers: []string{pusher}})
	if a := closed.as("", "GET", "/v2/app/manifests/v1", ""); a.status != 401 || !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Basic ") {
		t.Errorf("without anonymous pulls: %d %s", a.status, a.header.Get("WWW-Authenticate"))
	}
	if a := closed.as("", "GET", tokenPath, ""); a.status != 401 {
		t.Errorf("token for nobody: %d", a.status)
	}
	// An upload is its user's.
	other := Config{Users: "yes", PushUsers: []string{pusher, puller}}
	both := newRig(t, other)
	place := both.do("POST", "/v2/app/blobs/uploads/", "").header.Get("Location")
	if a := both.as(puller, "PATCH", place, "x"); a.status != 404 {
		t.Errorf("somebody else's upload: %d", a.status)
	}
}

// TestRefusedConfigurations: what would be unsafe or of no use does not start.
func TestRefusedConfigurations(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("users", "ada:$2y$05$abcdefghijklmnopqrstuuMCxQjWhlVYkbY9SLVzBmtvrb7xRrXxS\n")
	r := newRig(t, anybody())
	for want, c := range map[string]Config{
		"not the loopback":         {Listen: "0.0.0.0:0", AnonymousPull: true},
		"want host:port":           {Listen: "5000", AnonymousPull: true},
		"nobody could use it":      {Listen: "127.0.0.1:0"},
		"go together":              {Listen: "127.0.0.1:0", AnonymousPull: true, Cert: good},
		"no such file":             {Listen: "127.0.0.1:0", Users: "/nowhere"},
		"want NAME:HASH":           {Listen: "127.0.0.1:0", Users: file("plain", "ada:secret\n")},
		"more than 14":             {Listen: "127.0.0.1:0", Users: file("slow", "ada:$2y$31$abcdefghijklmnopqrstuuMCxQjWhlVYkbY9SLVzBmtvrb7xRrXxS\n")},
		"there is no user \"bob\"": {Listen: "127.0.0.1:0", Users: good, PushUsers: []string{"bob"}},
		"is no file":               {Listen: "127.0.0.1:0", Users: dir},
		"PEM":                      {Listen: "127.0.0.1:0", AnonymousPull: true, Cert: good, Key: good},
		"address already in use":   {Listen: r.host(), AnonymousPull: true},
	} {
		c.Hosted, c.Images, c.Store, c.Log = r.hosted, r.images, r.store, r.server.Log
		s, err := Open(c)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}
