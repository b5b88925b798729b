//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"berth/test/harness"
)

// TestCommit: an image made of a container has what the container saw, and runs as the container did.
func TestCommit(t *testing.T) {
	e := harness.New(t)
	img := e.Busybox(t)
	e.Berth(t, "run", "--name", "box", "-e", "A=b", "-l", "k=v", "-w", "/tmp", "--entrypoint", "/bin/sh", img, "-c",
		`echo more >> /etc/group; rm /etc/notexec; rm -r /www; mkdir /www; echo new > /www/page; chown 33:44 /www/page; chmod 4755 /www/page; ln /www/page /www/again; ln -s page /www/link; echo out`)
	id := e.Berth(t, "commit", "-a", "A U Thor <a@u>", "-m", "changed", "-c", `CMD ["-c", "pwd; echo $A; ls -l /www; ls /etc"]`, "-c", "EXPOSE 81", "box", "made:1")
	want(t, "id", e.Berth(t, "image", "inspect", "-f", "{{.Id}}", "made:1"), id)
	out := e.Berth(t, "run", "--rm", "made:1")
	for _, part := range []string{"/tmp\nb\n", "page", "again", "link -> page", "-rwsr-xr-x    2 www      extra"} {
		if !strings.Contains(out, part) {
			t.Errorf("the image prints %q, which lacks %q", out, part)
		}
	}
	if strings.Contains(out, "index.html") || strings.Contains(out, "notexec") {
		t.Errorf("removed files are in the image: %q", out)
	}
	want(t, "config", e.Berth(t, "image", "inspect", "-f", "{{.Author}} {{.Config.Labels.k}} {{json .Config.ExposedPorts}}", "made:1"), `A U Thor <a@u> v {"80/tcp":{},"81/tcp":{}}`)
	history := e.Berth(t, "history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Comment}}", "made:1")
	if first := lines(history)[0]; !strings.HasPrefix(first, "/bin/sh -c echo more") || !strings.HasSuffix(first, "|changed") || len(lines(history)) != 2 {
		t.Errorf("history: %s", history)
	}
	// A running container is paused meanwhile and runs on after it; one that changed nothing gives no layer.
	e.Berth(t, "run", "-d", "--name", "busy", img, "sh", "-c", "while :; do echo x >> /tmp/log; done")
	e.Berth(t, "commit", "busy", "made:2")
	want(t, "after the commit", e.Berth(t, "inspect", "-f", "{{.State.Status}}", "busy"), "running")
	e.Berth(t, "commit", "--pause=false", "busy", "made:3")
	e.Berth(t, "run", "-d", "--name", "still", "--read-only", img, "sleep", "100")
	e.Berth(t, "commit", "still", "made:4")
	layers := func(ref string) (all []string) {
		if err := json.Unmarshal([]byte(e.Berth(t, "image", "inspect", "-f", "{{json .RootFS.Layers}}", ref)), &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	want(t, "layers", fmt.Sprint(len(layers(img)), len(layers("made:1")), len(layers("made:2"))), "1 2 2")
	if !strings.Contains(e.Berth(t, "jobs", "--format", "{{.Kind}} {{.State}} {{.Target}}"), "commit succeeded busy") {
		t.Error("no job for the commit")
	}
	e.Fails(t, 1, []string{"no such container"}, "commit", "absent", "made:5")
	e.Fails(t, 1, []string{"FROB"}, "commit", "-c", "FROB x", "box", "made:5")
	e.Fails(t, 1, []string{"Made"}, "commit", "box", "Made:5")
	e.Fails(t, 1, nil, "image", "inspect", "made:5")
	e.Berth(t, "rm", "-f", "box", "busy", "still")
	e.Berth(t, "rmi", "made:1", "made:2", "made:3", "made:4", img)
	left, err := filepath.Glob(e.Root + "/imaged/blobs/*/*")
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestExport: what is exported is what the container has, and imports as the same files.
func TestExport(t *testing.T) {
	e := harness.New(t)
	e.Berth(t, "import", "-c", `CMD ["/bin/sh"]`, richTar(t), "rich:1")
	original := treeOf(t, layerOf(t, e))
	e.Berth(t, "create", "--name", "box", "rich:1")
	dir := t.TempDir()
	archive := filepath.Join(dir, "box.tar")
	e.Berth(t, "export", "-o", archive, "box")
	e.Berth(t, "rm", "box")
	e.Berth(t, "rmi", "rich:1")
	e.Berth(t, "import", archive, "again:1")
	sameTree(t, original, treeOf(t, layerOf(t, e)))
	e.Berth(t, "run", "--name", "box", "again:1", "/bin/sh", "-c", "rm /etc/motd; echo x > /etc/new; mkdir /tmp/d")
	e.Berth(t, "export", "-o", archive, "box")
	listed := harness.Sh(t, "tar", "-tf", archive)
	for name, there := range map[string]bool{"etc/motd": false, "etc/new": true, "tmp/d/": true, "www/motd": true} {
		if strings.Contains("\n"+listed, "\n"+name+"\n") != there {
			t.Errorf("%s in the archive: %v\n%s", name, !there, listed)
		}
	}
	e.Fails(t, 1, []string{"no such container"}, "export", "-o", filepath.Join(dir, "none"), "absent")
	if files, _ := filepath.Glob(dir + "/*none*"); len(files) != 0 {
		t.Errorf("a failed export left %v", files)
	}
}
