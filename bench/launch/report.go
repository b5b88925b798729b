package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// table is the outcome of one group.
type table struct {
	group
	rows []row
}

type row struct {
	name                string
	median, p99, lowest time.Duration
	cpu                 time.Duration
	ratio               float64 // median to the reference's
	runs, failed        int
}

func newTable(g group, cs []*contender) table {
	t := table{group: g}
	for _, c := range cs {
		r := row{name: c.name, cpu: c.cpu, runs: len(c.walls), failed: c.failed}
		if len(c.walls) > 0 {
			w := slices.Sorted(slices.Values(c.walls))
			r.lowest = w[0]
			r.median = (w[(len(w)-1)/2] + w[len(w)/2]) / 2
			r.p99 = w[(len(w)*99+99)/100-1] // nearest rank
		}
		t.rows = append(t.rows, r)
	}
	if reference := t.find(g.reference); reference.median > 0 {
		for i := range t.rows {
			t.rows[i].ratio = float64(t.rows[i].median) / float64(reference.median)
		}
	}
	slices.SortStableFunc(t.rows, func(a, b row) int { return int(a.median - b.median) })
	return t
}

func (t table) find(name string) row {
	for _, r := range t.rows {
		if r.name == name {
			return r
		}
	}
	return row{}
}

// bar is a promise about speed.
type bar struct {
	text string
	got  string
	met  bool
}

const (
	maxTimesCrun   = 2.0 // a launch with a bridge network, against the fastest bare runtime without one
	minTimesDocker = 12.0
	maxClient      = 6 * time.Millisecond // a command that only asks, as a whole process
)

// judge holds the outcome against the bars.
func judge(tables []table) []bar {
	find := func(name string) row {
		for _, t := range tables {
			if r := t.find(name); r.median > 0 {
				return r
			}
		}
		return row{}
	}
	ratio := func(a, b string) float64 {
		if x, y := find(a).median, find(b).median; x > 0 && y > 0 {
			return float64(x) / float64(y)
		}
		return 0
	}
	crun, docker := ratio("berth run, bridge", "crun, bare bundle"), ratio("docker run, bridge", "berth run, bridge")
	bars := []bar{
		{fmt.Sprintf("berth run with bridge takes at most %.1f × crun run on a bare bundle", maxTimesCrun), fmt.Sprintf("%.2f ×", crun), crun > 0 && crun <= maxTimesCrun},
		{fmt.Sprintf("berth run is at least %.0f × faster than docker run, both with bridge", minTimesDocker), fmt.Sprintf("%.1f ×", docker), docker >= minTimesDocker},
	}
	for _, name := range []string{"berth ps", "berth version"} {
		m := find(name).median
		bars = append(bars, bar{fmt.Sprintf("%s takes at most %s", name, maxClient), ms(m) + " ms", m > 0 && m <= maxClient})
	}
	return bars
}

func (b bar) verdict() string {
	if b.met {
		return "PASS"
	}
	return "FAIL"
}

// versions is a line for each peer.
func versions(peers []*peer) (out []string) {
	for _, p := range peers {
		first, _, _ := strings.Cut(p.version, "\n")
		out = append(out, first)
	}
	return out
}

// report is everything one run found.
type report struct {
	host   string
	peers  []string
	rounds int
	tables []table
	bars   []bar
}

func (r report) text() string {
	var b strings.Builder
	for _, t := range r.tables {
		fmt.Fprintf(&b, "\n%s\n", t.title)
		tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
		fmt.Fprintf(tw, "  \tmedian ms\tp99\tlowest\tCPU ms\t× %s\tfailed\n", t.reference)
		for _, x := range t.rows {
			fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\t%.2f\t%d\n", x.name, ms(x.median), ms(x.p99), ms(x.lowest), ms(x.cpu), x.ratio, x.failed)
		}
		tw.Flush()
	}
	b.WriteString("\n")
	for _, x := range r.bars {
		fmt.Fprintf(&b, "%s  %s: %s\n", x.verdict(), x.text, x.got)
	}
	return b.String()
}

func (r report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Launch times\n\n`make bench-launch`, %s: %s.\n", time.Now().UTC().Format(time.DateOnly), r.host)
	fmt.Fprintf(&b, "%d rounds; in each, every contender ran once, in an order that rotates. CPU time is that of client, daemons and\ncontainer together, per run. Wall times belong to this machine and its load: compare the ratios.\n\n", r.rounds)
	fmt.Fprintf(&b, "![medians, and lines up to the 99th percentile](launch.svg)\n")
	for _, t := range r.tables {
		fmt.Fprintf(&b, "\n## %s\n\n| | median ms | p99 ms | lowest ms | CPU ms | × %s |\n|---|---:|---:|---:|---:|---:|\n", t.title, t.reference)
		for _, x := range t.rows {
			name := x.name
			if x.failed > 0 {
				name += fmt.Sprintf(" (%d runs failed)", x.failed)
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %.2f |\n", name, ms(x.median), ms(x.p99), ms(x.lowest), ms(x.cpu), x.ratio)
		}
	}
	b.WriteString("\n## Bars\n\n| | | |\n|---|---|---|\n")
	for _, x := range r.bars {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", x.text, x.got, x.verdict())
	}
	fmt.Fprintf(&b, "\n## Versions\n\n")
	for _, v := range r.peers {
		fmt.Fprintf(&b, "- %s\n", v)
	}
	return b.String()
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond)) }
