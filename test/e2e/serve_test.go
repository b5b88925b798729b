//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

// htpasswd is user "ada" with the password "correct horse"; bcrypt, cost 5.
const htpasswd = "ada:$2a$05$ZEyiBg7NMVjc5aJaqWJh2uBVZMhxAmTpFuHVbMTyXkdXsd158ktNy\n"

// TestServedStore has one engine push to another and pull from it, by TLS and with a login. What was pushed runs there
// without a registry, by the user imaged runs as.
func TestServedStore(t *testing.T) {
	const port = 15443
	dir, err := os.MkdirTemp("/tmp", "berth-serve.")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ca := registrytest.NewCA(t)
	cert, key := ca.Issue(t, "127.0.0.1", "localhost")
	for name, content := range map[string][]byte{"cert.pem": cert, "key.pem": key, "ca.pem": ca.PEM, "users": []byte(htpasswd)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	harness.Sh(t, "chmod", "755", dir)
	harness.Sh(t, "chmod", "644", dir+"/ca.pem")
	harness.Sh(t, "chown", "berth-imaged", dir+"/key.pem", dir+"/cert.pem", dir+"/users")
	host := fmt.Sprintf("127.0.0.1:%d", port)
	config := func(name, text string) string {
		file := filepath.Join(dir, name+".toml")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return "BERTH_CONFIG=" + file
	}
	server := harness.New(t, config("server", fmt.Sprintf(`
[imaged.serve]
listen = %q
name = "images.lab"
tls_cert = "%[2]s/cert.pem"
tls_key = "%[2]s/key.pem"
users = "%[2]s/users"
push_users = ["ada"]
`, host, dir)))
	client := harness.New(t, "XDG_CONFIG_HOME="+dir+"/client", config("client", fmt.Sprintf("[imaged.registries.%q]\nca_files = [%q]\n", host, dir+"/ca.pem")))
	if info := server.Berth(t, "info"); !strings.Contains(info, "https://"+host+" as images.lab") {
		t.Errorf("berth info does not say what is served:\n%s", info)
	}
	img := client.Busybox(t)
	client.Berth(t, "tag", img, host+"/team/web:1")
	client.Fails(t, 1, []string{"login"}, "push", "-q", host+"/team/web:1")
	if r := client.TryStdin("correct horse", "login", "-u", "ada", "--password-stdin", host); r.Code != 0 {
		t.Fatalf("login: %s", r.Err)
	}
	client.Berth(t, "push", "-q", host+"/team/web:1")
	want(t, "what was pushed says", server.Berth(t, "run", "--rm", "--pull", "never", "images.lab/team/web:1", "cat", "/www/index.html"), "hello from berth")
	want(t, "images of the server", server.Berth(t, "images", "--format", "{{.Repository}}:{{.Tag}}"), "images.lab/team/web:1")

	// What the server has from elsewhere is there for others, and cannot be replaced by them.
	server.Berth(t, "tag", "images.lab/team/web:1", "debian:12")
	client.Berth(t, "pull", "-q", host+"/docker.io/library/debian:12")
	want(t, "what was pulled says", client.Berth(t, "run", "--rm", "--pull", "never", host+"/docker.io/library/debian:12", "cat", "/www/index.html"), "hello from berth")
	client.Berth(t, "tag", img, host+"/docker.io/library/debian:12")
	client.Fails(t, 1, []string{"another registry"}, "push", "-q", host+"/docker.io/library/debian:12")
	want(t, "repositories", strings.Join(lines(client.Berth(t, "registry", "ls", host, "--format", "{{.Name}}")), " "), host+"/docker.io/library/debian "+host+"/team/web")
	client.Berth(t, "registry", "rm", host+"/team/web:1")
	client.Fails(t, 1, []string{"not found"}, "pull", "-q", host+"/team/web:1")
	server.Fails(t, 1, []string{"no such image"}, "image", "inspect", "images.lab/team/web:1")

	// Nothing is served in clear where there is a certificate, and all of it without root's rights.
	if out, err := exec.Command("curl", "-fsS", "http://"+host+"/v2/").CombinedOutput(); err == nil {
		t.Errorf("clear HTTP answers %s", out)
	}
}
