package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

func startDocker(o options) (*peer, error) {
	p, err := newPeer("docker")
	if err != nil {
		return p, err
	}
	dir := filepath.Join(o.work, "docker")
	socket := "unix://" + dir + "/docker.sock"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return p, err
	}
	log, err := os.Create(dir + "/log")
	if err != nil {
		return p, err
	}
	defer log.Close()
	daemon := exec.Command("dockerd", "--data-root", dir+"/root", "--exec-root", o.work+"/run/docker", "--pidfile", dir+"/pid",
		"--host", socket, "--cgroup-parent", "/"+p.charge.Containers)
	daemon.Stdout, daemon.Stderr = log, log
	if err := p.background(daemon); err != nil {
		return p, err
	}
	env := []string{"DOCKER_HOST=" + socket, "DOCKER_CONFIG=" + dir + "/config"}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, err = p.do(env, "docker", "version"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return p, fmt.Errorf("dockerd does not answer: %w", err)
		}
	}
	if err := p.all(env, []string{"docker", "import", o.image, imageName},
		[]string{"docker", "run", "-d", "--name", "sleeper", imageName, "sleep", "86400"}); err != nil {
		return p, err
	}
	p.atEnd(func() error { return p.all(env, []string{"docker", "rm", "-f", "sleeper"}) })
	p.version, _ = p.do(env, "docker", "--version")
	p.add("run", "docker run, bridge", env, "docker", "run", "--rm", imageName, "/bin/true")
	p.add("run", "docker run, --network none", env, "docker", "run", "--rm", "--network", "none", imageName, "/bin/true")
	p.add("exec", "docker exec", env, "docker", "exec", "sleeper", "/bin/true")
	p.addDetached("detach", "docker run -d -p", env, []string{"docker"}, "127.0.0.1:18082:80", nil)
	p.addLoad("docker run, bridge", 16, env, "docker", "run", "--rm", imageName, "/bin/true")
	p.add("client", "docker --version", env, "docker", "--version")
	p.add("client", "docker ps", env, "docker", "ps")
	return p, nil
}
