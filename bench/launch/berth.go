package main

import (
	"fmt"
	"os/exec"
	"path/filepath"

	"berth/bench/machine"
)

func startBerth(o options, image string) (*peer, error) {
	p, err := newPeer("berth")
	p.required = true
	if err != nil {
		return p, err
	}
	berth := filepath.Join(o.bin, "berth")
	env := []string{"BERTH_ROOT=" + o.work + "/berth/root", "BERTH_RUN=" + o.work + "/berth/run", "BERTH_HOST="}
	before := engineGroups()
	p.atEnd(func() error { return p.all(env, []string{berth, "down"}) })
	if err := p.all(env, []string{berth, "up", "--detach"}, []string{berth, "import", image, imageName},
		[]string{berth, "run", "-d", "--name", "sleeper", imageName, "sleep", "86400"}); err != nil {
		logs, _ := exec.Command("sh", "-c", "tail -n 3 "+o.work+"/berth/root/log/*.log").CombinedOutput()
		return p, fmt.Errorf("%w\n%s", err, logs)
	}
	p.atEnd(func() error { return p.all(env, []string{berth, "rm", "-f", "sleeper"}) })
	for name := range engineGroups() {
		if !before[name] {
			p.charge.Containers = name
		}
	}
	p.version, _ = p.do(env, berth, "--version")
	p.add("run", "berth run, bridge", env, berth, "run", "--rm", imageName, "true")
	p.add("run", "berth run, --network none", env, berth, "run", "--rm", "--network", "none", imageName, "true")
	p.add("exec", "berth exec", env, berth, "exec", "sleeper", "true")
	p.add("client", "berth version", env, berth, "version")
	p.add("client", "berth ps", env, berth, "ps")
	return p, nil
}

// engineGroups are the control groups of Berth instances: the one that appears is ours.
func engineGroups() map[string]bool {
	h, _ := machine.Hierarchy()
	found := map[string]bool{}
	dirs, _ := filepath.Glob(h + "/berth*")
	for _, d := range dirs {
		if name := filepath.Base(d); name != machine.Top {
			found[name] = true
		}
	}
	return found
}
