package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// newBerth is this engine with a graph driver.
func newBerth(o options, name, driver string) *engine {
	run := filepath.Join(o.work, "berth-run")
	berth := filepath.Join(o.bin, "berth")
	config := filepath.Join(o.work, driver+".toml")
	return &engine{
		name: name, required: true,
		start: func(e *engine, disk string) (func() error, error) {
			e.env = []string{"BERTH_ROOT=" + disk + "/berth", "BERTH_RUN=" + run, "BERTH_HOST="}
			if err := os.WriteFile(config, []byte("[imaged]\ndriver = \""+driver+"\"\n"), 0o644); err != nil {
				return nil, err
			}
			if _, err := e.do(berth, "up", "--detach", "--config", config); err != nil {
				return nil, err
			}
			stop := func() error { _, err := e.do(berth, "down"); return err }
			var err error
			e.version, err = e.do(berth, "--version")
			return stop, err
		},
		pull: func(e *engine, _ string, i image) []string {
			return []string{berth, "pull", "-q", address + "/" + i.name}
		},
		watch: func() func(m *measurement) {
			pid, _ := os.ReadFile(filepath.Join(run, "lock", "imaged.lock"))
			dir := filepath.Join("/proc", strings.TrimSpace(string(pid)))
			peak := watchMemory(dir)
			return func(m *measurement) {
				m.peak = max(peak(), field(filepath.Join(dir, "status"), "VmHWM"))
				time.Sleep(settle)
				m.idle = field(filepath.Join(dir, "smaps_rollup"), "Pss")
			}
		},
		cli: berth,
	}
}

// watchMemory looks every few milliseconds at how much a process and its children have resident, until peak is called,
// which gives the most that they had at once. Pages that they share count for each.
func watchMemory(dir string) (peak func() int64) {
	stop, most := make(chan struct{}), make(chan int64)
	go func() {
		var highest int64
		for {
			sum := field(filepath.Join(dir, "status"), "VmRSS")
			tasks, _ := filepath.Glob(filepath.Join(dir, "task/*/children"))
			for _, t := range tasks {
				b, _ := os.ReadFile(t)
				for _, child := range strings.Fields(string(b)) {
					sum += field(filepath.Join("/proc", child, "status"), "VmRSS")
				}
			}
			highest = max(highest, sum)
			select {
			case <-stop:
				most <- highest
				return
			case <-time.After(watchPause):
			}
		}
	}()
	return func() int64 {
		close(stop)
		return <-most
	}
}

// watchPause is short beside the life of a worker that has a large layer, and costs less than a hundredth of a processor.
const watchPause = 20 * time.Millisecond

// field is a size in a file of /proc, in bytes; 0 if it is not there.
func field(path, name string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if value, ok := strings.CutPrefix(s.Text(), name+":"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
			return kib << 10
		}
	}
	return 0
}

func newDocker(o options) *engine {
	dir := filepath.Join(o.work, "docker")
	socket := "unix://" + dir + "/docker.sock"
	return &engine{
		name: "docker", cli: "docker",
		start: func(e *engine, disk string) (func() error, error) {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, err
			}
			e.env = []string{"DOCKER_HOST=" + socket, "DOCKER_CONFIG=" + dir + "/config"}
			return e.daemon(dir+"/log", []string{"dockerd", "--data-root", disk + "/docker", "--exec-root", dir + "/exec",
				"--pidfile", dir + "/pid", "--host", socket, "--bridge", "none", "--iptables=false"},
				[]string{"docker", "version", "--format", "docker {{.Server.Version}}"})
		},
		pull: func(e *engine, _ string, i image) []string {
			return []string{"docker", "pull", "-q", address + "/" + i.name}
		},
	}
}

