package cgroup

import (
	"bufio"
	"errors"
	"fmt"
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
)

func TestMembership(t *testing.T) {
	l, p, path := testParent(t)
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	g := testGroup(t, p, Resources{})
	out, err := output(t, l, g, payload("cgroup"))
	if err != nil {
		t.Fatal(err, out)
	}
	for line := range strings.Lines(out) {
		// A tree without a mount (cgroup_no_v1, or v2 beside full v1) cannot be joined.
		key := strings.SplitN(line, ":", 3)
		mounted := slices.ContainsFunc(l.Hierarchies, func(h Hierarchy) bool {
			return parseOwn(line)[h.key()] != ""
		})
		if mounted && strings.TrimSpace(key[2]) != "/"+path+"/"+g.Name() {
			t.Errorf("the child is in %s", line)
		}
	}
	// All threads must be back, not only the first one, whose groups /proc/self/cgroup shows.
	tasks, _ := filepath.Glob("/proc/self/task/*/cgroup")
	for _, task := range tasks {
		if after, err := os.ReadFile(task); err == nil && string(after) != string(before) {
			t.Errorf("%s is now\n%s", task, after)
		}
	}
}

// Daemons run with umask 077. Root of a user namespace, who is nobody here, must
// still get to its group to mount it.
func TestGroupsArePassableWhateverTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	l, p, path := testParent(t)
	g := testGroup(t, p, Resources{})
	seen := 0
	for _, h := range l.Hierarchies {
		for _, dir := range []string{path, path + "/" + g.Name()} {
			info, err := os.Stat(filepath.Join(h.Mountpoint, dir))
			if err != nil {
				continue // a tree that is left out
			}
			seen++
			if info.Mode().Perm() != 0o755 {
				t.Errorf("%s in %s has mode %o, want 755", dir, h.Mountpoint, info.Mode().Perm())
			}
		}
	}
	if seen < 2 {
		t.Error("the group was found in no tree")
	}
}

func TestAddProcess(t *testing.T) {
	_, p, path := testParent(t)
	g := testGroup(t, p, Resources{})
	cmd := payload("wait")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if err := g.AddProcess(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	if err != nil || !strings.Contains(string(own), path+"/"+g.Name()) {
		t.Errorf("the process is in %s, %v", own, err)
	}
	if pids, err := g.Procs(); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("Procs: %v, %v; want %d", pids, err, cmd.Process.Pid)
	}
	if err := g.Delete(); !errors.Is(err, ErrBusy) {
		t.Errorf("delete with a process inside: %v, want ErrBusy", err)
	}
	if err := g.AddProcess(0); err == nil {
		t.Error("pid 0 was taken")
	}
}

// A thread between Enter and LeaveTo makes its process show up in the group; it must not be killed for it.
func TestKillSparesVisitors(t *testing.T) {
	l, p, _ := testParent(t)
	if l.Mode == V2 {
		t.Skip("SKIPPED: v2 is not entered thread by thread")
	}
	g := testGroup(t, p, Resources{})
	back, err := Self(l)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	visitor := make(chan struct{})
	inside := make(chan error)
	go OnThread(func() error {
		inside <- g.Enter()
		<-visitor
		inside <- g.LeaveTo(back)
		return nil
	})
	if err := <-inside; err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Procs(); err != nil || len(pids) > 0 {
		t.Errorf("Procs: %v, %v; want none", pids, err)
	}
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	close(visitor)
	if err := <-inside; err != nil {
		t.Error(err)
	}
}

func TestOnThreadAvoidsTheFirst(t *testing.T) {
	for range 200 {
		if err := OnThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("f ran on the first thread")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExistsAndUndo(t *testing.T) {
	l, p, path := testParent(t)
	g := testGroup(t, p, Resources{})
	if _, err := p.Create(g.Name(), Resources{}); !errors.Is(err, ErrExists) {
		t.Errorf("second group of one name: %v, want ErrExists", err)
	}
	again, err := Open(l, path, g.Name())
	if err != nil {
		t.Fatalf("the first one is gone: %v", err)
	}
	again.Close()

	_, err = p.Create("refused", Resources{IO: IO{Throttles: []Throttle{{Major: 4095, Minor: 77, ReadBPS: 1}}}})
	if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNotAvailable) {
		t.Errorf("a block device that is not there: %v, want ErrInvalid", err)
	}
	if _, err := p.Open("refused"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a refused group was left behind: %v", err)
	}
}

func TestFreeze(t *testing.T) {
	l, p, _ := testParent(t)
	g := testGroup(t, p, Resources{})
	cmd := payload("tick")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, l, g, cmd)
	r := bufio.NewReader(stdout)
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := g.Freeze(); err != nil {
		t.Fatal(err)
	}
	if frozen, err := g.Frozen(); err != nil || !frozen {
		t.Errorf("Frozen: %v, %v", frozen, err)
	}
	time.Sleep(100 * time.Millisecond) // a frozen task still has to leave its processor, and be charged for it
	before, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	after, err := g.Stats()
	if err != nil || after.CPU.Usage != before.CPU.Usage {
		t.Errorf("it ran on: %v, then %v, %v", before.CPU.Usage, after.CPU.Usage, err)
	}
	if err := g.Thaw(); err != nil {
		t.Fatal(err)
	}
	if frozen, err := g.Frozen(); err != nil || frozen {
		t.Errorf("Frozen after Thaw: %v, %v", frozen, err)
	}
	deadline := time.Now().Add(slow * time.Second)
	for {
		if s, _ := g.Stats(); s.CPU.Usage > after.CPU.Usage {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not run after Thaw")
		}
		time.Sleep(time.Millisecond)
	}
	// A frozen group can be killed.
	if err := g.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
}

