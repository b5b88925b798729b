package harness

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Snapshot is what could leak from an engine, as sets of lines.
type Snapshot map[string]map[string]bool

// take looks at mounts, links, addresses and rules of the calling thread's namespaces, and at the control groups of
// one instance.
func take(instance string) Snapshot {
	s := Snapshot{}
	s.add("mount", mounts())
	s.add("link", withoutOthers(instance, command("ip", "-br", "link")))
	s.add("address", withoutOthers(instance, command("ip", "-br", "addr")))
	s.add("rule", withoutOthers(instance, command("nft", "list", "ruleset")))
	s.add("cgroup", cgroups(instance))
	return s
}

// slotName is how netd calls interfaces: "bv", five digits of the instance, eight of its own.
var slotName = regexp.MustCompile(`\bbv([0-9a-f]{5})[0-9a-f]{8}\b`)

// withoutOthers leaves out the lines about interfaces of other engines that run meanwhile: they come and go as those like.
func withoutOthers(instance string, lines []string) []string {
	return slices.DeleteFunc(lines, func(l string) bool {
		found := slotName.FindStringSubmatch(l)
		return found != nil && !strings.HasPrefix(instance, found[1])
	})
}

func (s Snapshot) add(kind string, lines []string) {
	s[kind] = map[string]bool{}
	for _, l := range lines {
		if l = strings.TrimSpace(l); l != "" {
			s[kind][l] = true
		}
	}
}

func command(name string, args ...string) []string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return []string{name + ": " + err.Error()}
	}
	return strings.Split(string(out), "\n")
}

func mounts() (out []string) {
	b, _ := os.ReadFile("/proc/thread-self/mountinfo")
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 4 {
			out = append(out, f[4])
		}
	}
	return out
}

// cgroups lists the groups of an instance in all hierarchies: control groups have no namespace, and engines of other
// tests have theirs.
func cgroups(instance string) (out []string) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "/berth-"+instance) {
			out = append(out, path)
		}
		return nil
	})
	return out
}

type process struct {
	pid     int
	name    string
	cmdline string
}

func processes() (out []process) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		comm, err := os.ReadFile(d + "/comm")
		if err != nil {
			continue
		}
		cmd, _ := os.ReadFile(d + "/cmdline")
		out = append(out, process{pid, strings.TrimSpace(string(comm)), strings.ReplaceAll(string(cmd), "\x00", " ")})
	}
	return out
}

// settle is how long background removal may take after the last answer.
const settle = 10 * time.Second

// leaks says what is there now that was not before the engine, which is down. It waits for the bounded background work.
func (e *Engine) leaks() []string {
	for deadline := time.Now().Add(settle); ; time.Sleep(50 * time.Millisecond) {
		leaks := compare(e.before, take(e.instance))
		leaks = append(leaks, e.leftovers()...)
		if len(leaks) == 0 || time.Now().After(deadline) {
			return leaks
		}
	}
}

func compare(before, now Snapshot) (leaks []string) {
	for kind, lines := range now {
		var more []string
		for l := range lines {
			if !before[kind][l] {
				more = append(more, l)
			}
		}
		sort.Strings(more)
		for _, l := range more {
			leaks = append(leaks, kind+": "+l)
		}
	}
	return leaks
}

// leftovers are processes that belong to the engine, and files of containers.
func (e *Engine) leftovers() (leaks []string) {
	for _, p := range processes() {
		if strings.Contains(p.cmdline, e.dir) && p.pid != os.Getpid() {
			leaks = append(leaks, fmt.Sprintf("process: %d %s (%s)", p.pid, p.name, p.cmdline))
		}
	}
	for _, pattern := range []string{e.Root + "/imaged/rw/*", e.Root + "/execd/containers/*", e.Run + "/execd/c/*", e.Root + "/imaged/staging/*", e.Root + "/imaged/trash/*"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			leaks = append(leaks, "file: "+f)
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil && strings.HasPrefix(string(b), e.Root+"/") {
			leaks = append(leaks, "loop device: "+l+" of "+strings.TrimSpace(string(b)))
		}
	}
	return leaks
}
