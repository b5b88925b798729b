//go:build e2e

package e2e

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

func TestPushRemovePull(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	reg := registrytest.Start(t, registrytest.Options{})
	ref := reg.Host + "/team/app:v1"
	id := e.Berth(t, "image", "inspect", "-f", "{{.Id}}", img)
	e.Berth(t, "tag", img, ref)
	push := e.Berth(t, "push", ref)
	_, digest, ok := strings.Cut(push, "digest: ")
	digest, _, _ = strings.Cut(digest, " ")
	if !ok || !strings.HasPrefix(digest, "sha256:") {
		t.Fatalf("push printed %q", push)
	}
	e.Berth(t, "rmi", ref)
	e.Fails(t, 1, []string{"v1"}, "image", "inspect", ref)
	e.Berth(t, "rmi", "-f", img)
	if out := e.Berth(t, "images", "-q"); strings.Contains(out, id[7:19]) {
		t.Errorf("the image is still there: %s", out)
	}
	want(t, "pull", lines(e.Berth(t, "pull", ref))[0], ref)
	want(t, "id after the round trip", e.Berth(t, "image", "inspect", "-f", "{{.Id}}", ref), id)
	r := e.Try("pull", ref)
	if r.Code != 0 || !strings.Contains(r.Err, "up to date") {
		t.Errorf("second pull: %d %q", r.Code, r.Err)
	}
	byDigest := reg.Host + "/team/app@" + digest
	e.Berth(t, "rmi", ref)
	e.Berth(t, "pull", "-q", byDigest)
	want(t, "run by digest", e.Berth(t, "run", "--rm", byDigest, "cat", "/www/index.html"), "hello from berth")
	want(t, "run of an absent image pulls it", e.Berth(t, "run", "--rm", "-q", ref, "echo", "pulled"), "pulled")
	want(t, "id again", e.Berth(t, "image", "inspect", "-f", "{{.Id}}", ref), id)
	e.Berth(t, "tag", ref, img)
	e.Berth(t, "rmi", "-f", ref)
}

func TestPullFailures(t *testing.T) {
	e := harness.Shared(t)
	reg := registrytest.Start(t, registrytest.Options{})
	before := e.Berth(t, "images", "-q")
	e.Fails(t, 1, []string{"not found", "nothing"}, "pull", reg.Host+"/nothing/here:v1")
	e.Fails(t, 1, []string{"127.0.0.1:1", "refused"}, "pull", "127.0.0.1:1/x/y:z")
	e.Fails(t, 1, []string{"reference"}, "pull", "Not//A:Reference")
	e.Fails(t, 1, nil, "pull", reg.Host+"/a/b@sha256:short")
	e.Fails(t, 125, []string{"not found"}, "run", "--rm", reg.Host+"/nothing/here:v1", "true")
	tls := registrytest.Start(t, registrytest.Options{TLS: true})
	e.Fails(t, 1, []string{"certificate"}, "pull", tls.Host+"/x/y:z")
	auth := registrytest.Start(t, registrytest.Options{Auth: true})
	e.Fails(t, 1, []string{auth.Host}, "pull", auth.Host+"/x/y:z")
	want(t, "images after failures", e.Berth(t, "images", "-q"), before)
}

func TestLogin(t *testing.T) {
	e := harness.New(t)
	img := e.Busybox(t)
	reg := registrytest.Start(t, registrytest.Options{Auth: true})
	if r := e.TryStdin("wrong", "login", "-u", registrytest.User, "--password-stdin", reg.Host); r.Code != 1 || strings.Contains(r.Err, "wrong\n") {
		t.Errorf("login with a wrong password: %d %s", r.Code, r.Err)
	}
	ref := reg.Host + "/private:1"
	e.Berth(t, "tag", img, ref)
	e.Fails(t, 1, []string{"login"}, "push", ref)
	if r := e.TryStdin(registrytest.Password, "login", "-u", registrytest.User, "--password-stdin", reg.Host); r.Code != 0 || !strings.Contains(r.Out, "Login Succeeded") {
		t.Fatalf("login: %d %s%s", r.Code, r.Out, r.Err)
	}
	e.Berth(t, "push", ref)
	e.Berth(t, "rmi", "-f", ref)
	e.Berth(t, "pull", ref)
	e.Berth(t, "logout", reg.Host)
	e.Berth(t, "rmi", "-f", ref)
	e.Fails(t, 1, nil, "pull", ref)
	if logs := e.Logs(10000); strings.Contains(logs, registrytest.Password) || strings.Contains(logs, "wrong") {
		t.Error("a password is in the daemons' logs")
	}
}

