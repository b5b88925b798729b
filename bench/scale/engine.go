package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	"berth/bench/machine"
	"berth/bench/orders"
	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
)

const (
	imageName = "bench:latest"
	// perNetwork is how many containers the bench puts in one network. Above it are ports that are ready for others, and
	// those of containers that ended a moment ago: a bridge has 1,023 in all.
	perNetwork = 800
	removal    = 100 // containers removed by one command
)

// engine is a Berth of the bench's own, with a client that is connected.
type engine struct {
	bin, root, run string
	env            []string
	charge         machine.Account
	client         *worker
	netd           *grpc.ClientConn
	ids            []string // of sleepers
	networks       int
}

// startEngine starts one in a directory of work, and gives it the image, a tar.
func startEngine(work, bin, image string) (*engine, error) {
	charge, err := machine.NewAccount("scale")
	e := &engine{bin: bin, root: work + "/engine/root", run: work + "/run/engine", charge: charge, networks: 1}
	if err != nil {
		return e, err
	}
	e.env = append(os.Environ(), "BERTH_ROOT="+e.root, "BERTH_RUN="+e.run, "BERTH_HOST=", "BERTH_CONFIG="+work+"/engine/berth.toml")
	if err := os.MkdirAll(work+"/engine", 0o755); err != nil {
		return e, err
	}
	if err := os.WriteFile(work+"/engine/berth.toml", nil, 0o644); err != nil {
		return e, err
	}
	before := engineGroups()
	for _, words := range [][]string{{"up", "--detach"}, {"import", image, imageName}, {"run", "--rm", imageName, "true"}} {
		if err := e.cli(words...); err != nil {
			return e, err
		}
	}
	for name := range engineGroups() {
		if !before[name] {
			e.charge.Containers = name
		}
	}
	if e.client, err = e.startWorker(); err != nil {
		return e, err
	}
	e.netd, err = grpc.NewClient("unix://"+e.run+"/engine/netd.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	return e, err
}

func (e *engine) close() (err error) {
	err = e.remove(len(e.ids))
	if e.netd != nil {
		_ = e.netd.Close()
	}
	if e.client != nil {
		err = errors.Join(err, e.client.close())
	}
	if e.env != nil {
		err = errors.Join(err, e.cli("down"))
	}
	return errors.Join(err, e.charge.Close())
}

// cli has the command line do something.
func (e *engine) cli(words ...string) error {
	cmd := exec.Command(e.bin+"/berth", words...)
	cmd.Env, cmd.SysProcAttr = e.env, &syscall.SysProcAttr{Setpgid: true}
	out, err := os.CreateTemp("", "")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if _, err := e.charge.Run(cmd); err != nil {
		said, _ := os.ReadFile(out.Name())
		return fmt.Errorf("berth %s: %w: %s", strings.Join(words[:min(len(words), 3)], " "), err, strings.TrimSpace(string(said)))
	}
	return nil
}

// worker is a process of bench/worker, which is the engine's client and takes the times.
type worker struct {
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
	end func() error
}

func (e *engine) startWorker() (*worker, error) {
	cmd := exec.Command(filepath.Join(e.bin, "bench-worker"), "grpc", e.run+"/apid.sock")
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &worker{cmd, json.NewEncoder(stdin), json.NewDecoder(stdout), stdin.Close}, e.charge.Start(cmd)
}

func (w *worker) close() error { return errors.Join(w.end(), w.cmd.Wait()) }

// ask gives an order. A run that failed is an error: a measurement without it would flatter.
func (w *worker) ask(ctx context.Context, o orders.Order, spec *apiv1.ContainerSpec) (r orders.Result, err error) {
	if err := ctx.Err(); err != nil {
		return r, err
	}
	if o.Spec, err = protojson.Marshal(spec); err != nil {
		return r, err
	}
	if err := w.in.Encode(o); err != nil {
		return r, err
	}
	if err := w.out.Decode(&r); err != nil {
		return r, fmt.Errorf("wait for what came of %s: %w", o.Op, err)
	}
	if r.Failed > 0 {
		err = fmt.Errorf("%d of %d containers did not %s: %s", r.Failed, o.Count, o.Op, r.Complaint)
	}
	return r, err
}

// truly runs true and goes; in network n, counting from 0.
func truly(network int) *apiv1.ContainerSpec {
	return &apiv1.ContainerSpec{Image: imageName, Args: []string{"/bin/true"}, AutoRemove: true, Network: &apiv1.NetworkSpec{Mode: networkName(network)}}
}

func networkName(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("scale%d", n)
}

// fill starts sleepers until there are n, and returns how long each took until its client knew that it ran.
func (e *engine) fill(ctx context.Context, n int) (took []time.Duration, err error) {
	for len(e.ids) < n {
		network := len(e.ids) / perNetwork
		if network >= e.networks {
			if err := e.cli("network", "create", networkName(network)); err != nil {
				return took, err
			}
			e.networks++
		}
		s := truly(network)
		s.Args, s.AutoRemove = []string{"sleep", "86400"}, false
		count := min(n, (network+1)*perNetwork) - len(e.ids)
		r, err := e.client.ask(ctx, orders.Order{Op: "detach", Count: count}, s)
		e.ids, took = append(e.ids, r.Made...), append(took, r.Walls...)
		if err != nil {
			return took, err
		}
	}
	return took, nil
}

// remove ends the last n sleepers.
func (e *engine) remove(n int) (err error) {
	for ; n > 0 && len(e.ids) > 0; n -= removal {
		k := max(len(e.ids)-min(n, removal), 0)
		err = errors.Join(err, e.cli(append([]string{"rm", "-f"}, e.ids[k:]...)...))
		e.ids = e.ids[:k]
	}
	return err
}

// Burst is what clients that run one container after the other saw.
type Burst struct {
	N       int                `json:"n"` // containers beside
	Clients int                `json:"clients"`
	Runs    int                `json:"runs"`
	Rate    float64            `json:"rate"` // a second
	P50     float64            `json:"p50_ms"`
	P99     float64            `json:"p99_ms"`
	CPU     float64            `json:"cpu_ms"` // for a run, of all processes
	By      map[string]float64 `json:"by_ms,omitempty"`
}

// settle is until what follows a run is over, and the pools are full.
const settle = 1200 * time.Millisecond

// burst measures runs of true by clients at once.
func (e *engine) burst(ctx context.Context, clients, runs int) (b Burst, err error) {
	time.Sleep(settle)
	quiet, began := e.programs()[kernelThreads], time.Now()
	time.Sleep(settle)
	programs, whole := e.programs(), e.charge.Used()
	others := (programs[kernelThreads] - quiet).Seconds() / time.Since(began).Seconds()
	began = time.Now()
	r, err := e.client.ask(ctx, orders.Order{Op: "run", Count: runs, Workers: clients}, truly(0))
	if err != nil {
		return b, err
	}
	time.Sleep(settle)
	b = Burst{N: len(e.ids), Clients: clients, Runs: runs, Rate: float64(runs) / r.Elapsed.Seconds(), By: map[string]float64{}}
	ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
	b.P50, b.P99 = ms(quantile(r.Walls, 0.5)), ms(quantile(r.Walls, 0.99))
	b.CPU = ms(e.charge.Used()-whole) / float64(runs)
	rest := b.CPU
	others *= time.Since(began).Seconds() * 1e3 / float64(runs)
	for name, used := range e.programs() {
		by := ms(used-programs[name]) / float64(runs)
		if name == kernelThreads {
			by = max(by-others, 0)
		}
		b.By[name] = by
		if name != kernelThreads {
			rest -= by
		}
	}
	b.By["containers, inits"] = rest
	b.CPU += b.By[kernelThreads]
	return b, nil
}

const kernelThreads = "kernel threads"

// programs is the processor time of the engine's processes that stay, of the client, and of all the kernel's own threads:
// what these did in a quiet moment before is taken for the work of others, and taken off.
func (e *engine) programs() map[string]time.Duration {
	used := map[string]time.Duration{}
	own := map[int]bool{}
	for _, pid := range e.charge.Processes() {
		own[pid] = true
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		b, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		text := string(b)
		f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		if len(f) < 13 {
			continue
		}
		user, _ := strconv.ParseInt(f[11], 10, 64)
		system, _ := strconv.ParseInt(f[12], 10, 64)
		name := ""
		if pid, _ := strconv.Atoi(filepath.Base(dir)); own[pid] {
			exe, _ := os.Readlink(dir + "/exe")
			name = filepath.Base(exe)
		} else if f[1] == "2" { // kthreadd's children
			name = kernelThreads
		}
		switch name {
		case "apid", "imaged", "netd", "execd", "berth-monitor", "bench-worker", kernelThreads:
			used[name] += time.Duration(user+system) * (time.Second / 100) // USER_HZ
		}
	}
	return used
}

// slotTime is how long netd takes for a slot when more are asked for than are ready, in µs by the clock.
func (e *engine) slotTime(ctx context.Context) (Point, error) {
	time.Sleep(settle)
	client := networkv1.NewEndpointServiceClient(e.netd)
	const ask, ready = 80, 16 // ready: netd's pool_size
	type got struct {
		at  time.Time
		err error
	}
	ends := make(chan got, ask)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range ask {
		wg.Go(func() {
			_, err := client.Attach(ctx, &networkv1.AttachRequest{ContainerId: fmt.Sprintf("scale%d", i), Network: &apiv1.NetworkSpec{}})
			ends <- got{time.Now(), err}
		})
	}
	wg.Wait()
	took := time.Since(began)
	var err error
	for range ask {
		err = errors.Join(err, (<-ends).err)
	}
	for i := range ask {
		wg.Go(func() {
			_, _ = client.Detach(ctx, &networkv1.DetachRequest{ContainerId: fmt.Sprintf("scale%d", i)})
		})
	}
	wg.Wait()
	return Point{float64(len(e.ids)), took.Seconds() * 1e6 / (ask - ready)}, err
}

// Memory is what the engine and its containers take, in MB of 2^20 bytes.
type Memory struct {
	N      int     `json:"n"`
	Engine float64 `json:"engine_mb"` // proportional set size of the engine's processes
	Kernel float64 `json:"kernel_mb"` // what the kernel has for itself on the whole machine, caches that it can give back left out
}

func (e *engine) memory() Memory {
	m := Memory{N: len(e.ids)}
	for _, pid := range e.charge.Processes() {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if name := filepath.Base(exe); err != nil || name == "bench-worker" || name == "busybox" {
			continue
		}
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		m.Engine += field(string(b), "Pss:") / 1024
	}
	b, _ := os.ReadFile("/proc/meminfo")
	for _, key := range []string{"SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"} {
		m.Kernel += field(string(b), key) / 1024
	}
	return m
}

// field is the number after a key at the beginning of a line.
func field(text, key string) float64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			if words := strings.Fields(rest); len(words) > 0 {
				n, _ := strconv.ParseFloat(words[0], 64)
				return n
			}
		}
	}
	return 0
}

// engineGroups are the control groups of Berth instances: the one that appears is ours.
func engineGroups() map[string]bool {
	h, _ := machine.Hierarchy()
	found := map[string]bool{}
	dirs, _ := filepath.Glob(h + "/berth*")
	for _, d := range dirs {
		if name := filepath.Base(d); !strings.HasPrefix(name, "berth-bench") && !strings.HasPrefix(name, "berth-scale") {
			found[name] = true
		}
	}
	return found
}
