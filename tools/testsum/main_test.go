package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// module writes the files of a Go module and gives its folder.
func module(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module example\n\ngo 1.26\n"
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const passing = `package passing
import "testing"
func TestQuiet(t *testing.T) { t.Log("what a passing test logs") }
func TestSkips(t *testing.T) { t.Log("first"); t.Skip("no such\ndevice here") }
func TestParts(t *testing.T) {
	t.Run("one", func(t *testing.T) { t.Parallel() })
	t.Run("two", func(t *testing.T) { t.Parallel(); t.Skip("needs two processors") })
}
`

const failing = `package failing
import ("fmt"; "testing")
func TestFails(t *testing.T) { fmt.Println("printed"); t.Log("one\ntwo"); t.Error("three") }
func TestPart(t *testing.T) {
	t.Run("good", func(t *testing.T) { t.Log("quiet") })
	t.Run("bad", func(t *testing.T) { t.Fatal("deep down") })
}
func TestParentOnly(t *testing.T) {
	t.Run("good", func(t *testing.T) {})
	t.Error("the parent alone")
}
func TestGood(t *testing.T) { t.Log("quiet") }
`

const dying = `package dying
import "testing"
func TestBefore(t *testing.T) {}
func TestDies(t *testing.T) { t.Log("last words"); panic("out of luck") }
`

const mainFails = `package mainfails
import ("fmt"; "os"; "testing")
func TestMain(m *testing.M) { m.Run(); fmt.Println("left behind: a mount"); os.Exit(3) }
func TestGood(t *testing.T) {}
`

// TestRun: what a real go test says of each kind of outcome.
func TestRun(t *testing.T) {
	for name, c := range map[string]struct {
		files  map[string]string
		args   []string
		code   int
		last   string
		has    []string
		hasNot []string
	}{
		"skips in a package that passes": {
			map[string]string{"passing/a_test.go": passing, "empty/a.go": "package empty\n"}, []string{"./..."}, 0,
			"tests: 2 passed, 0 failed, 2 skipped; packages: 1 passed, 0 failed, 1 without tests",
			[]string{
				"ok  \texample/passing\t", "?   \texample/empty\t[no test files]",
				"skipped: example/passing TestSkips: no such device here\n", "skipped: example/passing TestParts/two: needs two processors\n",
			},
			[]string{"passing test logs", "PASS", "=== RUN", "failed:"},
		},
		"failures": {
			map[string]string{"failing/a_test.go": failing}, []string{"./..."}, 1,
			"tests: 3 passed, 3 failed, 0 skipped; packages: 0 passed, 1 failed, 0 without tests",
			[]string{
				"printed\n", "one\n        two\n", ": three\n", "--- FAIL: TestFails", ": deep down\n", "deep down\n--- FAIL: TestPart/bad", ": the parent alone",
				"FAIL\texample/failing\t", "failed: example/failing TestFails\n", "failed: example/failing TestPart/bad\n", "failed: example/failing TestParentOnly\n",
			},
			[]string{"quiet", "failed: example/failing TestPart\n"},
		},
		"a panic": {
			map[string]string{"dying/a_test.go": dying}, []string{"./..."}, 1,
			"tests: 1 passed, 1 failed, 0 skipped; packages: 0 passed, 1 failed, 0 without tests",
			[]string{"last words", "panic: out of luck", "goroutine ", "failed: example/dying TestDies\n"}, nil,
		},
		"a test that does not end": {
			map[string]string{"slow/a_test.go": "package slow\nimport (\"testing\"; \"time\")\nfunc TestSleeps(t *testing.T) { time.Sleep(time.Hour) }\n"},
			[]string{"-timeout", "200ms", "./..."}, 1,
			"tests: 0 passed, 1 failed, 0 skipped; packages: 0 passed, 1 failed, 0 without tests",
			[]string{"panic: test timed out after 200ms", "failed: example/slow TestSleeps\n"}, nil,
		},
		"TestMain fails": {
			map[string]string{"mainfails/a_test.go": mainFails}, []string{"./..."}, 1,
			"tests: 1 passed, 0 failed, 0 skipped; packages: 0 passed, 1 failed, 0 without tests",
			[]string{"left behind: a mount\n", "FAIL\texample/mainfails\t", "failed: example/mainfails\n"}, nil,
		},
		"a package does not build": {
			map[string]string{"passing/a_test.go": passing, "broken/a.go": "package broken\nvar x int = \"text\"\n", "broken/a_test.go": "package broken\nimport \"testing\"\nfunc TestA(t *testing.T) {}\n"},
			[]string{"./..."}, 1,
			"tests: 2 passed, 0 failed, 2 skipped; packages: 1 passed, 1 failed, 0 without tests",
			[]string{"broken/a.go:2:13: cannot use \"text\"", "FAIL\texample/broken [build failed]", "failed: example/broken\n", "ok  \texample/passing\t"}, nil,
		},
		"a test does not pass vet": {
			map[string]string{"vetted/a_test.go": "package vetted\nimport (\"fmt\"; \"testing\")\nfunc TestA(t *testing.T) { fmt.Printf(\"%d\", \"text\") }\n"},
			[]string{"./..."}, 1,
			"tests: 0 passed, 0 failed, 0 skipped; packages: 0 passed, 1 failed, 0 without tests",
			[]string{"has arg \"text\" of wrong type string", "failed: example/vetted\n"}, nil,
		},
		"an import that is not there": {
			map[string]string{"lost/a_test.go": "package lost\nimport _ \"example/nowhere\"\n"}, []string{"./..."}, 1,
			"tests: 0 passed, 0 failed, 0 skipped; packages: 0 passed, 1 failed, 0 without tests",
			[]string{"example/nowhere", "[setup failed]", "failed: example/lost\n"}, nil,
		},
		"no such flag": {
			map[string]string{"empty/a.go": "package empty\n"}, []string{"-count=many", "./..."}, 2,
			"tests: 0 passed, 0 failed, 0 skipped; packages: 0 passed, 0 failed, 0 without tests", []string{"invalid value \"many\""}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			sums, code, err := run(c.args, module(t, c.files), &stdout, &stderr)
			if err != nil || code != c.code {
				t.Errorf("exit %d, want %d; %v", code, c.code, err)
			}
			out := stdout.String()
			if !strings.HasSuffix(out, "\n"+c.last+"\n") && out != c.last+"\n" || !strings.HasSuffix(out, string(sums)) {
				t.Errorf("does not end with %q and the sums", c.last)
			}
			for _, want := range c.has {
				if !strings.Contains(out+stderr.String(), want) {
					t.Errorf("does not say %q", want)
				}
			}
			for _, no := range c.hasNot {
				if strings.Contains(out, no) {
					t.Errorf("says %q", no)
				}
			}
			if t.Failed() {
				t.Logf("stdout:\n%s\nstderr:\n%s", out, stderr.String())
			}
		})
	}
}

