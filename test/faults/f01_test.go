//go:build e2e

package faults

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"berth/test/harness"
)

// reach names, for each fault point, operations that come by it; each is tried in turn. A point of the journal is
// reached differently in each daemon. Images that go on their own, which they do after minutes only, are in services/imaged
// (TestF01KilledWhileCollecting).
var reach = map[string][]string{
	"apid.job-begun":      {"run -d", "pull"},
	"apid.job-ended":      {"pull", "stop"},
	"apid.allocated":      {"run -d", "run --rm"},
	"apid.launched":       {"run -d", "run --rm"},
	"apid.synced":         {"run -d"},
	"apid.exit-seen":      {"run --rm", "stop"},
	"apid.record-removed": {"rm", "rm -f"},

	"imaged.blob-staged":     {"pull", "import", "load", "commit"},
	"imaged.blob-verified":   {"pull", "import", "load", "commit"},
	"imaged.blob-renamed":    {"pull", "import", "load", "commit"},
	"imaged.unpack-started":  {"pull", "import", "load", "commit"},
	"imaged.layer-unpacked":  {"pull", "import", "load", "commit"},
	"imaged.layer-synced":    {"pull", "import", "load", "commit"},
	"imaged.layer-committed": {"pull", "import", "load", "commit"},
	"imaged.image-named":     {"pull", "import", "load", "commit"},
	"imaged.rmi-marked":      {"rmi", "image prune"},
	"imaged.rmi-swept":       {"rmi", "image prune"},
	"imaged.upload-begun":    {"push", "image copy"},
	"imaged.upload-sent":     {"push", "image copy"},
	"imaged.rootfs-prepared": {"run -d", "run --rm"},
	"imaged.rootfs-released": {"rm", "run --rm"},

	"netd.netns-made":    {"run -d", "run --rm"},
	"netd.address-taken": {"run -d", "start"},
	"netd.port-bound":    {"run -d", "start"},
	"netd.rules-swapped": {"run --rm", "start"},
	"netd.rules-removed": {"stop", "rm -f"},
	"netd.address-freed": {"stop", "rm -f"},

	"execd.container-recorded": {"run -d", "run --rm"},
	"execd.launch-planned":     {"run -d", "start"},
	"execd.started":            {"run -d", "run --rm"},
	"execd.exit-seen":          {"stop", "run --rm"},
	"execd.removing":           {"rm", "rm -f"},
	"execd.record-removed":     {"rm", "run --rm"},

	"monitor.cgroup-made":     {"run --uts host", "run --uts host"},
	"monitor.process-started": {"run --rm", "start"},

	"apid/journal.appended":   {"run -d", "stop"},
	"imaged/journal.appended": {"pull", "rmi", "push", "load", "commit", "image prune"},
	"imaged/journal.synced":   {"pull", "import", "push", "load", "commit", "rmi", "image prune"},
	"netd/journal.appended":   {"run -d", "network create"},
	"netd/journal.synced":     {"network create", "network create"},
	"execd/journal.appended":  {"run -d", "rm"},
	"execd/journal.synced":    {"run -d", "run -d"},
}

// elsewhere says where points are tested that no operation on a running engine reaches, or why they are not.
var elsewhere = map[string]string{
	"imaged/imaged.manifest-hosted": "TestF01PushCut in services/imaged/serve: the engine of this test serves no images",
	"apid/journal.synced":           "TestF01FirstStart: apid waits for the disk only when it writes its own identity",
	"*/journal.rewritten":           "TestF01FirstStart: a new journal is written as a compacted one is; others need 1 MiB of garbage",
	"*/journal.renamed":             "as above",
}

func isElsewhere(program, point string) bool {
	return elsewhere[program+"/"+point] != "" || elsewhere["*/"+point] != ""
}

// recovery is how long a daemon may take from its start until the engine is whole again.
const recovery = 2 * time.Second

// TestF01KillAtEachFaultPoint kills each program at each place it declares, while a user's command is under way there.
func TestF01KillAtEachFaultPoint(t *testing.T) {
	type table struct{ program, driver string }
	var tables []table
	for _, program := range harness.Programs {
		tables = append(tables, table{program, "overlay"})
	}
	// Those that have to do with layers, with the other kind of them.
	tables = append(tables, table{"imaged", "erofs"}, table{"berth-monitor", "erofs"})
	for _, row := range tables {
		program := row.program
		t.Run(program+"/"+row.driver, func(t *testing.T) {
			t.Parallel()
			harness.Isolate(t)
			k := &killer{program: program, world: newWorld(t, harness.NewWith(t, harness.Options{Bin: harness.FaultBin(t), Driver: row.driver}))}
			for _, point := range harness.FaultPoints(t, program) {
				if isElsewhere(program, point) {
					continue
				}
				ops := reach[point]
				if ops == nil {
					ops = reach[program+"/"+point]
				}
				if ops == nil {
					t.Errorf("no operation is named that reaches %s of %s", point, program)
				}
				for _, op := range ops {
					k.round(point, op)
				}
			}
			t.Logf("%d kills: %d operations done, %d undone; slowest recovery %s (%s), slowest answer %s (%s)",
				k.kills, k.done, k.kills-k.done, k.slowest.Round(time.Millisecond), k.slowestAt,
				k.answer.Round(time.Millisecond), k.answerAt)
		})
	}
}

type killer struct {
	*world
	program             string
	kills, done         int
	slowest, answer     time.Duration
	slowestAt, answerAt string
	skip                string // how often a point is passed before it kills, as faultpoint has it
}

