package credentials

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, file, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return file
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestGetReadsDockersFile(t *testing.T) {
	dir := t.TempDir()
	docker := write(t, filepath.Join(dir, "config.json"), `{
		"HttpHeaders": {"User-Agent": "x"},
		"auths": {
			"https://index.docker.io/v1/": {"auth": "`+b64("hub:p:w")+`"},
			"127.0.0.1:5000": {"username": "u", "password": "p"},
			"https://old.example/v1/": {"auth": "`+b64("o:x\x00\x00")+`"},
			"tok.example": {"auth": "`+b64("<token>:refresh")+`"},
			"id.example": {"auth": "`+b64("me:")+`", "identitytoken": "refresh2"},
			"reg.example": {"registrytoken": "bearer"},
			"broken.example": {"auth": "%%%"}
		}}`, 0o600)
	s := New(filepath.Join(dir, "none.json"), docker)
	for registry, want := range map[string]Login{
		"docker.io":      {Username: "hub", Password: "p:w"},
		"127.0.0.1:5000": {Username: "u", Password: "p"},
		"127.0.0.1:5001": {},
		"127.0.0.1":      {},
		"old.example":    {Username: "o", Password: "x"},
		"tok.example":    {IdentityToken: "refresh"},
		"id.example":     {Username: "me", IdentityToken: "refresh2"},
		"reg.example":    {RegistryToken: "bearer"},
		"other.example":  {},
	} {
		got, err := s.Get(t.Context(), registry)
		if err != nil || got != want {
			t.Errorf("Get(%s) = %#v, %v", registry, struct{ L []string }{[]string{got.Username, got.Password, got.IdentityToken}}, err)
		}
	}
	if _, err := s.Get(t.Context(), "broken.example"); err == nil || strings.Contains(err.Error(), "%%%") {
		t.Errorf("broken entry: %v", err)
	}
}

func TestPutGetDelete(t *testing.T) {
	dir := t.TempDir()
	own := filepath.Join(dir, "berth", "config.json")
	docker := write(t, filepath.Join(dir, "docker.json"), `{"auths": {"r.example": {"auth": "`+b64("docker:d")+`"}}}`, 0o600)
	before, _ := os.ReadFile(docker)
	s := New(own, docker)

	where, err := s.Put(t.Context(), "r.example", Login{Username: "me", Password: "pässword:1"})
	if err != nil || where != own {
		t.Fatalf("Put: %q, %v", where, err)
	}
	info, err := os.Stat(own)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of %s: %v, %v", own, info.Mode(), err)
	}
	if l, err := s.Get(t.Context(), "r.example"); err != nil || l.Password != "pässword:1" {
		t.Errorf("own login must win: %v, %v", l, err)
	}
	found, elsewhere, err := s.Delete(t.Context(), "r.example")
	if err != nil || !found || elsewhere != docker {
		t.Errorf("Delete = %v, %q, %v", found, elsewhere, err)
	}
	if l, err := s.Get(t.Context(), "r.example"); err != nil || l.Username != "docker" {
		t.Errorf("after Delete: %v, %v", l, err)
	}
	if found, _, err := s.Delete(t.Context(), "r.example"); err != nil || found {
		t.Errorf("second Delete: %v, %v", found, err)
	}
	if after, _ := os.ReadFile(docker); string(after) != string(before) {
		t.Error("Docker's file was changed")
	}
}

func TestPutKeepsTheRestOfTheFile(t *testing.T) {
	own := write(t, filepath.Join(t.TempDir(), "config.json"), `{"contexts": {"a": [1, 2]}, "auths": {"https://a.example/v1/": {"auth": "`+b64("x:y")+`"}, "b.example": {"auth": "`+b64("b:b")+`"}}}`, 0o644)
	if _, err := New(own).Put(t.Context(), "a.example", Login{Username: "n", Password: "m"}); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(own)
	var got struct {
		Contexts struct{ A []int }
		Auths    map[string]entry
	}
	if err := json.Unmarshal(b, &got); err != nil || len(got.Contexts.A) != 2 || len(got.Auths) != 2 || got.Auths["a.example"].Auth != b64("n:m") {
		t.Errorf("file is now %s (%v)", b, err)
	}
}

// fakeHelper keeps one secret a server in files, as the protocol of the real ones demands.
const fakeHelper = `#!/bin/sh
set -e
dir=$(dirname "$0")
case $1 in
store) cat > "$dir/stored" ;;
get) server=$(cat); if [ -f "$dir/stored" ]; then cat "$dir/stored"; else echo "credentials not found in native keychain"; exit 1; fi ;;
erase) cat > /dev/null; rm "$dir/stored" ;;
esac
`

func TestHelper(t *testing.T) {
	bin := t.TempDir()
	write(t, filepath.Join(bin, "docker-credential-fake"), fakeHelper, 0o755)
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	own := write(t, filepath.Join(t.TempDir(), "config.json"), `{"credsStore": "fake"}`, 0o600)
	s := New(own)
	if l, err := s.Get(t.Context(), "docker.io"); err != nil || !l.Anonymous() {
		t.Errorf("empty helper: %v, %v", l, err)
	}
	if where, err := s.Put(t.Context(), "docker.io", Login{Username: "u", Password: "s3cret"}); err != nil || where != "docker-credential-fake" {
		t.Errorf("Put: %q, %v", where, err)
	}
	stored, _ := os.ReadFile(filepath.Join(bin, "stored"))
	if want := `{"ServerURL":"https://index.docker.io/v1/","Username":"u","Secret":"s3cret"}`; string(stored) != want {
		t.Errorf("helper got %s, want %s", stored, want)
	}
	if b, _ := os.ReadFile(own); strings.Contains(string(b), "s3cret") {
		t.Error("the secret is in the file, too")
	}
	if l, err := s.Get(t.Context(), "docker.io"); err != nil || l != (Login{Username: "u", Password: "s3cret"}) {
		t.Errorf("Get: %v, %v", l, err)
	}
	if found, _, err := s.Delete(t.Context(), "docker.io"); err != nil || !found {
		t.Errorf("Delete: %v, %v", found, err)
	}
}