// F-33: a fork bomb at its pids limit is over within two seconds of Kill.
func TestF33KillForkBomb(t *testing.T) {
	l, p, _ := testParent(t)
	need(t, p, "pids")
	g := testGroup(t, p, Resources{Pids: 200})
	start(t, l, g, exec.Command("/bin/sh", "-c", `f() { while :; do f & done; }; f`))
	deadline := time.Now().Add(slow * time.Second)
	for {
		if s, err := g.Stats(); err != nil || s.Pids.Current >= 150 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the bomb does not go off")
		}
		time.Sleep(time.Millisecond)
	}
	begin := time.Now()
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	t.Logf("killed in %v", time.Since(begin))
	if pids, err := g.Procs(); err != nil || len(pids) > 0 {
		t.Errorf("Procs after Kill: %v, %v", pids, err)
	}
}

// Processes inside a group may have made groups below it: those are listed, killed and deleted too.
func TestNestedGroups(t *testing.T) {
	l, p, _ := testParent(t)
	g := testGroup(t, p, Resources{})
	cmd := payload("wait")
	start(t, l, g, cmd)
	for _, dir := range g.Paths() {
		if err := os.MkdirAll(dir+"/inner/most", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tree := p.census()
	inner := tree.path + "/" + g.Name() + "/inner"
	if err := os.WriteFile(inner+"/cgroup.procs", []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Procs(); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("Procs: %v, %v", pids, err)
	}
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	if err := g.Delete(); err != nil {
		t.Error(err)
	}
	for _, dir := range g.Paths() {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
	if err := g.Delete(); err != nil {
		t.Errorf("second delete: %v", err)
	}
	if _, err := g.Stats(); !errors.Is(err, ErrNotFound) {
		t.Errorf("stats of a deleted group: %v, want ErrNotFound", err)
	}
	if err := g.Set(Resources{CPU: CPU{Shares: 10}}); !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrNotAvailable) {
		t.Errorf("limit of a deleted group: %v, want ErrNotFound", err)
	}
}

// On v2, a group whose processes delegate further cannot take a process itself; exec has to land beside them.
func TestAddProcessToDelegating(t *testing.T) {
	l, p, _ := testParent(t)
	if l.Mode != V2 {
		t.Skip("SKIPPED: only v2 has the rule of no internal processes")
	}
	g := testGroup(t, p, Resources{})
	first := payload("wait")
	start(t, l, g, first)
	dir := g.Paths()[""]
	for _, step := range [][2]string{
		{"/init/cgroup.procs", strconv.Itoa(first.Process.Pid)},
		{"/cgroup.subtree_control", "+pids"},
	} {
		os.Mkdir(dir+"/init", 0o755)
		if err := os.WriteFile(dir+step[0], []byte(step[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
	second := payload("wait")
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	defer second.Wait()
	defer second.Process.Kill()
	if err := g.AddProcess(second.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if pids, _ := g.Procs(); !slices.Contains(pids, second.Process.Pid) {
		t.Errorf("Procs: %v, want %d among them", pids, second.Process.Pid)
	}
}

// A Parent serves many launches at once.
func TestConcurrentUse(t *testing.T) {
	l, p, _ := testParent(t)
	errs := make(chan error)
	const workers = 8
	for w := range workers {
		go func() {
			errs <- func() error {
				for i := range 5 {
					g, err := p.Create(fmt.Sprintf("c%d-%d", w, i), Resources{Pids: int64(10 + w)})
					if err != nil {
						return err
					}
					cmd := exec.Command("/bin/cat")
					stdin, _ := cmd.StdinPipe()
					if err := tryStart(l, g, cmd); err != nil {
						return err
					}
					pids, err := g.Procs()
					if err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
						return fmt.Errorf("Procs: %v, %v; want %d", pids, err, cmd.Process.Pid)
					}
					if s, err := g.Stats(); err != nil || s.Pids.Limit != uint64(10+w) {
						return fmt.Errorf("Stats: %+v, %v", s.Pids, err)
					}
					stdin.Close()
					cmd.Wait()
					if err := errors.Join(g.Delete(), g.Close()); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// A v2 parent whose own parent holds processes gets no controllers, and the error says why.
func TestParentBesideProcesses(t *testing.T) {
	l, p, path := testParent(t)
	if l.Mode != V2 {
		t.Skip("SKIPPED: only v2 has the rule of no internal processes")
	}
	g := testGroup(t, p, Resources{})
	start(t, l, g, payload("wait"))
	inner, err := OpenParent(l, "/"+path+"/"+g.Name()+"/containers")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Delete()
	_, err = inner.Create("limited", Resources{Pids: 5})
	if !errors.Is(err, ErrNotAvailable) || !strings.Contains(err.Error(), "holds processes") {
		t.Errorf("got %v", err)
	}
	unlimited, err := inner.Create("unlimited", Resources{})
	if err != nil {
		t.Fatalf("without a limit: %v", err)
	}
	defer unlimited.Delete()
	if out, err := output(t, l, unlimited, payload("cgroup")); err != nil || !strings.Contains(out, "/unlimited") {
		t.Errorf("a process in it: %q, %v", out, err)
	}
}

func TestParentRemoved(t *testing.T) {
	l, _, path := testParent(t)
	p, err := OpenParent(l, path+"/inner")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(); err != nil {
		t.Fatal(err)
	}
	p, err = OpenParent(l, path+"/inner")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range p.trees {
		if err := os.Remove(p.trees[i].path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Create("x", Resources{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("create below a removed parent: %v, want ErrNotFound", err)
	}
}

func TestSelfRefuses(t *testing.T) {
	l, _, _ := testParent(t)
	g, err := Self(l)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for name, f := range map[string]func() error{
		"Kill": g.Kill, "Delete": g.Delete, "Freeze": g.Freeze, "Thaw": g.Thaw,
		"Set": func() error { return g.Set(Resources{Pids: 1}) },
	} {
		if f() == nil {
			t.Errorf("%s of the process's own group", name)
		}
	}
	if _, err := g.Stats(); err != nil {
		t.Error(err)
	}
}

func BenchmarkCreateDelete(b *testing.B) {
	_, p, _ := testParent(b)
	r := Resources{Memory: Memory{Limit: 256 << 20}, CPU: CPU{Quota: CPUs(1), Shares: 512}, Pids: 100}
	var create, remove time.Duration
	for i := range b.N {
		begin := time.Now()
		g, err := p.Create("b"+strconv.Itoa(i), r)
		if err != nil {
			b.Fatal(err)
		}
		made := time.Now()
		if err := g.Delete(); err != nil {
			b.Fatal(err)
		}
		create += made.Sub(begin)
		remove += time.Since(made)
	}
	b.ReportMetric(float64(create.Microseconds())/float64(b.N), "create-µs")
	b.ReportMetric(float64(remove.Microseconds())/float64(b.N), "delete-µs")
}

func BenchmarkEnterLeave(b *testing.B) {
	l, p, _ := testParent(b)
	g := testGroup(b, p, Resources{})
	back, err := Self(l)
	if err != nil {
		b.Fatal(err)
	}
	defer back.Close()
	err = OnThread(func() error {
		for range b.N {
			if err := errors.Join(g.Enter(), g.LeaveTo(back)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkAddProcess is what Enter saves.
func BenchmarkAddProcess(b *testing.B) {
	_, p, _ := testParent(b)
	g := testGroup(b, p, Resources{})
	for range b.N {
		b.StopTimer()
		cmd := payload("wait")
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // as on a host that is not starting containers all the time
		b.StartTimer()
		if err := g.AddProcess(cmd.Process.Pid); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		cmd.Process.Kill()
		cmd.Wait()
		b.StartTimer()
	}
}

// TestKeep has threads enter by files that stay open, as long as the group is there.
func TestKeep(t *testing.T) {
	l, p, _ := testParent(t)
	if l.Mode == V2 {
		t.Skip("SKIPPED: v2 is not entered thread by thread")
	}
	g := testGroup(t, p, Resources{})
	back, err := Self(l)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	before := openFiles(t)
	if err := g.Keep(); err != nil {
		t.Fatal(err)
	}
	if kept := openFiles(t); kept <= before {
		t.Errorf("%d descriptors before Keep, %d after it", before, kept)
	}
	in := func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/cgroup", unix.Gettid()))
		return err == nil && strings.Count(string(text), "/"+g.Name()+"\n") == len(g.tasks)
	}
	for range 2 {
		if err := OnThread(func() error {
			err := g.Enter()
			if !in() {
				t.Error("the thread is not in the group's v1 trees")
			}
			return errors.Join(err, g.LeaveTo(back))
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Delete(); err != nil {
		t.Fatal(err)
	}
	if err := OnThread(func() error { return g.Enter() }); !errors.Is(err, unix.ENODEV) {
		t.Errorf("entering a deleted group: %v, want ENODEV", err)
	}
	g.Close()
	if left := openFiles(t); left != before {
		t.Errorf("%d descriptors before Keep, %d after Close", before, left)
	}
	if err := g.Keep(); !errors.Is(err, unix.ENOENT) {
		t.Errorf("keeping a deleted group: %v, want ENOENT", err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
