//go:build e2e

package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

// TestSaveLoadPushPull: an image that goes through an archive and a registry stays the same to the byte: the archive
// saved at the end is the one saved at the beginning.
func TestSaveLoadPushPull(t *testing.T) {
	e := harness.New(t)
	e.Berth(t, "import", "-c", "CMD [\"/bin/sh\"]", richTar(t), "rich:1")
	reg := registrytest.Start(t, registrytest.Options{})
	ref := reg.Host + "/rich:1"
	e.Berth(t, "tag", "rich:1", ref)
	dir := t.TempDir()
	for _, format := range []string{"docker", "oci"} {
		first, second := filepath.Join(dir, format+"1"), filepath.Join(dir, format+"2")
		e.Berth(t, "save", "--format", format, "-o", first, ref)
		e.Berth(t, "rmi", "-f", ref, "rich:1")
		want(t, "images after rmi", e.Berth(t, "images", "-q"), "")
		want(t, "load", e.Berth(t, "load", "-i", first), "Loaded image: "+ref)
		push := e.Berth(t, "push", ref)
		e.Berth(t, "rmi", ref)
		e.Berth(t, "pull", "-q", ref)
		if _, digest, _ := strings.Cut(push, "digest: "); !strings.Contains(e.Berth(t, "images", "--digests", "--no-trunc"), strings.Fields(digest)[0]) {
			t.Errorf("pull has another digest than push: %s", push)
		}
		e.Berth(t, "save", "--format", format, "-o", second, ref)
		sameFiles(t, first, second)
		e.Berth(t, "tag", ref, "rich:1")
	}
	// Through pipes, and compressed.
	archive, err := os.ReadFile(filepath.Join(dir, "docker1"))
	if err != nil {
		t.Fatal(err)
	}
	want(t, "save to a pipe", e.Berth(t, "save", ref)+"\n", string(archive)+"\n")
	e.Berth(t, "rmi", "-f", ref, "rich:1")
	for _, compressor := range []string{"gzip", "zstd"} {
		compressed := filepath.Join(dir, compressor)
		harness.Sh(t, "sh", "-c", compressor+" -c "+filepath.Join(dir, "docker1")+" > "+compressed)
		in, err := os.ReadFile(compressed)
		if err != nil {
			t.Fatal(err)
		}
		if r := e.TryStdin(string(in), "load", "-q"); r.Code != 0 || r.Out != ref+"\n" || r.Err != "" {
			t.Errorf("load of %s: %d %q %q", compressor, r.Code, r.Out, r.Err)
		}
		e.Berth(t, "rmi", ref)
	}
}

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	y, err2 := os.ReadFile(b)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Errorf("%s and %s differ (%d and %d bytes)", a, b, len(x), len(y))
	}
}

