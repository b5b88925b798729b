package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// podmanLimit: podman lowers its own RLIMIT_NPROC to this when it starts, and containers get at most that.
const podmanLimit = 32768

func startPodman(o options) (*peer, error) {
	p, err := newPeer("podman")
	if err != nil {
		return p, err
	}
	dir := filepath.Join(o.work, "podman")
	// Without CAP_SYS_RESOURCE no limit can be raised: containers are given what podman itself has.
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return p, err
	}
	config := map[string]string{
		"containers.conf": fmt.Sprintf(`[containers]
default_ulimits = ["nofile=%d:%[1]d", "nproc=%d:%[2]d"]
log_driver = "k8s-file"
[network]
network_backend = "netavark"
default_subnet = "10.90.0.0/16"
network_config_dir = "%[3]s/networks"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
tmp_dir = "%[4]s/tmp"
`, files.Max, podmanLimit, dir, o.work+"/run/podman"),
		"storage.conf":    fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = \"%s/root\"\nrunroot = \"%s/run\"\n", dir, o.work+"/run/podman"),
		"registries.conf": "unqualified-search-registries = []\n",
	}
	env := []string{"PODMAN_IGNORE_CGROUPSV1_WARNING=1"}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return p, err
	}
	for name, text := range config {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return p, err
		}
		key := strings.ToUpper(strings.ReplaceAll(name, ".", "_"))
		if name != "containers.conf" {
			key = "CONTAINERS_" + key
		}
		env = append(env, key+"="+path)
	}
	run := func(words ...string) []string {
		return append([]string{"podman", "run", "--cgroup-parent", "/" + p.charge.Containers}, words...)
	}
	p.atEnd(func() error { return p.all(env, []string{"podman", "rm", "-af", "-t", "0"}) })
	if err := p.all(env, []string{"podman", "import", "-q", o.image, imageName}, run("-d", "--name", "sleeper", imageName, "sleep", "86400")); err != nil {
		return p, err
	}
	p.version, _ = p.do(env, "podman", "--version")
	p.add("run", "podman run, bridge", env, run("--rm", imageName, "/bin/true")...)
	p.add("run", "podman run, --network none", env, run("--rm", "--network", "none", imageName, "/bin/true")...)
	p.add("exec", "podman exec", env, "podman", "exec", "sleeper", "/bin/true")
	p.addDetached("detach", "podman run -d -p", env, []string{"podman"}, "127.0.0.1:18083:80", []string{"--cgroup-parent", "/" + p.charge.Containers, "--stop-timeout", "0"})
	p.addLoad("podman run, bridge", 16, env, run("--rm", imageName, "/bin/true")...)
	p.add("client", "podman --version", env, "podman", "--version")
	p.add("client", "podman ps", env, "podman", "ps")
	return p, nil
}