// storage writes the configuration that podman and skopeo read, with everything on the disk.
func storage(e *engine, work, disk string) error {
	dir := filepath.Join(work, "storage")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"storage.conf":    fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n", disk+"/storage", disk+"/run"),
		"containers.conf": fmt.Sprintf("[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\ntmp_dir = %q\n", disk+"/tmp"),
		"policy.json":     `{"default": [{"type": "insecureAcceptAnything"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	// Blobs are staged in TMPDIR, which must not be a faster disk than the store's.
	if err := os.MkdirAll(disk+"/staging", 0o755); err != nil {
		return err
	}
	e.env = []string{"CONTAINERS_STORAGE_CONF=" + dir + "/storage.conf", "CONTAINERS_CONF=" + dir + "/containers.conf",
		"TMPDIR=" + disk + "/staging", "PODMAN_IGNORE_CGROUPSV1_WARNING=1"}
	return nil
}

func newPodman(o options) *engine {
	return &engine{
		name: "podman",
		start: func(e *engine, disk string) (stop func() error, err error) {
			if err := storage(e, o.work, disk); err != nil {
				return nil, err
			}
			e.version, err = e.do("podman", "--version")
			return nil, err
		},
		pull: func(_ *engine, _ string, i image) []string {
			return []string{"podman", "pull", "-q", "--tls-verify=false", "--signature-policy", o.work + "/storage/policy.json", address + "/" + i.name}
		},
	}
}

func newSkopeo(o options) *engine {
	return &engine{
		name: "skopeo",
		start: func(e *engine, disk string) (stop func() error, err error) {
			if err := storage(e, o.work, disk); err != nil {
				return nil, err
			}
			e.version, err = e.do("skopeo", "--version")
			return nil, err
		},
		pull: func(_ *engine, _ string, i image) []string {
			return []string{"skopeo", "--policy", o.work + "/storage/policy.json", "copy", "-q", "--src-tls-verify=false",
				"docker://" + address + "/" + i.name, "containers-storage:" + address + "/" + i.name}
		},
	}
}

func newContainerd(o options) *engine {
	dir := filepath.Join(o.work, "containerd")
	ctr := []string{"ctr", "--address", dir + "/sock"}
	return &engine{
		name: "containerd",
		start: func(e *engine, disk string) (func() error, error) {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, err
			}
			config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
				disk+"/containerd", dir+"/state", dir+"/sock")
			if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o644); err != nil {
				return nil, err
			}
			stop, err := e.daemon(dir+"/log", []string{"containerd", "--config", dir + "/config.toml"}, append(ctr, "images", "ls"))
			if err == nil {
				e.version, err = e.do("containerd", "--version")
			}
			return stop, err
		},
		pull: func(_ *engine, _ string, i image) []string {
			return append(ctr, "images", "pull", "--plain-http", "--snapshotter", "overlayfs", address+"/"+i.name+":latest")
		},
	}
}

// newFloor is what no engine can do without: decompressing all layers, from files, at once; with tar also writing what
// is in them.
func newFloor(name string, r *registry, untar bool) *engine {
	return &engine{
		name:  name,
		start: func(*engine, string) (func() error, error) { return nil, nil },
		pull: func(_ *engine, disk string, i image) []string {
			m, err := r.manifest(i.name)
			if err != nil {
				return []string{"false"}
			}
			var script strings.Builder
			for n, l := range m.Layers {
				tool := map[string]string{"gzip": "gzip", "zstd": "zstd -q"}[i.compression]
				if untar {
					fmt.Fprintf(&script, "mkdir %[1]s/%[2]d; %[3]s -dc < %[4]s | tar -C %[1]s/%[2]d --numeric-owner -xpf - &\n", disk, n, tool, r.blobFile(l))
				} else {
					fmt.Fprintf(&script, "%s -dc < %s >/dev/null &\n", tool, r.blobFile(l))
				}
			}
			script.WriteString("wait")
			if untar {
				script.WriteString("; sync -f " + disk)
			}
			return []string{"sh", "-c", script.String()}
		},
	}
}
