package structure

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// exception allows one package, and those below it, what a rule forbids.
type exception struct {
	path   string
	reason string
}

// excepted looks path up; used notes which exceptions were needed.
func excepted(list []exception, path string, used map[string]bool) bool {
	for _, e := range list {
		if under(path, e.path) {
			used[e.path] = true
			return true
		}
	}
	return false
}

// checkUsed fails for exceptions that stand for nothing any more.
func checkUsed(t *testing.T, list []exception, used map[string]bool) {
	t.Helper()
	for _, e := range list {
		exists := slices.ContainsFunc(tree(t), func(p *pkg) bool { return under(p.path(), e.path) })
		if exists && !used[e.path] {
			t.Errorf("%s no longer needs its exception (%s): delete it", e.path, e.reason)
		}
	}
}

// mayImport says what of ours a package may import. nil: this package has no
// rule, which is an error.
func mayImport(path string) []string {
	switch {
	case under(path, "cli"):
		// A client like any other: what it knows of the engine is the contract,
		// in the form of cli/apiv1. The kernel's features it looks at for
		// `berth check`, and `berth up` rests for days.
		return []string{"cli", "internal/version", "internal/rest", "libcontainer/feature"}
	case path == "services/berthd":
		// The program that is three daemons, and never imaged.
		return []string{"services/berthd", "services/apid", "services/netd", "services/execd", "internal/daemon"}
	case under(path, "services"):
		own := strings.Join(strings.SplitN(path, "/", 3)[:2], "/")
		return []string{own, "proto", "libcontainer", "internal"}
	case under(path, "libcontainer"):
		return []string{"libcontainer"}
	case under(path, "internal"):
		// libcontainer, because a daemon drops its capabilities with it.
		return []string{"internal", "libcontainer", "proto"}
	case under(path, "proto"):
		return []string{"proto"}
	case under(path, "docs"):
		// Examples stand where a stranger's program stands.
		return []string{"docs", "proto", "libcontainer"}
	case under(path, "test"):
		// Tests of the whole see it from outside too: the contract, the
		// programs, and what a fault point or a configuration key is called.
		return []string{"test", "proto", "internal", "libcontainer"}
	case under(path, "tools"):
		// Run while building, never installed.
		return []string{"tools", "cli"}
	case under(path, "bench"):
		return []string{"bench", "test", "proto", "internal", "libcontainer"}
	}
	return nil
}

// testsMayImport adds to mayImport, for _test.go files.
var testsMayImport = []exception{
	{"test/registry", "a real registry, which the tests of several packages start"},
	{"test/harness", "a whole engine"},
	{"proto/berth/api/v1", "what the command line's own messages and calls are held against"},
}

// TestArrows: services meet in proto/ and never import one another;
// libcontainer stands alone; internal serves the daemons and knows none.
func TestArrows(t *testing.T) {
	for _, p := range tree(t) {
		allowed := mayImport(p.path())
		if allowed == nil {
			t.Errorf("%s: no rule says what this folder may import; add one to mayImport", p.path())
			continue
		}
		check := func(imports []string, inTest bool) {
			for _, i := range ours(imports) {
				if under(i, allowed...) || inTest && excepted(testsMayImport, i, map[string]bool{}) {
					continue
				}
				t.Errorf("%s imports %s; it may import only %s", p.path(), i, strings.Join(allowed, ", "))
			}
		}
		check(p.Imports, false)
		check(p.TestImports, true)
		check(p.XTestImports, true)
	}
}

// kernelUsers may make system calls by themselves. All others go through
// libcontainer, where each call is wrapped once.
var kernelUsers = []exception{
	{"libcontainer", "the library of system calls"},
	{"proto", "generated code converts strings with unsafe"},
	{"internal/daemon", "prctl on every thread, SO_PEERCRED and descriptor limits, before anything else runs"},
	{"cli", "the terminal and the state of daemons that `berth up` started; libcontainer is for containers"},
	{"services/imaged/graph", "layer directories: renameat2, extended attributes, whiteout devices"},
	{"services/imaged/erofs", "kinds of files and device numbers as of stat(2); it makes no call"},
	{"services/imaged/unpack", "a tar's owners, modes, times and extended attributes, relative to descriptors"},
	{"services/execd", "passes descriptors between processes (SCM_RIGHTS), waits by pidfd"},
}

// TestKernelUsers: only libcontainer and the packages named above import
// golang.org/x/sys/unix or unsafe. Their tests may.
func TestKernelUsers(t *testing.T) {
	used := map[string]bool{}
	for _, p := range tree(t) {
		for _, i := range p.Imports {
			if (i == "unsafe" || i == "golang.org/x/sys/unix") && !excepted(kernelUsers, p.path(), used) && !under(p.path(), "test") {
				t.Errorf("%s imports %s: ask libcontainer, or say in kernelUsers why not", p.path(), i)
			}
		}
	}
	checkUsed(t, kernelUsers, used)
}

// TestCommandLine: a command is over before these have initialised themselves.
// cli/rpc and cli/wire stand for them.
func TestCommandLine(t *testing.T) {
	linked := goList(t, "-deps", "./cli")
	if len(linked) < 50 {
		t.Fatalf("go list found %d packages in the command line", len(linked))
	}
	for _, dep := range linked {
		if under(dep.ImportPath, "google.golang.org", "net/http", "crypto", module+"/proto") {
			t.Errorf("the command line links %s", dep.ImportPath)
		}
	}
}

// TestSmallPrograms: what runs as root beside or inside a container links
// neither gRPC nor protobuf. These are all programs that are not daemons.
func TestSmallPrograms(t *testing.T) {
	var programs []string
	for _, p := range tree(t) {
		if p.Name == "main" && filepath.Base(filepath.Dir(p.Dir)) == "cmd" {
			programs = append(programs, p.path())
		}
	}
	for _, must := range []string{"libcontainer/cmd/berth-init", "services/execd/cmd/berth-monitor", "services/imaged/cmd/berth-unpack"} {
		if !slices.Contains(programs, must) {
			t.Errorf("%s is not among the programs found: %v", must, programs)
		}
	}
	for _, program := range programs {
		for _, dep := range goList(t, "-deps", "./"+program) {
			if under(dep.ImportPath, "google.golang.org") || under(dep.ImportPath, module+"/proto") {
				t.Errorf("%s links %s", program, dep.ImportPath)
				break // the rest follows from it
			}
		}
	}
}
