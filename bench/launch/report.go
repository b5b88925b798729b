package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is everything one run found.
type report struct {
	host     string
	load     string // averages over 1, 5 and 15 minutes, before the bench
	versions []string
	leftOut  []string
	rounds   int
	findings []finding
	took     time.Duration
}

// table is a finding in words: a head and lines.
func (f finding) table() (lines [][]string) {
	reference := f.find(f.reference)
	head := []string{"", "median", "95 % interval", "p99", "lowest", "CPU ms", "runs"}
	if reference != nil {
		head = append(head, "× "+f.reference)
	}
	lines = append(lines, head)
	for _, r := range f.rows {
		s := good(r.samples)
		e := estimateMedian(s)
		name := r.name
		if r.unit != "ms" {
			name += ", " + r.unit
		}
		if r.failed > 0 {
			name += fmt.Sprintf(" (%d runs failed)", r.failed)
		}
		p99, lowest, interval := "", "", ""
		if len(s) > 1 {
			p99, lowest = digits(quantile(s, 0.99)), digits(quantile(s, 0))
		}
		if !math.IsInf(e.low, 0) {
			interval = digits(e.low) + " – " + digits(e.high)
		}
		line := []string{name, digits(e.value), interval, p99, lowest, digits(r.cpu), fmt.Sprint(len(s))}
		if reference != nil {
			line = append(line, digits(e.value/median(good(reference))))
		}
		lines = append(lines, line)
	}
	return lines
}

// sorted is the finding with its rows by their medians.
func (f finding) sorted() finding {
	f.rows = slices.Clone(f.rows)
	slices.SortStableFunc(f.rows, func(a, b row) int {
		x, y := median(good(a.samples)), median(good(b.samples))
		switch {
		case x < y || math.IsNaN(y) && !math.IsNaN(x):
			return -1
		case x > y || math.IsNaN(x) && !math.IsNaN(y):
			return 1
		}
		return 0
	})
	return f
}

// digits writes three of a number, and nothing for none.
func digits(x float64) string {
	switch {
	case math.IsNaN(x):
		return ""
	case math.Abs(x) >= 100 || x == 0:
		return fmt.Sprintf("%.0f", x)
	case math.Abs(x) >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// judged are the bars of the groups that were measured, with how they fared.
func (r report) judged() (out []judged) {
	for _, b := range bars {
		if slices.ContainsFunc(r.findings, func(f finding) bool { return f.group.name == b.group }) {
			out = append(out, judged{b, b.judge(r.findings)})
		}
	}
	return out
}

type judged struct {
	bar
	judgement
}

func (r report) text() string {
	var b strings.Builder
	for _, f := range r.findings {
		fmt.Fprintf(&b, "\n%s\n", f.title)
		tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
		for _, line := range f.table() {
			fmt.Fprintf(tw, "  %s\n", strings.Join(line, "\t"))
		}
		tw.Flush()
	}
	b.WriteString("\n")
	for _, j := range r.judged() {
		fmt.Fprintf(&b, "%-12s  %s, %s: %s\n", j.verdict, j.text, j.limit, j.got)
	}
	return b.String()
}

func (r report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Launch times\n\n`make bench-launch`, %s, %.0f minutes: %s.\nLoad average before it: %s.\n", time.Now().UTC().Format(time.DateOnly), math.Ceil(r.took.Minutes()), r.host, r.load)
	fmt.Fprintf(&b, `
%d rounds; in each, every contender of a group ran once, in an order that chance made. Intervals are 95 %%
intervals of the median (of the ratio of medians, for bars that are ratios). A bar is met when the whole interval is within
it, missed when the whole interval is beyond it, and open when it is inside. CPU time is that of client, daemons and
container together, per run. Wall times belong to this machine and its load: compare the ratios.
`, r.rounds)
	if js := r.judged(); len(js) > 0 {
		b.WriteString("\n## Bars\n\n| what | bar | measured | |\n|---|---|---|---|\n")
		for _, j := range js {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", j.text, j.limit, j.got, j.verdict)
		}
	}
	for _, f := range r.findings {
		fmt.Fprintf(&b, "\n## %s\n\n", f.title)
		for i, line := range f.table() {
			fmt.Fprintf(&b, "| %s |\n", strings.Join(line, " | "))
			if i == 0 {
				fmt.Fprintf(&b, "|---|%s\n", strings.Repeat("---:|", len(line)-1))
			}
		}
		if f.note != "" {
			fmt.Fprintf(&b, "\n%s\n", f.note)
		}
		fmt.Fprintf(&b, "\n![%s](launch-%s.svg)\n", f.title, f.group.name)
	}
	for _, part := range []struct {
		title string
		lines []string
	}{{"Left out", r.leftOut}, {"Versions", r.versions}} {
		if len(part.lines) > 0 {
			fmt.Fprintf(&b, "\n## %s\n\n- %s\n", part.title, strings.Join(part.lines, "\n- "))
		}
	}
	return b.String()
}

// write leaves the report in a directory.
func (r report) write(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "launch.md"), []byte(r.markdown()), 0o644); err != nil {
		return err
	}
	for _, f := range r.findings {
		if err := os.WriteFile(filepath.Join(dir, "launch-"+f.group.name+".svg"), []byte(plot(f)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// versions is a line for each peer.
func versions(peers []*peer) (out []string) {
	for _, p := range peers {
		if first, _, _ := strings.Cut(p.version, "\n"); first != "" {
			out = append(out, first)
		}
	}
	return out
}
