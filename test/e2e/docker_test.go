//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

// TestDockerByRegistry: what Berth commits and pushes docker pulls and runs, and the other way round; ids and files stay.
func TestDockerByRegistry(t *testing.T) {
	need(t, "dockerd")
	e := harness.New(t)
	reg := registrytest.Start(t, registrytest.Options{})
	ours, theirs := reg.Ref("ours:1"), reg.Ref("theirs:1")
	const sum = `find / -xdev -type f \( -path "/big*" -o -path "/www*" -o -path "/bin*" \) | sort | xargs md5sum | md5sum`

	// A layer of several megabytes: its gzip stream has many blocks.
	e.Berth(t, "run", "--name", "box", e.Busybox(t), "sh", "-c", "mkdir /big; for i in 1 2 3; do cat /bin/busybox /bin/busybox > /big/$i; done; echo ours > /www/ours; ln /big/1 /big/again; rm /www/index.html")
	id := e.Berth(t, "commit", "box", ours)
	e.Berth(t, "push", "-q", ours)
	files := e.Berth(t, "run", "--rm", ours, "sh", "-c", sum)

	d := startDocker(t, t.TempDir())
	d("pull", "-q", ours)
	want(t, "docker's id", strings.TrimSpace(d("image", "inspect", "-f", "{{.Id}}", ours)), id)
	want(t, "files in docker", strings.TrimSpace(d("run", "--network", "none", "--name", "box", ours, "sh", "-c", sum+"; echo theirs > /www/theirs")), files)

	id = strings.TrimSpace(d("commit", "box", theirs))
	d("push", "-q", theirs)
	e.Berth(t, "pull", "-q", theirs)
	want(t, "our id of docker's image", e.Berth(t, "image", "inspect", "-f", "{{.Id}}", theirs), id)
	want(t, "docker's file", e.Berth(t, "run", "--rm", theirs, "cat", "/www/theirs", "/www/ours"), "theirs\nours")
	if r := e.Try("run", "--rm", theirs, "cat", "/www/index.html"); r.Code == 0 {
		t.Error("a removed file is back")
	}
}