// round arms the point, does the operation, and looks at what came of it.
func (k *killer) round(point, name string) {
	t, e, op := k.t, k.e, operations[name]
	where := point + " during " + name
	failed := t.Failed()
	var r harness.Result
	var died bool
	const tries = 3
	for try := 0; try < tries && !died; try++ {
		if op.prepare != nil {
			op.prepare(k.world)
		}
		armed, pid := k.arm(point)
		r = e.Try(op.args(k.world)...)
		died = waitFor(time.Second, func() bool { return len(e.Starts(k.program)) > armed || e.Pid(k.lock()) != pid })
		if died {
			harness.Eventually(t, 10*time.Second, func() bool { return len(e.Starts(k.program)) > armed }, "%s: %s starts again", where, k.program)
			continue
		}
		k.restart()
		if try < tries-1 {
			op.check(k.world, r)
		}
	}
	if !died {
		t.Errorf("%s: the point was not reached: exit %d, %s%s", where, r.Code, r.Out, r.Err)
	}
	e.Ready(t)
	starts := e.Starts(k.program)
	took := time.Since(starts[len(starts)-1])
	if took > k.slowest {
		k.slowest, k.slowestAt = took, where
	}
	if r.Took > k.answer {
		k.answer, k.answerAt = r.Took, where
	}
	if took > recovery+r.Took { // the answer may have come after the start
		t.Errorf("%s: whole again %s after the start of %s", where, took, k.program)
	}
	if r.Took > patience {
		t.Errorf("%s: the answer took %s", where, r.Took)
	}
	if r.Code != 0 && !strings.Contains(r.Err, "error: ") {
		t.Errorf("%s: exit %d without an error line: %q", where, r.Code, r.Err)
	}
	done := op.check(k.world, r)
	if r.Code == 0 && !done {
		t.Errorf("%s: the user was told that it is done, but it is not", where)
	}
	k.undisturbed()
	k.kills++
	if done {
		k.done++
	}
	if t.Failed() && !failed {
		t.Fatalf("the above was %s (exit %d, %s); the rest of %s is not tried", where, r.Code, strings.TrimSpace(r.Err), k.program)
	}
}

// fromStandby says how often each point is passed before a run from standby comes by it: by the run before, which leaves
// what stands by, and by the making of that.
var fromStandby = map[string]map[string]string{
	"apid":          {"apid.allocated": "1*off->", "apid.launched": "1*off->"},
	"netd":          {"netd.port-bound": "2*off->", "netd.rules-swapped": ""},
	"execd":         {"execd.container-recorded": "1*off->", "execd.launch-planned": "1*off->", "execd.started": "1*off->"},
	"berth-monitor": {"monitor.process-started": "1*off->"},
}

// TestF01KilledInARunFromStandby kills each program where a detached run comes by whose container was built ahead.
func TestF01KilledInARunFromStandby(t *testing.T) {
	e := harness.NewWith(t, harness.Options{Bin: harness.FaultBin(t)})
	w := newWorld(t, e)
	used := func() bool {
		args := operations["run from standby"].args(w)
		r := e.Try(append([]string{args[0], "--trace=full"}, args[1:]...)...)
		operations["run from standby"].check(w, r)
		return strings.Contains(r.Err, "standby")
	}
	harness.Eventually(t, 20*time.Second, used, "a run is from standby")
	for program, points := range fromStandby {
		k := &killer{program: program, world: w}
		for point, skip := range points {
			k.skip = skip
			k.round(point, "run from standby")
		}
		t.Logf("%s: %d kills: %d operations done, %d undone; slowest recovery %s (%s), slowest answer %s (%s)", program,
			k.kills, k.done, k.kills-k.done, k.slowest.Round(time.Millisecond), k.slowestAt, k.answer.Round(time.Millisecond), k.answerAt)
	}
}

// lock is what the harness calls the program.
func (k *killer) lock() string { return strings.TrimPrefix(k.program, "berth-") }

// arm restarts the program with the point armed and says how often it was started by then, and its process.
func (k *killer) arm(point string) (starts, pid int) {
	k.e.Arm(k.t, k.program, point+"="+k.skip+"1*kill")
	return k.restart()
}

// restart kills the program and waits for it to be back.
func (k *killer) restart() (starts, pid int) {
	before := len(k.e.Starts(k.program))
	k.e.Kill(k.t, k.lock())
	harness.Eventually(k.t, 10*time.Second, func() bool { return len(k.e.Starts(k.program)) > before }, "%s starts again", k.program)
	harness.Eventually(k.t, 5*time.Second, func() bool { pid = k.e.Pid(k.lock()); return pid != 0 || len(k.e.Starts(k.program)) > before+1 }, "%s runs", k.program)
	k.e.Ready(k.t)
	return before + 1, pid
}

func waitFor(limit time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// TestF01FirstStart kills each daemon while it makes its journals, which it does at the first start of all; the engine
// must come up all the same. execd and netd have two.
func TestF01FirstStart(t *testing.T) {
	for spec, daemons := range map[string][]string{
		"journal.rewritten=1*kill":        harness.Daemons,
		"journal.renamed=1*kill":          harness.Daemons,
		"journal.rewritten=1*off->1*kill": {"netd", "execd"},
		"journal.renamed=1*off->1*kill":   {"netd", "execd"},
		"journal.synced=1*kill":           {"apid"},
	} {
		t.Run(spec, func(t *testing.T) {
			bin := harness.FaultBin(t)
			for _, d := range daemons {
				writeFile(t, fmt.Sprintf("%s/%s.arm", bin, d), spec+"\n")
			}
			e := harness.NewWith(t, harness.Options{Bin: bin})
			for _, d := range daemons {
				if n := len(e.Starts(d)); n != 2 {
					t.Errorf("%s was started %d times, want 2", d, n)
				}
			}
			if out := e.Berth(t, "run", "--rm", e.Busybox(t), "echo", "up"); out != "up" {
				t.Errorf("run printed %q", out)
			}
		})
	}
}