// TestArchivesOfOthers: what podman, skopeo and docker save, berth loads, and the other way round, with the same
// image id, and podman unpacks the same files.
func TestArchivesOfOthers(t *testing.T) {
	e := harness.New(t)
	dir := t.TempDir()
	e.Berth(t, "import", "-c", "CMD [\"/bin/sh\"]", richTar(t), "localhost/rich:1")
	e.Berth(t, "tag", "localhost/rich:1", "other.example/team/rich:2")
	id := e.Berth(t, "image", "inspect", "-f", "{{.Id}}", "localhost/rich:1")
	both := []string{"localhost/rich:1", "other.example/team/rich:2"}
	ours := map[string]string{}
	for _, format := range []string{"docker", "oci"} {
		ours[format] = filepath.Join(dir, "berth-"+format)
		e.Berth(t, append([]string{"save", "--format", format, "-o", ours[format]}, both...)...)
	}
	tree := treeOf(t, layerOf(t, e))
	e.Berth(t, append([]string{"rmi"}, both...)...)
	loads := func(t *testing.T, archive string, names ...string) {
		t.Helper()
		out := e.Berth(t, "load", "-i", archive)
		for _, n := range names {
			if !strings.Contains(out, "Loaded image: "+n+"\n") && !strings.HasSuffix(out, "Loaded image: "+n) {
				t.Errorf("load of %s prints %q", archive, out)
			}
			want(t, "id of "+n, e.Berth(t, "image", "inspect", "-f", "{{.Id}}", n), id)
		}
		want(t, "it runs", e.Berth(t, "run", "--rm", names[0], "cat", "/etc/motd"), "welcome")
		sameTree(t, tree, treeOf(t, layerOf(t, e)))
		e.Berth(t, append([]string{"rmi"}, names...)...)
	}

	t.Run("podman", func(t *testing.T) {
		p := func(args ...string) string {
			return harness.Sh(t, need(t, "podman"), append([]string{"--root", dir + "/podman", "--runroot", dir + "/podman-run", "--storage-driver", "vfs", "--log-level", "error"}, args...)...)
		}
		p("load", "-q", "-i", ours["docker"])
		if out := p("images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"); !strings.Contains(out, id+" localhost/rich:1") || !strings.Contains(out, id+" other.example/team/rich:2") {
			t.Errorf("podman has loaded %q", out)
		}
		sameTree(t, tree, treeOf(t, strings.TrimSpace(p("image", "mount", id))))
		p("image", "unmount", id)
		for format, names := range map[string][]string{"docker-archive": both, "oci-archive": both[:1]} {
			archive := filepath.Join(dir, "podman-"+format)
			p(append([]string{"save", "-q", "--format", format, "-o", archive, "--multi-image-archive=" + strconv.FormatBool(len(names) > 1)}, names...)...)
			loads(t, archive, names...)
		}
	})
	t.Run("skopeo", func(t *testing.T) {
		skopeo := need(t, "skopeo")
		archive := filepath.Join(dir, "skopeo-docker")
		harness.Sh(t, skopeo, "copy", "-q", "docker-archive:"+ours["docker"]+":localhost/rich:1", "docker-archive:"+archive+":localhost/rich:1")
		loads(t, archive, "localhost/rich:1")
		archive = filepath.Join(dir, "skopeo-oci")
		harness.Sh(t, skopeo, "copy", "-q", "oci-archive:"+ours["oci"]+":1", "oci-archive:"+archive+":localhost/rich:1")
		loads(t, archive, "localhost/rich:1")
	})
	t.Run("docker", func(t *testing.T) {
		d := startDocker(t, dir)
		if out := d("load", "-i", ours["docker"]); !strings.Contains(out, "Loaded image: localhost/rich:1") || !strings.Contains(out, "Loaded image: other.example/team/rich:2") {
			t.Errorf("docker load: %s", out)
		}
		want(t, "docker's id", strings.TrimSpace(d("images", "-q", "--no-trunc", "localhost/rich:1")), id)
		archive := filepath.Join(dir, "docker")
		d("save", "-o", archive, both[0], both[1])
		loads(t, archive, both...)
	})
}

func need(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("SKIPPED: needs %s: %v", program, err)
	}
	return path
}

// startDocker runs a Docker daemon of its own, without networks, and gives a function that runs its client.
func startDocker(t *testing.T, dir string) func(args ...string) string {
	t.Helper()
	daemon, client := need(t, "dockerd"), need(t, "docker")
	socket := "unix://" + dir + "/docker.sock"
	log, err := os.Create(filepath.Join(dir, "dockerd.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon, "--data-root", dir+"/docker-data", "--exec-root", dir+"/docker-exec", "-p", dir+"/docker.pid", "-H", socket,
		"--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
		log.Close()
	})
	harness.Eventually(t, 30*time.Second, func() bool { return exec.Command(client, "-H", socket, "version").Run() == nil }, "dockerd answers")
	return func(args ...string) string {
		t.Helper()
		return harness.Sh(t, client, append([]string{"-H", socket}, args...)...)
	}
}

