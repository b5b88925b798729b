package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is a line of go test -json: "go doc test2json", and "go help buildjson" for those about builds.
type event struct {
	Action      string
	Package     string
	Test        string
	Output      string
	ImportPath  string // of a build
	FailedBuild string // ImportPath of the build without which the package could not be tested
}

// summary prints events as go test without -json would have them and counts tests.
type summary struct {
	out      io.Writer
	packages map[string]*pkg   // that have not ended
	builds   map[string]*build // by ImportPath
	ended    map[string]int    // packages, by pass, fail and skip (no test files)
	tests    map[string]int    // by pass, fail and skip
	skips    []line
	failures []line
}

type line struct{ pkg, test, text string }

type pkg struct {
	output strings.Builder // what belongs to no test
	tests  map[string]*test
	order  []string // names of tests as they ended, subtests first; then those that did not end
}

type test struct {
	output strings.Builder
	result string // pass, fail, skip; empty: it did not end
}

type build struct {
	output strings.Builder
	shown  bool
}

func newSummary(out io.Writer) *summary {
	return &summary{out: out, packages: map[string]*pkg{}, builds: map[string]*build{}, ended: map[string]int{}, tests: map[string]int{}}
}

// read takes all events. Lines that are none are printed as they are: go says some things in plain text.
func (s *summary) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		raw, err := lines.ReadBytes('\n')
		if len(raw) > 0 {
			var e event
			if json.Unmarshal(raw, &e) == nil && e.Action != "" {
				s.event(e)
			} else {
				s.out.Write(raw)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *summary) event(e event) {
	switch e.Action {
	case "build-output":
		s.build(e.ImportPath).output.WriteString(e.Output)
		return
	case "build-fail":
		s.show(e.ImportPath)
		return
	}
	p := s.packages[e.Package]
	if p == nil {
		p = &pkg{tests: map[string]*test{}}
		s.packages[e.Package] = p
	}
	switch {
	case e.Test != "":
		p.event(e)
	case e.Action == "output":
		p.output.WriteString(e.Output)
	case e.Action == "pass" || e.Action == "fail" || e.Action == "skip":
		if e.FailedBuild != "" {
			s.show(e.FailedBuild)
		}
		s.close(e.Package, e.Action)
	}
}

func (p *pkg) event(e event) {
	t := p.tests[e.Test]
	if t == nil {
		t = &test{}
		p.tests[e.Test] = t
	}
	switch e.Action {
	case "output":
		if !strings.HasPrefix(e.Output, "=== ") {
			t.output.WriteString(e.Output)
		}
	case "pass", "fail", "skip":
		t.result, p.order = e.Action, append(p.order, e.Test)
	}
}

func (s *summary) build(path string) *build {
	if s.builds[path] == nil {
		s.builds[path] = &build{}
	}
	return s.builds[path]
}

// show prints what a failing build said, once.
func (s *summary) show(path string) {
	if b := s.build(path); !b.shown {
		b.shown = true
		io.WriteString(s.out, b.output.String())
	}
}

// close ends a package: result is pass, fail or skip.
func (s *summary) close(name, result string) {
	p := s.packages[name]
	delete(s.packages, name)
	s.ended[result]++
	failures := len(s.failures)
	for _, t := range slices.Sorted(maps.Keys(p.tests)) {
		if p.tests[t].result == "" {
			p.order = append(p.order, t)
		}
	}
	for _, t := range p.order {
		s.count(name, p, t, result)
	}
	if result == "fail" && len(s.failures) == failures { // a build, TestMain, or what calls os.Exit
		s.failures = append(s.failures, line{pkg: name})
	}
	for l := range strings.Lines(p.output.String()) {
		// Of a package that passes go test prints the line that says so.
		if result == "fail" && l != "PASS\n" && l != "FAIL\n" || verdict.MatchString(l) {
			io.WriteString(s.out, l)
		}
	}
}

var verdict = regexp.MustCompile(`^(ok  |\?   |FAIL)\t`)

// count counts a test of a package that ended, and prints what it said if it failed. Tests with subtests are counted
// as these, except where they alone failed.
func (s *summary) count(name string, p *pkg, testName, result string) {
	t := p.tests[testName]
	if t.result == "" { // the process ended before it
		t.result = result
	}
	if t.result == "fail" {
		io.WriteString(s.out, t.output.String())
	}
	if slices.ContainsFunc(p.order, func(other string) bool {
		return strings.HasPrefix(other, testName+"/") && (t.result != "fail" || p.tests[other].result != "pass" && p.tests[other].result != "skip")
	}) {
		return
	}
	s.tests[t.result]++
	switch t.result {
	case "fail":
		s.failures = append(s.failures, line{name, testName, ""})
	case "skip":
		s.skips = append(s.skips, line{name, testName, reason(t.output.String())})
	}
}

var logged = regexp.MustCompile(`(?m)^ *\S+\.go:\d+: `)

// reason is the last thing a skipped test logged, in one line.
func reason(output string) string {
	starts := logged.FindAllStringIndex(output, -1)
	if len(starts) == 0 {
		return "gives no reason"
	}
	var words []string
	for l := range strings.Lines(output[starts[len(starts)-1][1]:]) {
		if l := strings.TrimSpace(l); !strings.HasPrefix(l, "--- SKIP: ") {
			words = append(words, l)
		}
	}
	return strings.TrimSpace(strings.Join(words, " "))
}

func (s *summary) failed() bool { return s.ended["fail"] > 0 || s.tests["fail"] > 0 }

// end prints the sums to w. Packages that did not end count as failed.
func (s *summary) end(w io.Writer) {
	for _, name := range slices.Sorted(maps.Keys(s.packages)) {
		s.close(name, "fail")
	}
	for _, l := range s.failures {
		fmt.Fprintln(w, strings.TrimSpace("failed: "+l.pkg+" "+l.test))
	}
	for _, l := range s.skips {
		fmt.Fprintf(w, "skipped: %s %s: %s\n", l.pkg, l.test, l.text)
	}
	fmt.Fprintf(w, "tests: %d passed, %d failed, %d skipped; packages: %d passed, %d failed, %d without tests\n",
		s.tests["pass"], s.tests["fail"], s.tests["skip"], s.ended["pass"], s.ended["fail"], s.ended["skip"])
}
