//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

// skopeo is what another program makes of an image in a registry.
func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("SKIPPED: needs skopeo")
	}
	return harness.Sh(t, "skopeo", args...)
}

func TestRegistryWithoutStore(t *testing.T) {
	e := harness.New(t, "XDG_CONFIG_HOME="+t.TempDir())
	img := e.Busybox(t)
	reg, secret := registrytest.Start(t, registrytest.Options{}), registrytest.Start(t, registrytest.Options{Auth: true})
	if r := e.TryStdin(registrytest.Password, "login", "-u", registrytest.User, "--password-stdin", secret.Host); r.Code != 0 {
		t.Fatalf("login: %s", r.Err)
	}
	for _, name := range []string{"app:amd", "app:arm", "team/web:1"} {
		e.Berth(t, "tag", img, reg.Ref(name))
		e.Berth(t, "push", "-q", reg.Ref(name))
	}
	before := e.Berth(t, "images", "-q")

	// An index of two images, as Docker's users make it.
	list := reg.Ref("app:multi")
	e.Berth(t, "manifest", "create", list, reg.Ref("app:amd"), reg.Ref("team/web:1"))
	e.Fails(t, 1, []string{"--amend"}, "manifest", "create", list, reg.Ref("app:amd"))
	e.Berth(t, "manifest", "annotate", "--arch", "arm", "--variant", "v7", "--annotation", "a=b", list, reg.Ref("team/web:1"))
	e.Fails(t, 1, []string{"not part"}, "manifest", "annotate", "--arch", "arm", list, reg.Ref("team/web@sha256:"+strings.Repeat("0", 64)))
	digest := e.Berth(t, "manifest", "push", "--purge", list)
	e.Fails(t, 1, []string{"no such"}, "manifest", "rm", list)
	var index struct {
		Manifests []struct {
			Platform    struct{ Architecture, Variant string }
			Annotations map[string]string
		}
	}
	seen := skopeo(t, "inspect", "--raw", "--tls-verify=false", "docker://"+list)
	if err := json.Unmarshal([]byte(seen), &index); err != nil || len(index.Manifests) != 2 || index.Manifests[1].Platform.Variant != "v7" || index.Manifests[1].Annotations["a"] != "b" {
		t.Errorf("skopeo sees %s, %v", seen, err)
	}
	if shown := e.Berth(t, "manifest", "inspect", list); !strings.Contains(shown, `"arm"`) {
		t.Errorf("manifest inspect shows %s", shown)
	}
	if shown := e.Berth(t, "manifest", "inspect", "--platform", "linux/arm/v7", list); !strings.Contains(shown, `"layers"`) {
		t.Errorf("of one platform: %s", shown)
	}

	// Copied to a registry with a login, where the bytes are the same.
	target := secret.Ref("mirror/app:multi")
	want(t, "digest of the copy", e.Berth(t, "image", "copy", "-q", list, target), digest)
	copied := skopeo(t, "inspect", "--raw", "--tls-verify=false", "--creds", registrytest.User+":"+registrytest.Password, "docker://"+target)
	want(t, "index after the copy", copied, seen)
	e.Fails(t, 1, []string{"not found"}, "image", "copy", reg.Ref("none:1"), target)

	// Lists and removal: the tag goes, the image stays under its other tag.
	want(t, "repositories", e.Berth(t, "registry", "ls", reg.Host, "team", "--format", "{{.Name}}"), reg.Ref("team/web"))
	want(t, "tags", strings.Join(lines(e.Berth(t, "registry", "tags", reg.Ref("app"), "--format", "{{.Tag}}")), " "), "amd arm multi")
	e.Berth(t, "registry", "rm", reg.Ref("app:amd"))
	want(t, "tags after rm", strings.Join(lines(e.Berth(t, "registry", "tags", reg.Ref("app"), "--format", "{{.Tag}}")), " "), "arm multi")
	e.Berth(t, "manifest", "inspect", reg.Ref("app:arm"))
	e.Fails(t, 1, []string{"neither tag nor digest"}, "registry", "rm", reg.Ref("app"))
	want(t, "local images", e.Berth(t, "images", "-q"), before)
}