// richTar is a root file system with all that archives must keep: owners, modes, times to the second, extended
// attributes, file capabilities, hard links, links, a device, a pipe, long names. (Not holes: docker and podman cannot save what was sparse in a layer.)
func richTar(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	harness.Sh(t, "tar", "-C", root, "-xf", harness.BusyboxTar(t))
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(root, name) }
	check(os.WriteFile(at("etc/motd"), []byte("welcome\n"), 0o640))
	check(os.Chown(at("etc/motd"), 1234, 4321))
	check(os.Link(at("etc/motd"), at("www/motd")))
	check(os.WriteFile(at("bin/tool"), []byte("#!/bin/sh\n"), 0o755))
	check(os.Chmod(at("bin/tool"), 0o6755|os.ModeSetuid|os.ModeSetgid))
	check(unix.Setxattr(at("bin/tool"), "user.note", []byte("kept"), 0))
	check(unix.Setxattr(at("bin/tool"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)) // cap_net_bind_service+ep
	check(unix.Mknod(at("etc/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(unix.Mkfifo(at("etc/pipe"), 0o600))
	check(os.MkdirAll(at(strings.Repeat("long/"+strings.Repeat("n", 90)+"/", 3)), 0o700))
	check(os.Chtimes(at("etc/motd"), time.Unix(1e9, 0), time.Unix(1e9, 0)))
	check(os.Chtimes(at("www"), time.Unix(2e8, 0), time.Unix(2e8, 0)))
	archive := filepath.Join(t.TempDir(), "rich.tar")
	harness.Sh(t, "tar", "-C", root, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-cf", archive, ".")
	return archive
}

// layerOf is the directory of the only layer that an engine with the overlay driver has.
func layerOf(t *testing.T, e *harness.Engine) string {
	t.Helper()
	all, err := filepath.Glob(e.Root + "/imaged/l/[1-9a-z]*")
	if err != nil || len(all) != 1 {
		t.Fatalf("layers: %v, %v", all, err)
	}
	return all[0]
}

// treeOf describes each file below root in one line: kind, mode, owner, size, time, device, link target, extended
// attributes, and the first name of files with several.
func treeOf(t *testing.T, root string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			line += fmt.Sprintf(" size %d time %d", st.Size, st.Mtim.Sec)
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" sum %x", sha256.Sum256(b))
			if st.Nlink > 1 {
				if first[st.Ino] == "" {
					first[st.Ino] = name
				}
				line += " is " + first[st.Ino]
			}
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " to " + to
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" dev %d", st.Rdev)
		case unix.S_IFDIR:
			line += fmt.Sprintf(" time %d", st.Mtim.Sec)
		}
		tree[name] = line + xattrs(path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func xattrs(path string) (text string) {
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return ""
	}
	keys := strings.Split(strings.TrimRight(string(list[:n]), "\x00"), "\x00")
	slices.Sort(keys)
	for _, key := range keys {
		if key == "" || strings.HasPrefix(key, "security.selinux") {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, key, value)
		text += fmt.Sprintf(" %s=%x %v", key, value[:max(n, 0)], err)
	}
	return text
}

func sameTree(t *testing.T, a, b map[string]string) {
	t.Helper()
	if len(a) < 50 {
		t.Errorf("only %d files to compare", len(a))
	}
	for name, x := range a {
		if y := b[name]; x != y {
			t.Errorf("%s: %q and %q", name, x, y)
		}
	}
	for name := range b {
		if a[name] == "" {
			t.Errorf("%s is too many", name)
		}
	}
}

// TestArchiveRefusals: bad archives and arguments give one line and leave nothing, not even a file.
func TestArchiveRefusals(t *testing.T) {
	e := harness.Shared(t)
	img := e.Busybox(t)
	before := e.Berth(t, "images", "-q")
	dir := t.TempDir()
	out := filepath.Join(dir, "out.tar")
	e.Fails(t, 1, []string{"absent"}, "save", "-o", out, "absent:1")
	e.Fails(t, 1, []string{"absent"}, "save", "-o", out, img, "absent:1")
	e.Fails(t, 1, []string{"docker nor oci"}, "save", "--format", "zip", "-o", out, img)
	e.Fails(t, 1, []string{"linux/s390x"}, "save", "--platform", "linux/s390x", "-o", out, img)
	e.Fails(t, 1, []string{"directory"}, "save", "-o", dir, img)
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("failed saves left %v", left)
	}
	e.Berth(t, "save", "-o", out, img)
	e.Fails(t, 1, []string{"no such file"}, "load", "-i", filepath.Join(dir, "absent"))
	e.Fails(t, 1, []string{"neither index.json nor manifest.json", "berth import"}, "load", "-i", harness.BusyboxTar(t))
	e.Fails(t, 1, []string{"os/arch"}, "load", "--platform", "x/y/z/w", "-i", out)
	e.Fails(t, 1, []string{"linux/s390x"}, "load", "--platform", "linux/s390x", "-i", out)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for name, damaged := range map[string][]byte{"cut": b[:len(b)/2], "empty": {}, "text": []byte(strings.Repeat("text ", 500))} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		e.Fails(t, 1, []string{"archive refused"}, "load", "-i", file)
	}
	want(t, "images after failures", e.Berth(t, "images", "-q"), before)
	for _, args := range []string{"save " + img, "load"} { // script(1) gives them a terminal
		c := e.Command(args)
		script := exec.Command("script", "-qec", c.Path+" "+args, "/dev/null")
		script.Env = c.Env
		said, err := script.CombinedOutput()
		if err == nil || !strings.Contains(string(said), "terminal") {
			t.Errorf("%s on a terminal: %v, %.200q", args, err, said)
		}
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan []byte)
	go func() {
		b, _ := os.ReadFile(pipe)
		read <- b
	}()
	e.Berth(t, "save", "-o", pipe, img)
	if got := <-read; !bytes.Equal(got, b) {
		t.Errorf("a named pipe got %d bytes, a file %d", len(got), len(b))
	}
}
