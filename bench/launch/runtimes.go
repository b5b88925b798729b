package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"berth/bench/machine"
)

func newCrun(o options) (*peer, error) {
	return bareRuntime(o, "crun", "crun", "--cgroup-manager", "cgroupfs", "--root", o.work+"/run/crun")
}

func newRunc(o options) (*peer, error) {
	return bareRuntime(o, "runc", "runc", "--root", o.work+"/run/runc")
}

// bareRuntime runs what the runtime's own specification asks for: the least an engine on top of it has to wait for.
func bareRuntime(o options, name string, runtime ...string) (*peer, error) {
	p, err := newPeer(name)
	if err != nil {
		return p, err
	}
	words := func(more ...string) []string { return append(runtime[:len(runtime):len(runtime)], more...) }
	for bundle, args := range map[string][]string{"true": {"/bin/true"}, "sleep": {"/bin/sleep", "86400"}} {
		dir := filepath.Join(o.work, name, bundle)
		if err := makeBundle(dir, o.work+"/fs", "/"+p.charge.Containers+"/"+bundle, args); err != nil {
			return p, err
		}
	}
	if err := p.all(nil, words("run", "-d", "-b", filepath.Join(o.work, name, "sleep"), "sleeper")); err != nil {
		return p, err
	}
	p.atEnd(func() error { return p.all(nil, words("delete", "-f", "sleeper")) })
	p.version, _ = p.do(nil, runtime[0], "--version")
	p.add("run", name+", bare bundle", nil, words("run", "-b", filepath.Join(o.work, name, "true"), unique)...)
	if name == "crun" {
		// Each client has a bundle of its own, as the control group's path is in there.
		for i := range clients {
			bundle := fmt.Sprintf("client-%d", i)
			if err := makeBundle(filepath.Join(o.work, name, bundle), o.work+"/fs", "/"+p.charge.Containers+"/"+bundle, []string{"/bin/true"}); err != nil {
				return p, err
			}
		}
		p.addLoad(crunBare, 200, nil, words("run", "-b", filepath.Join(o.work, name, "client-"+client), unique)...)
	}
	p.add("exec", name+" exec", nil, words("exec", "sleeper", "/bin/true")...)
	if name == "crun" {
		// The kernel's part of an exec, by the smallest program there is for it: no limits, no user, no capabilities, no filter.
		text, err := p.do(nil, words("state", "sleeper")...)
		if err != nil {
			return p, err
		}
		var state struct{ Pid int }
		if err := json.Unmarshal([]byte(text), &state); err != nil {
			return p, fmt.Errorf("crun state: %w", err)
		}
		p.add("exec", nsenter, nil, "nsenter", "--target", strconv.Itoa(state.Pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "/bin/true")
	}
	return p, nil
}

// makeBundle makes an OCI bundle with runc's default specification, which crun takes too.
func makeBundle(dir, fs, cgroup string, args []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range [][]string{{"cp", "-a", fs, dir + "/rootfs"}, {"runc", "spec", "-b", dir}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, out)
		}
	}
	path := filepath.Join(dir, "config.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec struct {
		Process map[string]any `json:"process"`
		Root    map[string]any `json:"root"`
		Linux   map[string]any `json:"linux"`
	}
	var rest map[string]any
	if err := errors.Join(json.Unmarshal(b, &spec), json.Unmarshal(b, &rest)); err != nil {
		return err
	}
	spec.Process["terminal"], spec.Process["args"] = false, args
	delete(spec.Process, "rlimits") // a limit may not be raised without CAP_SYS_RESOURCE
	spec.Root["readonly"] = false
	spec.Linux["cgroupsPath"] = cgroup
	rest["process"], rest["root"], rest["linux"] = spec.Process, spec.Root, spec.Linux
	if b, err = json.Marshal(rest); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// newFloors shows what the kernel alone takes.
func newFloors(o options) (*peer, error) {
	p, err := newPeer("kernel")
	if err != nil {
		return p, err
	}
	p.version = "Linux " + machine.KernelRelease()
	p.add("run", kernelRun, nil, kernelFloor...)
	p.add("run", "kernel: fork, exec", nil, "/bin/busybox", "true")
	p.addLoad(kernelRun, 400, nil, kernelFloor...)
	p.add("client", emptyGo, nil, filepath.Join(o.bin, "bench-empty"))
	return p, nil
}

// kernelFloor makes all namespaces and runs true.
var kernelFloor = []string{"unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--mount-proc", "/bin/busybox", "true"}
