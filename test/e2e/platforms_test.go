//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

// TestAllPlatforms: an image for several platforms goes, with all of them, from a registry into an archive, through a pipe into
// another engine, into another repository, and from there to the first engine again. The archive saved at the end is the one
// saved at the beginning, and the registry gives the digest it gave at first.
func TestAllPlatforms(t *testing.T) {
	e := harness.New(t)
	reg := registrytest.Start(t, registrytest.Options{})
	ref, again := reg.Ref("multi:1"), reg.Ref("again/multi:1")
	arches := []string{"amd64", "arm64", "s390x"}
	var parts []string
	for _, arch := range arches {
		part := reg.Ref("multi:" + arch)
		e.Berth(t, "import", "--platform", "linux/"+arch, "-c", "LABEL arch="+arch, richTar(t), part)
		e.Berth(t, "push", "-q", part)
		parts = append(parts, part)
	}
	e.Berth(t, append([]string{"manifest", "create", ref}, parts...)...)
	e.Berth(t, "manifest", "push", "--purge", ref)
	e.Berth(t, append([]string{"rmi"}, parts...)...)
	index := e.Berth(t, "manifest", "inspect", ref)

	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	e.Berth(t, "pull", "-q", ref)
	if r := e.Try("save", "--all-platforms", "-o", file("x"), ref); r.Code != 0 {
		t.Errorf("save of an image that came for one platform: %s", r.Err) // it is alone
	}
	e.Berth(t, "pull", "-q", "--all-platforms", ref)
	e.Berth(t, "save", "--all-platforms", "-o", file("first"), ref)
	for _, arch := range arches {
		e.Berth(t, "save", "--platform", "linux/"+arch, "-o", file(arch), ref)
	}
	if r := e.Try("save", "--platform", "linux/ppc64le", "-o", file("x"), ref); r.Code == 0 || !strings.Contains(r.Err, "not for linux/ppc64le") {
		t.Errorf("save of a platform that it is not for: exit %d, %s", r.Code, r.Err)
	}
	if r := e.Try("save", "--all-platforms", "--format", "docker", "-o", file("x"), ref); r.Code == 0 || !strings.Contains(r.Err, "one platform") {
		t.Errorf("all platforms in a docker archive: exit %d, %s", r.Code, r.Err)
	}

	other := harness.New(t)
	archive, err := os.ReadFile(file("first"))
	if err != nil {
		t.Fatal(err)
	}
	if r := other.TryStdin(string(archive), "load", "-q", "--all-platforms"); r.Code != 0 || !strings.Contains(r.Out, ref) {
		t.Fatalf("load: exit %d, %s%s", r.Code, r.Out, r.Err)
	}
	want(t, "what the name means", other.Berth(t, "image", "inspect", "-f", "{{.Architecture}}", ref), "amd64")
	want(t, "saved by the other engine", other.Berth(t, "save", "--all-platforms", ref)+"\n", string(archive)+"\n")
	other.Berth(t, "tag", ref, again)
	other.Berth(t, "push", "-q", "--all-platforms", again)
	want(t, "index in the other repository", other.Berth(t, "manifest", "inspect", again), index)

	e.Berth(t, "image", "prune", "-a", "-f")
	want(t, "images after the prune", e.Berth(t, "images", "-q"), "")
	left, _ := filepath.Glob(e.Root + "/imaged/blobs/*/*")
	if len(left) != 0 {
		t.Errorf("blobs after the prune: %v", left)
	}
	e.Berth(t, "pull", "-q", "--all-platforms", again)
	e.Berth(t, "tag", again, ref)
	e.Berth(t, "rmi", again)
	e.Berth(t, "save", "--all-platforms", "-o", file("last"), ref)
	sameFiles(t, file("first"), file("last"))

	// Each platform by itself, and what others make of the archive with all of them.
	for _, arch := range arches {
		e.Berth(t, "image", "prune", "-a", "-f")
		e.Berth(t, "load", "-q", "-i", file(arch))
		want(t, "architecture of what was saved for "+arch, e.Berth(t, "image", "inspect", "-f", "{{.Architecture}}", ref), arch)
	}
	skopeo := need(t, "skopeo")
	harness.Sh(t, skopeo, "copy", "-q", "--all", "--dest-tls-verify=false", "oci-archive:"+file("first"), "docker://"+reg.Ref("skopeo/multi:1"))
	want(t, "index that skopeo pushed", e.Berth(t, "manifest", "inspect", reg.Ref("skopeo/multi:1")), index)
	harness.Sh(t, skopeo, "copy", "-q", "--all", "--src-tls-verify=false", "docker://"+ref, "oci-archive:"+file("skopeo")+":"+ref)
	e.Berth(t, "load", "-q", "--all-platforms", "-i", file("skopeo"))
	e.Berth(t, "save", "--all-platforms", "-o", file("from-skopeo"), ref)
	sameFiles(t, file("first"), file("from-skopeo"))
}
