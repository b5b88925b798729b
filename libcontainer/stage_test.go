package libcontainer

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestStageOfEveryStep: a step that is added gets a stage too. What the sources call steps is found by how they are
// noted.
func TestStageOfEveryStep(t *testing.T) {
	if _, err := os.Stat("stage.go"); errors.Is(err, os.ErrNotExist) {
		t.Skip("SKIP: the sources are not on this machine")
	}
	noted := regexp.MustCompile(`(?:r\.step|t\.mark)\("([^"]+)"|Step\{"([^"]+)", started`)
	seen := 0
	for _, pattern := range []string{"*.go", "initproc/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			source, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range noted.FindAllStringSubmatch(string(source), -1) {
				name := m[1] + m[2]
				if seen++; StageOf(name) == StageUnknown {
					t.Errorf("%s: step %q has no stage; add it to stages", f, name)
				}
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d steps were found in the sources: the test looks for something else than what is there", seen)
	}
}

func TestStageOf(t *testing.T) {
	for name, want := range map[string]Stage{`mount root "/x"`: StageMounts, "mount overlay": StageMounts, "mount cgroup": StageMounts, `bind "/a" on "/b"`: StageMounts, `mount tmpfs on "/t"`: StageMounts,
		"move /dev": StageMounts, `find user "www"`: StageSecurity, "exec": StageExec, "something": StageUnknown} {
		if got := StageOf(name); got != want {
			t.Errorf("StageOf(%q) = %d, want %d", name, got, want)
		}
	}
}
