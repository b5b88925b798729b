//go:build e2e

package faults

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

// shortCuts is how many power cuts the short form makes; BERTH_POWER_CUTS asks for another number.
const shortCuts = 20

const clock = "15:04:05.000000"

// committed is the container that commits are of, and what its files are marked with.
const committed = "committed"

// TestF08PowerCut cuts the power at random moments of pulls, imports, commits, runs and removals. After each cut the engine
// starts without help; every listed image is whole, down to the bytes its containers see; and what a user was told is
// done is done.
func TestF08PowerCut(t *testing.T) { everyDriver(t, powerCuts) }

func powerCuts(t *testing.T, driver string) {
	cuts := shortCuts
	if text := os.Getenv("BERTH_POWER_CUTS"); text != "" {
		var err error
		if cuts, err = strconv.Atoi(text); err != nil {
			t.Fatalf("BERTH_POWER_CUTS: %v", err)
		}
	}
	disk := harness.NewDisk(t, 512)
	p := &power{t: t, disk: disk, e: harness.NewWith(t, harness.Options{Root: disk.Dir + "/root", Driver: driver}), sums: map[string]string{}}
	p.registry = registrytest.Start(t, registrytest.Options{})
	for i, size := range []int{1 << 20, 3 << 20} {
		p.tars = append(p.tars, otherTar(t, fmt.Sprintf("power%d", i), size))
		ref := p.registry.Ref(fmt.Sprintf("power:%d", i))
		p.e.Berth(t, "import", p.tars[i], ref)
		p.sums[fmt.Sprintf("power%d", i)] = p.sum(ref)
		p.e.Berth(t, "push", "-q", ref)
		p.e.Berth(t, "rmi", ref)
	}
	p.base = p.e.Busybox(t)
	p.images, p.containers = map[string]bool{p.base: true}, map[string]bool{}
	p.e.Berth(t, "run", "--name", committed, p.base, "sh", "-c", "echo "+committed+" > mark; for i in 1 2 3; do cat bin/busybox; done > noise; touch $(seq 500)")
	p.e.Berth(t, "commit", committed, "commit:0")
	p.sums[committed] = p.sum("commit:0")
	p.images["commit:0"] = true
	seed := rand.Uint64()
	t.Logf("%d cuts, seed %d", cuts, seed)
	p.random = rand.New(rand.NewPCG(seed, 0))
	for i := range cuts {
		p.cut(i)
		if t.Failed() {
			t.Fatalf("the above was cut %d:\n%s", i, strings.Join(p.history, "\n"))
		}
	}
	t.Logf("%d cuts survived; %d operations were confirmed before their cut; slowest start %s", cuts, p.confirmed, p.slowest.Round(time.Millisecond))
}

// power is the rig with what must be true: which images and containers exist for certain. What an operation that the
// cut met was about may be either, and is in neither map.
type power struct {
	t        *testing.T
	e        *harness.Engine
	disk     *harness.Disk
	registry *registrytest.Registry
	tars     []string
	base     string
	sums     map[string]string // mark of an image to the checksum of its files
	random   *rand.Rand

	mu                 sync.Mutex
	images, containers map[string]bool // true: there; false: removed
	confirmed          int
	cutAfter           int           // operations yet to be confirmed before cutNow is closed
	cutNow             chan struct{} // nil: the cut comes at its own time
	slowest            time.Duration
	// going is the power, as long as it is not yet gone. An answer that comes now no user would have seen, and it may
	// be wrong: fdatasync(2) that ext4's shutdown overtakes finds its transaction gone, and returns success.
	going   atomic.Bool
	serial  int
	history []string // of this cut
}

// cut works until the power is gone, brings it back and checks.
func (p *power) cut(round int) {
	t, e := p.t, p.e
	var working sync.WaitGroup
	stop := make(chan struct{})
	p.going.Store(false)
	p.history = nil
	seed, pause, confirmed := p.random.Uint64(), time.Duration(20+p.random.IntN(500))*time.Millisecond, p.confirmedNow()
	if confirmed != nil {
		pause = 5 * time.Second
	}
	working.Go(func() { p.work(stop, seed) })
	select {
	case <-time.After(pause):
	case <-confirmed: // the moment it matters most
	}
	p.going.Store(true)
	cutAt := time.Now().Format(clock)
	p.disk.Cut(t)
	e.PowerOff(t)
	close(stop)
	working.Wait()
	p.history = append(p.history, cutAt+" the power went")
	if err := os.RemoveAll(e.Run); err != nil { // a tmpfs
		t.Fatal(err)
	}
	p.disk.Unmount(t)
	p.disk.Mount(t)
	began := time.Now()
	if err := e.Up(); err != nil {
		t.Fatalf("cut %d: %v", round, err)
	}
	e.Ready(t)
	p.slowest = max(p.slowest, time.Since(began))
	p.verify()
}

// confirmedNow is, for every other cut, a channel that is closed when so many more operations are confirmed.
func (p *power) confirmedNow() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutAfter, p.cutNow = 0, nil
	if p.random.IntN(2) == 0 {
		return nil
	}
	p.cutAfter, p.cutNow = 1+p.random.IntN(6), make(chan struct{})
	return p.cutNow
}