// TestBrokenOff: go test was killed in the middle. What it had said is shown, and nothing counts as passed.
func TestBrokenOff(t *testing.T) {
	var out, sums bytes.Buffer
	s := newSummary(&out)
	err := s.read(strings.NewReader(`{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
not JSON
{"Action":"output","Package":"p","Test":"TestA","Output":"halfway\n"}
{"Action":"outp`))
	s.end(&sums)
	const want = "failed: p TestA\ntests: 0 passed, 1 failed, 0 skipped; packages: 0 passed, 1 failed, 0 without tests\n"
	if err != nil || !s.failed() || sums.String() != want || out.String() != "not JSON\n{\"Action\":\"outphalfway\n" {
		t.Errorf("%v\n%q\n%q", err, out.String(), sums.String())
	}
}

// TestProgram: the whole program, for what main adds: exit status and file.
func TestProgram(t *testing.T) {
	dir := t.TempDir()
	program, file := filepath.Join(dir, "testsum"), filepath.Join(dir, "sums")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, c := range []struct {
		name, text string
		code       int
	}{{"passing", passing, 0}, {"failing", failing, 1}} {
		cmd := exec.Command(program, "-append", file, "./...")
		cmd.Dir = module(t, map[string]string{c.name + "/a_test.go": c.text})
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != c.code {
			t.Errorf("%s: exit %d, want %d\n%s", c.name, code, c.code, out)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil || strings.Count(string(b), "tests: ") != 2 || !strings.Contains(string(b), "skipped: example/passing TestSkips: ") {
		t.Errorf("%v: %s", err, b)
	}
	if out, _ := exec.Command(program).CombinedOutput(); !strings.HasPrefix(string(out), "error: usage: ") {
		t.Errorf("without arguments: %s", out)
	}
}