func TestRmiKeepsWhatIsUsed(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	e.Berth(t, "tag", img, "other:name")
	want(t, "rmi of one of two names", e.Berth(t, "rmi", "other:name"), "Untagged: other:name")
	e.Berth(t, "run", "-d", "--name", "user", img, "sleep", "100")
	e.Fails(t, 1, []string{"container"}, "rmi", img)
	e.Berth(t, "rm", "-f", "user")
	want(t, "image is still there", e.Berth(t, "run", "--rm", img, "echo", "yes"), "yes")
}

func TestImportForms(t *testing.T) {
	e := harness.Shared(t)
	tarball := harness.BusyboxTar(t)
	dir := t.TempDir()
	gz := filepath.Join(dir, "fs.tar.gz")
	harness.Sh(t, "sh", "-c", "gzip -c "+tarball+" > "+gz)
	e.Berth(t, "import", "-c", "ENV A=b", "-c", `ENTRYPOINT ["/bin/echo"]`, "-c", "USER www", "-c", "WORKDIR /www", gz, "form:gz")
	want(t, "entrypoint", e.Berth(t, "run", "--rm", "form:gz", "hi"), "hi")
	want(t, "user and workdir", e.Berth(t, "run", "--rm", "--entrypoint", "", "form:gz", "sh", "-c", "id -u; pwd; echo $A"), "33\n/www\nb")
	e.Berth(t, "rmi", "form:gz")
	broken := filepath.Join(dir, "broken.tar.gz")
	b, _ := os.ReadFile(gz)
	if err := os.WriteFile(broken, b[:len(b)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	e.Fails(t, 1, nil, "import", broken, "form:broken")
	e.Fails(t, 1, []string{"no such file"}, "import", filepath.Join(dir, "absent"))
	e.Fails(t, 1, nil, "image", "inspect", "form:broken")
	e.Fails(t, 1, []string{"FROB"}, "import", "-c", "FROB x", gz, "form:frob")
}

// TestDebian runs a real distribution from its own package manager's output.
func TestDebian(t *testing.T) {
	e := harness.Shared(t)
	e.Berth(t, "import", "-c", `CMD ["bash"]`, harness.DebianTar(t), "debian:bookworm")
	want(t, "os-release", e.Berth(t, "run", "--rm", "debian:bookworm", "bash", "-c", ". /etc/os-release; echo $ID-$VERSION_CODENAME"), "debian-bookworm")
	want(t, "package count is a number", e.Berth(t, "run", "--rm", "debian:bookworm", "sh", "-c", "dpkg -l | grep -q ^ii && echo yes"), "yes")
	want(t, "su", e.Berth(t, "run", "--rm", "debian:bookworm", "su", "daemon", "-s", "/bin/sh", "-c", "id -un"), "daemon")
	reg := registrytest.Start(t, registrytest.Options{})
	ref := reg.Host + "/debian:bookworm"
	e.Berth(t, "tag", "debian:bookworm", ref)
	e.Berth(t, "push", ref)
	e.Berth(t, "rmi", "-f", ref, "debian:bookworm")
	e.Berth(t, "pull", ref)
	want(t, "after the round trip", e.Berth(t, "run", "--rm", ref, "bash", "-c", "perl -e 'print 6*7'"), "42")
	e.Berth(t, "rmi", ref)
}

// TestImagePruneRules: the rules of prune, and that a dry run says what then happens.
func TestImagePruneRules(t *testing.T) {
	e := harness.New(t)
	for n, ref := range []string{"app:1", "app:2", "app:3", "team/db:1", "other:1"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte(strings.Repeat("x", 1000*(n+1))), 0o644); err != nil {
			t.Fatal(err)
		}
		tarball := filepath.Join(dir, "fs.tar")
		harness.Sh(t, "tar", "-C", dir, "-cf", tarball, "file")
		e.Berth(t, "import", tarball, ref)
	}
	names := func() string {
		return strings.Join(lines(e.Berth(t, "images", "--format", "{{.Repository}}:{{.Tag}}")), " ")
	}
	before := names()
	rules := []string{"image", "prune", "-f", "--keep-last", "1", "--repository", "app"}
	dry := e.Berth(t, append(rules, "--dry-run")...)
	want(t, "images after a dry run", names(), before)
	want(t, "what happens", e.Berth(t, rules...), dry)
	if !strings.Contains(dry, "untagged: app:1") || !strings.Contains(dry, "untagged: app:2") || strings.Contains(dry, "app:3") || strings.Contains(dry, "reclaimed space: 0B") {
		t.Errorf("dry run says %s", dry)
	}
	want(t, "left", names(), "other:1 team/db:1 app:3")
	e.Berth(t, "image", "prune", "-af", "--protect", "team/*", "--protect", e.Berth(t, "images", "-q", "app:3"))
	want(t, "left with protected ones", names(), "team/db:1 app:3")
	e.Fails(t, 1, []string{"keep the last -1"}, "image", "prune", "-f", "--keep-last", "-1")
	e.Fails(t, 1, []string{"filter"}, "image", "prune", "-f", "--repository", "[")
	tree := e.Berth(t, "images", "--tree")
	if !strings.Contains(tree, "└─ app:3  ") || !strings.Contains(tree, "4kB, 0B shared") {
		t.Errorf("tree: %s", tree)
	}
}

// TestF11ImageCheck: one flipped byte, a missing file, a changed file of an unpacked layer are found, only the image
// that has them is concerned, and what is bad, and only that, is fetched again.
func TestF11ImageCheck(t *testing.T) {
	for _, driver := range []string{"overlay", "erofs"} {
		t.Run(driver, func(t *testing.T) { imageCheck(t, harness.NewWith(t, harness.Options{Driver: driver}), driver) })
	}
}

func imageCheck(t *testing.T, e *harness.Engine, driver string) {
	reg := registrytest.Start(t, registrytest.Options{})
	ref := reg.Ref("rich:1")
	e.Berth(t, "import", richTar(t), ref)
	e.Berth(t, "push", ref)
	other := e.Busybox(t)
	if out := e.Berth(t, "image", "check"); out != "2 images, 6 blobs "+out[strings.Index(out, "("):] || !strings.HasSuffix(out, "2 layers: 0 damaged, 0 repaired") {
		t.Errorf("check of what is whole: %s", out)
	}
	digests := map[string]string{
		"manifest": e.Berth(t, "image", "inspect", "-f", "{{.Descriptor.digest}}", ref),
		"config":   e.Berth(t, "image", "inspect", "-f", "{{.Id}}", ref),
	}
	blob := func(d string) string { return e.Root + "/imaged/blobs/sha256/" + strings.TrimPrefix(d, "sha256:") }
	raw, err := os.ReadFile(blob(digests["manifest"]))
	if err != nil {
		t.Fatal(err)
	}
	layer := string(raw)[strings.LastIndex(string(raw), "sha256:"):]
	digests["layer"] = layer[:71]
	flip := func(path string) { flipAt(t, path, -1) }
	damagedLayer := damagedTree
	if driver == "erofs" {
		damagedLayer = damagedFile
	}
	damages, asBefore := damagedLayer(t, e)
	maps.Copy(damages, map[string]func(){
		"a byte of the layer's blob":  func() { flip(blob(digests["layer"])) },
		"a byte of the manifest":      func() { flip(blob(digests["manifest"])) },
		"a byte of the configuration": func() { flip(blob(digests["config"])) },
		"the layer's blob is missing": func() { os.Remove(blob(digests["layer"])) },
	})
	for what, damage := range damages {
		damage()
		r := e.Try("image", "check")
		if r.Code != 1 || !strings.HasPrefix(r.Out, ref+": ") || !strings.Contains(r.Out, "1 damaged, 0 repaired") || strings.Contains(r.Out, other) {
			t.Errorf("%s: check exits with %d: %s%s", what, r.Code, r.Out, r.Err)
		}
		if r := e.Try("image", "check", other); r.Code != 0 {
			t.Errorf("%s: the other image: %s", what, r.Out)
		}
		r = e.Try("image", "check", "--repair", ref)
		if r.Code != 0 || !strings.Contains(r.Out, "; repaired") || !strings.Contains(r.Out, "1 damaged, 1 repaired") {
			t.Errorf("%s: repair exits with %d: %s%s", what, r.Code, r.Out, r.Err)
		}
		if r := e.Try("image", "check"); r.Code != 0 {
			t.Errorf("%s: after the repair: %s", what, r.Out)
		}
		asBefore()
		want(t, "it runs after "+what, e.Berth(t, "run", "--rm", ref, "cat", "/etc/motd"), "welcome")
	}
	// What came from no registry cannot be fetched, and is told.
	flip(blob(e.Berth(t, "image", "inspect", "-f", "{{.Id}}", other)))
	if r := e.Try("image", "check", "--repair", other); r.Code != 1 || !strings.Contains(r.Out, "came from no registry") {
		t.Errorf("repair without a source: %d %s", r.Code, r.Out)
	}
	e.Fails(t, 1, []string{"no such image"}, "image", "check", "absent")
}

// flipAt flips a bit of a file, of the byte in its middle if at is negative, and leaves its times as they are.
func flipAt(t *testing.T, path string, at int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if at < 0 {
		at = len(b) / 2
	}
	b[at] ^= 1
	st, _ := os.Stat(path)
	if err := os.WriteFile(path, b, 0); err != nil { // root may, whatever its mode
		t.Fatal(err)
	}
	if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// damagedTree are ways to damage the layer with etc/motd where it is a directory, and a check that it is as before.
func damagedTree(t *testing.T, e *harness.Engine) (damages map[string]func(), asBefore func()) {
	unpacked := func() string {
		all, _ := filepath.Glob(e.Root + "/imaged/l/*/etc/motd")
		if len(all) != 1 {
			t.Fatalf("layers with etc/motd: %v", all)
		}
		return filepath.Dir(filepath.Dir(all[0]))
	}
	tree := treeOf(t, unpacked())
	return map[string]func(){
		"a byte of an unpacked file":   func() { flipAt(t, unpacked()+"/etc/motd", -1) },
		"the mode of an unpacked file": func() { os.Chmod(unpacked()+"/etc/passwd", 0o666) },
		"an unpacked file is missing":  func() { os.Remove(unpacked() + "/etc/group") },
		"a file too many":              func() { os.WriteFile(unpacked()+"/etc/evil", nil, 0o644) },
	}, func() { sameTree(t, tree, treeOf(t, unpacked())) }
}

// damagedFile is damagedTree where the layer is an EROFS image. The same archive makes the same image, byte for byte.
func damagedFile(t *testing.T, e *harness.Engine) (damages map[string]func(), asBefore func()) {
	image := func() string {
		all, _ := filepath.Glob(e.Root + "/imaged/le/*/erofs")
		for _, path := range all {
			if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte("welcome")) {
				return path
			}
		}
		t.Fatalf("none of %v has etc/motd", all)
		return ""
	}
	path := image()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// A layer that was repaired has another name, so each damage begins with where it is now.
	at := func(what string) func() {
		return func() {
			i := bytes.Index(good, []byte(what))
			if i < 0 {
				t.Fatalf("the image has no %q", what)
			}
			flipAt(t, image(), i)
		}
	}
	super := func(offset int) func() { return func() { flipAt(t, image(), 1024+offset) } }
	return map[string]func(){
			"a byte of a file":            at("welcome"),
			"a name in a directory":       at("motd"),
			"an attribute":                at("kept"),
			"the kind of file system":     super(0),
			"its root":                    super(14),
			"where its inodes are":        super(40),
			"the image is cut short":      func() { os.Truncate(image(), int64(len(good)-1000)) },
			"the image has no end at all": func() { os.Truncate(image(), 100) },
		}, func() {
			if now, err := os.ReadFile(image()); err != nil || !bytes.Equal(now, good) {
				t.Errorf("the image has %d bytes, or others, of %d; %v", len(now), len(good), err)
			}
		}
}

// TestImageUndo: a tag that was moved goes back.
func TestImageUndo(t *testing.T) {
	e := harness.New(t)
	img := e.Busybox(t)
	first := e.Berth(t, "image", "inspect", "-f", "{{.Id}}", img)
	e.Berth(t, "import", "-c", "LABEL second=yes", harness.BusyboxTar(t), img)
	second := e.Berth(t, "image", "inspect", "-f", "{{.Id}}", img)
	want(t, "past", e.Berth(t, "image", "undo", "--list", "--format", "{{.ID}}", img), first[7:19])
	want(t, "undo", e.Berth(t, "image", "undo", img), img+" is "+first[7:19]+" again")
	want(t, "after undo", e.Berth(t, "image", "inspect", "-f", "{{.Id}}", img), first)
	e.Berth(t, "image", "undo", img)
	want(t, "after another", e.Berth(t, "image", "inspect", "-f", "{{.Id}}", img), second)
	e.Berth(t, "image", "prune", "-f")
	e.Fails(t, 1, []string{"no other image", "pull"}, "image", "undo", img)
	e.Fails(t, 1, nil, "image", "undo", "Bad//Name")
}