// work does operations one after the other until one fails, as it does when the power goes.
func (p *power) work(stop chan struct{}, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	for {
		select {
		case <-stop:
			return
		default:
		}
		p.serial++
		i := random.IntN(len(p.tars))
		name := fmt.Sprintf("import%d:%d", i, random.IntN(3))
		ref := p.registry.Ref(fmt.Sprintf("power:%d", i))
		container := fmt.Sprintf("lasting%d", random.IntN(4)) // no beginning of an id: rm -f of "c0" would be of whose id begins so
		ok := true
		switch random.IntN(9) {
		case 0:
			ok = p.change(p.images, name, true, "import", p.tars[i], name)
		case 1:
			ok = p.change(p.images, ref, true, "pull", "-q", ref)
		case 2:
			ok = p.change(p.images, name, false, "rmi", "-f", name)
		case 3:
			ok = p.change(p.images, ref, false, "rmi", "-f", ref)
		case 4:
			ok = p.change(p.containers, container, true, "run", "-d", "--name", container, "-p", "80", p.base, "sleep", "1000")
		case 5:
			ok = p.change(p.containers, container, false, "rm", "-f", container)
		case 6:
			ok = p.change(p.containers, "", false, "run", "--rm", p.base, "true")
		case 7:
			image := fmt.Sprintf("commit:%d", random.IntN(3))
			ok = p.change(p.images, image, true, "commit", committed, image)
		case 8:
			image := fmt.Sprintf("commit:%d", random.IntN(3))
			ok = p.change(p.images, image, false, "rmi", "-f", image)
		}
		if !ok {
			return
		}
	}
}

// change does one operation. Before, what it is about is uncertain; after its success, certain.
func (p *power) change(of map[string]bool, name string, there bool, args ...string) bool {
	p.mu.Lock()
	was, known := of[name]
	if known && was == there {
		p.mu.Unlock()
		return true // nothing to do
	}
	delete(of, name)
	p.mu.Unlock()
	start := time.Now()
	r := p.e.Try(args...)
	p.history = append(p.history, fmt.Sprintf("%s %s: exit %d after %s %s", start.Format(clock), strings.Join(args, " "), r.Code, r.Took, strings.TrimSpace(r.Err)))
	if p.going.Load() {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case r.Code == 0:
		p.confirmed++
		if p.cutAfter--; p.cutAfter == 0 && p.cutNow != nil {
			close(p.cutNow)
		}
		if name != "" {
			of[name] = there
		}
	case !there && strings.Contains(r.Err, "error: no "): // it was not there
		of[name] = false
	case there && strings.Contains(r.Err, "in use"):
	default:
		return false
	}
	return true
}

func (p *power) verify() {
	t, e := p.t, p.e
	p.blobs()
	listed := map[string]bool{}
	for _, l := range strings.Fields(e.Berth(t, "images", "--format", "{{.Repository}}:{{.Tag}}")) {
		listed[l] = true
		if l == p.base {
			continue
		}
		got := p.sum(l)
		mark, _, _ := strings.Cut(got, " ")
		if p.sums[mark] != got || mark == "" {
			t.Errorf("the files of %s are not what they were: %q", l, got)
		}
	}
	for name, there := range p.images {
		if listed[name] != there {
			t.Errorf("image %s: listed %v, but the user was told %v", name, listed[name], there)
		}
	}
	states := map[string]string{}
	for _, l := range strings.Split(e.Berth(t, "ps", "-a", "--format", "{{.Names}} {{.State}}"), "\n") {
		if name, state, ok := strings.Cut(l, " "); ok {
			states[name] = state
		}
	}
	if states[committed] != "exited" {
		t.Errorf("container %s: its state is %q", committed, states[committed])
	}
	delete(states, committed)
	for name, there := range p.containers {
		if (states[name] != "") != there {
			t.Errorf("container %s: its state is %q, but the user was told %v", name, states[name], there)
		}
	}
	for name, state := range states {
		if state == "running" {
			t.Errorf("container %s is called running after a power cut", name)
		}
		if r := e.Try("start", name); r.Code != 0 {
			t.Errorf("start of %s (%s): %s", name, state, r.Err)
		}
		if r := e.Try("rm", "-f", name); r.Code != 0 {
			t.Errorf("rm -f of %s: %s", name, r.Err)
		}
		p.containers[name] = false
	}
	// What the interrupted operation was about is certain again.
	for l := range listed {
		p.images[l] = true
	}
}

// sum is an image's mark and the checksum of its files as a container sees them.
func (p *power) sum(image string) string {
	out := p.e.Berth(p.t, "run", "--rm", image, "sh", "-c", "cat mark; cat noise bin/busybox etc/passwd www/index.html | md5sum | head -c 32")
	return strings.Join(strings.Fields(out), " ")
}

// blobs hashes every blob of the store.
func (p *power) blobs() {
	files, _ := filepath.Glob(filepath.Join(p.e.Root, "imaged/blobs/sha256/*"))
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			p.t.Error(err)
			continue
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if got := hex.EncodeToString(h.Sum(nil)); err != nil || got != filepath.Base(name) {
			p.t.Errorf("blob %s has the digest %s, %v", filepath.Base(name), got, err)
		}
	}
}