func TestS49HelperNamesAndPaths(t *testing.T) {
	dir := t.TempDir()
	marker := filepath.Join(dir, "ran")
	write(t, filepath.Join(dir, "docker-credential-evil"), "#!/bin/sh\ntouch "+marker+"\n", 0o755)
	t.Chdir(dir)
	t.Setenv("PATH", ".:"+":/nonexistent")
	for _, name := range []string{"evil", "../evil", "/tmp/x", "-x", "a b", "", "x/../../evil", "a\n"} {
		if _, err := helper(name).get(t.Context(), "r.example"); err == nil {
			t.Errorf("helper %q was run", name)
		}
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("a helper in the working directory was run")
	}
}

func TestHelperThatFailsOrFloods(t *testing.T) {
	bin := t.TempDir()
	write(t, filepath.Join(bin, "docker-credential-bad"), "#!/bin/sh\necho leaked-marker; exit 3\n", 0o755)
	write(t, filepath.Join(bin, "docker-credential-flood"), "#!/bin/sh\nyes leaked-marker | head -c 1000000\n", 0o755)
	write(t, filepath.Join(bin, "docker-credential-hang"), "#!/bin/sh\nexec sleep 30\n", 0o755)
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	for _, name := range []helper{"bad", "flood"} {
		if _, err := name.get(t.Context(), "r.example"); err == nil || strings.Contains(err.Error(), "leaked-marker") {
			t.Errorf("helper %s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := helper("hang").get(ctx, "r.example"); err == nil {
		t.Error("a cancelled call returned a login")
	}
}

func TestS45LoginPrintsWithoutSecrets(t *testing.T) {
	l := Login{Username: "u", Password: "marker", IdentityToken: "marker", RegistryToken: "marker"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if s := fmt.Sprintf(verb, l) + fmt.Sprintf(verb, &l); strings.Contains(s, "marker") {
			t.Errorf("%s prints %s", verb, s)
		}
	}
}

func TestBrokenFiles(t *testing.T) {
	for name, content := range map[string]string{
		"syntax": `{"auths": {"r.example": {"auth": "marker`,
		"type":   `{"auths": {"r.example": "marker"}}`,
		"huge":   strings.Repeat(" ", maxConfigBytes+1),
	} {
		file := write(t, filepath.Join(t.TempDir(), "config.json"), content, 0o600)
		_, err := New(file).Get(t.Context(), "r.example")
		if err == nil || strings.Contains(err.Error(), "marker") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := New(file).Put(t.Context(), "r.example", Login{Username: "u"}); err == nil {
			t.Errorf("%s: Put overwrote a file it could not read", name)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"a":{"auth":"dTpw"}},"credHelpers":{"b":"x"},"credsStore":""}`))
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"identitytoken":"x"}}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c config
		if c.parse(b) != nil {
			return
		}
		for registry := range c.Auths {
			e, ok := c.entryFor(registry)
			if !ok && !strings.Contains(registry, "/") {
				t.Errorf("entry %q is not found under its own name", registry)
			}
			l, err := e.login()
			if err != nil {
				continue
			}
			if again, err := newEntry(l).login(); err != nil || again != l {
				// A colon cannot be part of a user name in this format.
				if !strings.Contains(l.Username, ":") && !strings.HasSuffix(l.Password, "\x00") {
					t.Errorf("login does not survive a round trip: %v", err)
				}
			}
		}
	})
}

// Several accounts in one registry, told apart by the path of the repository.
func TestAccountsByPath(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	s := New(file)
	for registry, user := range map[string]string{"quay.test": "all", "quay.test/team": "team", "quay.test/team/web": "web", "other.test:5000/x": "x"} {
		if _, err := s.Put(t.Context(), registry, Login{Username: user, Password: "p"}); err != nil {
			t.Fatal(err)
		}
	}
	for repository, user := range map[string]string{
		"quay.test": "all", "quay.test/app": "all", "quay.test/team": "team", "quay.test/team/api": "team", "quay.test/team/web": "web",
		"quay.test/team/web/deep": "web", "quay.test/teammate": "all", "other.test:5000/x/y": "x", "other.test:5000/y": "", "other.test/x": "",
	} {
		if l, err := s.Get(t.Context(), repository); err != nil || l.Username != user {
			t.Errorf("%s: %q, %v; want %q", repository, l.Username, err, user)
		}
	}
	if found, _, err := s.Delete(t.Context(), "quay.test/team"); err != nil || !found {
		t.Errorf("delete: %v, %v", found, err)
	}
	for repository, user := range map[string]string{"quay.test/team/api": "all", "quay.test/team/web": "web"} {
		if l, _ := s.Get(t.Context(), repository); l.Username != user {
			t.Errorf("after the removal, %s: %q", repository, l.Username)
		}
	}
}
