package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"berth/bench/machine"
	"berth/bench/orders"
	apiv1 "berth/proto/berth/api/v1"
)

const imageName = "bench:latest"

// berth is an engine of ours, and a client that is connected to it.
type berth struct {
	*peer
	cli, root, run string
	env            []string
	client         *worker
}

// newBerth starts an engine with a configuration, which may be empty, gives it the image, and has a container sleep.
func newBerth(o options, name, config string) (*berth, error) {
	p, err := newPeer(name)
	if err != nil {
		return &berth{peer: p}, err
	}
	dir := filepath.Join(o.work, name)
	b := &berth{peer: p, cli: filepath.Join(o.bin, "berth"), root: dir + "/root", run: filepath.Join(o.work, "run", name)}
	b.env = []string{"BERTH_ROOT=" + b.root, "BERTH_RUN=" + b.run, "BERTH_HOST=", "BERTH_CONFIG=" + dir + "/berth.toml"}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return b, err
	}
	if err := os.WriteFile(dir+"/berth.toml", []byte(config), 0o644); err != nil {
		return b, err
	}
	before := engineGroups()
	b.atEnd(func() error { return b.words("down") })
	for _, words := range [][]string{
		{"up", "--detach"},
		{"import", o.image, imageName},
		{"run", "-d", "--name", "sleeper", imageName, "sleep", "86400"},
	} {
		if err := b.words(words...); err != nil {
			return b, b.withLogs(err)
		}
	}
	b.atEnd(func() error { return b.words("rm", "-f", "sleeper") })
	for name := range engineGroups() {
		if !before[name] {
			b.charge.Containers = name
		}
	}
	b.version, _ = b.do(b.env, b.cli, "--version")
	b.client, err = b.work(o, "grpc", b.run+"/apid.sock")
	return b, err
}

// words has the CLI do something.
func (b *berth) words(words ...string) error {
	_, err := b.do(b.env, append([]string{b.cli}, words...)...)
	return err
}

func (b *berth) withLogs(err error) error {
	logs, _ := exec.Command("sh", "-c", "tail -n 3 "+b.root+"/log/*.log").CombinedOutput()
	return fmt.Errorf("%w\n%s", err, logs)
}

// addCLI adds a contender that is a command of the CLI.
func (b *berth) addCLI(group, name string, words ...string) {
	b.add(group, name, b.env, append([]string{b.cli}, words...)...)
}

// startBerth starts the engine that all groups but the cold one measure.
func startBerth(o options) (*berth, error) {
	b, err := newBerth(o, "berth", "")
	if err != nil {
		return b, err
	}
	run := func(words ...string) []string { return append([]string{"run", "--rm"}, words...) }
	b.addCLI("run", "berth run, bridge", run(imageName, "/bin/true")...)
	b.addCLI("run", "berth run, bridge, limits", run("--memory", "256m", "--cpus", "1", "--pids-limit", "100", imageName, "/bin/true")...)
	b.addCLI("run", "berth run, --network none", run("--network", "none", imageName, "/bin/true")...)
	b.addCLI("run", "berth run, --network host", run("--network", "host", imageName, "/bin/true")...)
	b.addCLI("run", "berth run, --userns private", run("--userns", "private", imageName, "/bin/true")...)
	for _, v := range []struct {
		name string
		spec *apiv1.ContainerSpec
	}{
		{"berth gRPC, bridge", spec()},
		{"berth gRPC, bridge, limits", limited(spec())},
		{"berth gRPC, network none", networked(spec(), "none")},
		{"berth gRPC, network host", networked(spec(), "host")},
		{"berth gRPC, user namespace", private(spec())},
	} {
		b.addOrder("run", v.name, b.client, orders.Order{Op: "run", Spec: specOf(v.spec)}, nil)
	}
	b.addCLI("exec", "berth exec", "exec", "sleeper", "/bin/true")
	b.addOrder("exec", "berth gRPC", b.client, orders.Order{Op: "exec", Container: "sleeper"}, nil)
	b.addDetached("detach", "berth run -d -p", b.env, []string{b.cli}, "127.0.0.1:18080:80", nil)
	b.addOrder("detach", "berth gRPC", b.client, orders.Order{Op: "detach", Spec: specOf(published(18081))}, b.removeAll)
	b.addLoad("berth gRPC, bridge", 200)
	b.addCLI("client", "berth --version", "--version")
	b.addCLI("client", "berth version", "version")
	b.addCLI("client", "berth ps", "ps")
	return b, nil
}

// spec is of a container that runs true and goes.
func spec() *apiv1.ContainerSpec {
	return &apiv1.ContainerSpec{Image: imageName, Args: []string{"/bin/true"}, AutoRemove: true}
}

func limited(s *apiv1.ContainerSpec) *apiv1.ContainerSpec {
	s.Resources = &apiv1.Resources{MemoryBytes: 256 << 20, NanoCpus: 1e9, PidsLimit: 100}
	return s
}

func networked(s *apiv1.ContainerSpec, mode string) *apiv1.ContainerSpec {
	s.Network = &apiv1.NetworkSpec{Mode: mode}
	return s
}

// published is a container that stays, with a port.
func published(port uint32) *apiv1.ContainerSpec {
	return &apiv1.ContainerSpec{Image: imageName, Args: []string{"sleep", "86400"}, Network: &apiv1.NetworkSpec{
		Ports: []*apiv1.PortMapping{{HostIp: "127.0.0.1", HostPort: port, ContainerPort: 80}},
	}}
}

func private(s *apiv1.ContainerSpec) *apiv1.ContainerSpec {
	s.UsernsMode = "private"
	return s
}

// engineGroups are the control groups of Berth instances: the one that appears is ours.
func engineGroups() map[string]bool {
	h, _ := machine.Hierarchy()
	found := map[string]bool{}
	dirs, _ := filepath.Glob(h + "/berth*")
	for _, d := range dirs {
		if name := filepath.Base(d); !strings.HasPrefix(name, "berth-bench") {
			found[name] = true
		}
	}
	return found
}