func TestArtifacts(t *testing.T) {
	e := harness.Shared(t)
	reg := registrytest.Start(t, registrytest.Options{})
	ref := reg.Ref("web:1")
	e.Berth(t, "tag", e.Busybox(t), ref)
	e.Berth(t, "push", "-q", ref)
	dir := t.TempDir()
	sbom := filepath.Join(dir, "sbom.json")
	content := strings.Repeat(`{"name":"busybox"}`, 100_000)
	if err := os.WriteFile(sbom, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	pushed := e.Berth(t, "artifact", "push", "--type", "application/spdx+json", "--subject", ref, "--annotation", "by=test", reg.Ref("web"), sbom+":application/json")
	want(t, "referrers", e.Berth(t, "artifact", "ls", "--format", "{{.Digest}} {{.ArtifactType}}", ref), pushed[strings.IndexByte(pushed, '@')+1:]+" application/spdx+json")
	out := t.TempDir()
	want(t, "pulled file", e.Berth(t, "artifact", "pull", "-o", out, pushed), filepath.Join(out, "sbom.json"))
	if b, err := os.ReadFile(filepath.Join(out, "sbom.json")); err != nil || string(b) != content {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	e.Fails(t, 1, []string{"exists"}, "artifact", "pull", "-o", out, pushed)
	if left, _ := os.ReadDir(out); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	e.Fails(t, 1, []string{"is a directory"}, "artifact", "push", reg.Ref("web:2"), dir)
	e.Fails(t, 1, []string{"artifact type"}, "artifact", "push", "--type", "x", reg.Ref("web:2"), sbom)
	e.Fails(t, 1, []string{"repository"}, "artifact", "push", "--subject", ref, reg.Ref("other"), sbom)
	e.Berth(t, "rmi", ref)
}

func TestPullAndPushAll(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	reg := registrytest.Start(t, registrytest.Options{})
	for _, tag := range []string{"1", "2"} {
		e.Berth(t, "tag", img, reg.Ref("app:"+tag))
	}
	want(t, "push -a", e.Berth(t, "push", "-q", "-a", reg.Ref("app")), reg.Ref("app:1")+"\n"+reg.Ref("app:2"))
	e.Fails(t, 1, []string{"no image"}, "push", "-a", reg.Ref("none"))
	e.Fails(t, 1, []string{"name none"}, "pull", "-a", reg.Ref("app:1"))
	e.Berth(t, "rmi", reg.Ref("app:1"), reg.Ref("app:2"))
	pulled := lines(e.Berth(t, "pull", "-q", "-a", reg.Ref("app")))
	if len(pulled) != 2 {
		t.Errorf("pull -a: %v", pulled)
	}
	for _, tag := range []string{"1", "2"} {
		want(t, "tag "+tag, e.Berth(t, "run", "--rm", reg.Ref("app:"+tag), "echo", tag), tag)
	}
	e.Berth(t, "manifest", "create", reg.Ref("multi:1"), reg.Ref("app:1"))
	e.Berth(t, "manifest", "push", "-p", reg.Ref("multi:1"))
	if all := lines(e.Berth(t, "pull", "-q", "--all-platforms", reg.Ref("multi:1"))); len(all) != 2 || all[1] != reg.Ref("multi:1") || !strings.Contains(all[0], "multi@sha256:") {
		t.Errorf("--all-platforms: %v", all)
	}
	e.Fails(t, 1, []string{"do not go together"}, "pull", "--all-platforms", "--platform", "linux/arm64", reg.Ref("multi:1"))
	e.Berth(t, "rmi", "-f", reg.Ref("app:1"), reg.Ref("app:2"), reg.Ref("multi:1"))
}

func TestLimitsChangeWhilePulling(t *testing.T) {
	e := harness.New(t)
	img := e.Busybox(t)
	reg := registrytest.Start(t, registrytest.Options{})
	ref := reg.Ref("app:1")
	e.Berth(t, "tag", img, ref)
	e.Berth(t, "push", "-q", ref)
	e.Berth(t, "rmi", "-f", ref, img)
	e.Fails(t, 1, []string{"less than"}, "registry", "limits", "--bandwidth", "1k")
	e.Fails(t, 1, []string{"is not a size"}, "registry", "limits", "--bandwidth", "fast")
	e.Fails(t, 1, []string{"at once"}, "registry", "limits", "--downloads", "-1")
	if out := e.Berth(t, "registry", "limits", "--bandwidth", "64k", "--downloads", "1"); !strings.Contains(out, "65.54kB/s") || !strings.Contains(out, "downloads  1") {
		t.Errorf("limits: %s", out)
	}
	pull := e.Command("pull", "-q", ref)
	if err := pull.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- pull.Wait() }()
	select {
	case err := <-done:
		t.Fatalf("a megabyte came at once at 64 KiB/s: %v", err)
	case <-time.After(3 * time.Second):
	}
	e.Berth(t, "registry", "limits", "--bandwidth", "none")
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the pull did not speed up")
	}
	want(t, "what was pulled", e.Berth(t, "run", "--rm", ref, "echo", "yes"), "yes")
}
