package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// table is the outcome for one image.
type table struct {
	image image
	rows  []*row
}

type row struct {
	engine    *engine
	pulls     []measurement
	failed    int
	complaint string
}

func (t *table) add(e *engine, m measurement, err error) {
	i := slices.IndexFunc(t.rows, func(r *row) bool { return r.engine == e })
	if i < 0 {
		i = len(t.rows)
		t.rows = append(t.rows, &row{engine: e})
	}
	r := t.rows[i]
	if err != nil {
		r.failed++
		r.complaint = err.Error()
		return
	}
	r.pulls = append(r.pulls, m)
}

func (t *table) sort() {
	slices.SortStableFunc(t.rows, func(a, b *row) int { return cmp.Compare(a.wall(), b.wall()) })
}

func (r *row) floor() bool { return strings.HasPrefix(r.engine.name, "floor") }

// wall is the median time; 0 if no pull succeeded.
func (r *row) wall() time.Duration {
	return median(r.pulls, func(m measurement) time.Duration { return m.wall })
}
func (r *row) cpu() time.Duration {
	return median(r.pulls, func(m measurement) time.Duration { return m.cpu })
}

func median(all []measurement, of func(measurement) time.Duration) time.Duration {
	var d []time.Duration
	for _, m := range all {
		d = append(d, of(m))
	}
	return middle(d)
}

// middle is the median; 0 of none.
func middle(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return (d[(len(d)-1)/2] + d[len(d)/2]) / 2
}

func (r *row) peak() (most int64) {
	for _, m := range r.pulls {
		most = max(most, m.peak)
	}
	return most
}

func (r *row) idle() (most int64) {
	for _, m := range r.pulls {
		most = max(most, m.idle)
	}
	return most
}

func (t table) berth() *row {
	return t.rows[slices.IndexFunc(t.rows, func(r *row) bool { return r.engine.name == "berth" })]
}

// fastestPeer is nil if no peer pulled the image.
func (t table) fastestPeer() (best *row) {
	for _, r := range t.rows {
		if !r.engine.required && !r.floor() && r.wall() > 0 && (best == nil || r.wall() < best.wall()) {
			best = r
		}
	}
	return best
}

// crowd compares one pull with many of the same image at once.
type crowd struct {
	clients   int
	one, many time.Duration
}

const crowdSize = 20

// measureCrowd takes the large image, since clients' own time would drown the answer of a small one.
func measureCrowd(o options, e *engine, r *registry) (crowd, error) {
	c := crowd{clients: crowdSize}
	image := find("large-zstd")
	if !strings.Contains(image.name, o.images) {
		return c, nil
	}
	var one, many []measurement
	for range o.rounds {
		a, err := e.measure(o, image, r, 1)
		if err != nil {
			return c, err
		}
		b, err := e.measure(o, image, r, crowdSize)
		if err != nil {
			return c, err
		}
		one, many = append(one, a), append(many, b)
	}
	wall := func(m measurement) time.Duration { return m.wall }
	c.one, c.many = median(one, wall), median(many, wall)
	return c, nil
}

// bar is a promise.
type bar struct {
	text, got string
	met       bool
}

func (b bar) verdict() string {
	if b.met {
		return "PASS"
	}
	return "FAIL"
}

// Bars: how many times faster than the fastest peer, by image.
var atLeast = map[string]float64{"debian": 1.6, "large-gzip": 2.3, "large-zstd": 2.2}

const (
	maxPeak  = 150 << 20
	maxIdle  = 30 << 20
	maxCrowd = 1.1
)

// report is everything one run found.
type report struct {
	host    string
	engines []*engine
	rounds  int
	tables  []table
	crowd   crowd
	moves   map[*engine]moveTimes
	bars    []bar
}

// judge holds the outcome against the bars.
func (r *report) judge() {
	var peak, idle int64
	for _, t := range r.tables {
		own := t.berth()
		peak, idle = max(peak, own.peak()), max(idle, own.idle())
		want, peer := atLeast[t.image.name], t.fastestPeer()
		if want == 0 || peer == nil {
			continue
		}
		times := float64(peer.wall()) / float64(own.wall())
		r.bars = append(r.bars, bar{fmt.Sprintf("%s: at least %.1f × as fast as the fastest peer (%s)", t.image.name, want, peer.engine.name),
			fmt.Sprintf("%.2f ×", times), times >= want})
	}
	if len(r.tables) > 0 {
		r.bars = append(r.bars,
			bar{"imaged and its workers take at most 150 MiB while pulling", mib(peak) + " MiB", peak > 0 && peak <= maxPeak},
			bar{"imaged takes at most 30 MiB (PSS) three seconds after a pull", mib(idle) + " MiB", idle > 0 && idle <= maxIdle})
	}
	if r.crowd.one > 0 {
		times := float64(r.crowd.many) / float64(r.crowd.one)
		r.bars = append(r.bars, bar{fmt.Sprintf("%d clients pulling large-zstd at once take at most %.1f × one pull", r.crowd.clients, maxCrowd),
			fmt.Sprintf("%.2f ×", times), times <= maxCrowd})
	}
	r.bars = append(r.bars, r.moveBars()...)
}

func (r *report) text() string {
	var b strings.Builder
	for _, t := range r.tables {
		fmt.Fprintf(&b, "\n%s\n", t.image.title)
		w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
		fmt.Fprintf(w, "  \tmedian s\tCPU s\t× berth\tpeak MiB\tidle MiB\tfailed\n")
		for _, x := range t.rows {
			fmt.Fprintf(w, "  %s\t%s\t%d\n", x.engine.name, strings.Join(x.cells(t), "\t"), x.failed)
		}
		w.Flush()
		for _, x := range t.rows {
			if x.complaint != "" {
				fmt.Fprintf(&b, "  %s: %s\n", x.engine.name, x.complaint)
			}
		}
	}
	if head, rows := r.moveRows(); len(r.moves) > 0 {
		w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
		for _, row := range append([][]string{head}, rows...) {
			fmt.Fprintf(w, "  %s\n", strings.Join(row, "\t"))
		}
		fmt.Fprintln(&b)
		w.Flush()
	}
	b.WriteString("\n")
	for _, x := range r.bars {
		fmt.Fprintf(&b, "%s  %s: %s\n", x.verdict(), x.text, x.got)
	}
	return b.String()
}

func (x *row) cells(t table) []string {
	if x.wall() == 0 {
		return []string{"–", "–", "–", "", ""}
	}
	cells := []string{seconds(x.wall()), seconds(x.cpu()), fmt.Sprintf("%.2f", float64(x.wall())/float64(t.berth().wall())), "", ""}
	if x.peak() > 0 {
		cells[3], cells[4] = mib(x.peak()), mib(x.idle())
	}
	return cells
}

func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Pull times\n\n`make bench-pull`, %s: %s.\n", time.Now().UTC().Format(time.DateOnly), r.host)
	fmt.Fprintf(&b, "%d rounds; in each, every engine pulled every image once from a docker-registry on the same machine, onto a new journaled ext4,\n", r.rounds)
	fmt.Fprintf(&b, "in an order that rotates. CPU time is that of client and daemons, without the registry's and the kernel's own threads.\nTimes belong to this machine and its load: compare the ratios.\n\n")
	fmt.Fprintf(&b, "![medians](pull.svg)\n")
	for _, t := range r.tables {
		fmt.Fprintf(&b, "\n## %s\n\n| | median s | CPU s | × berth | peak MiB | idle MiB |\n|---|---:|---:|---:|---:|---:|\n", t.image.title)
		for _, x := range t.rows {
			name := x.engine.name
			if x.failed > 0 {
				name += fmt.Sprintf(" (%d pulls failed)", x.failed)
			}
			fmt.Fprintf(&b, "| %s | %s |\n", name, strings.Join(x.cells(t), " | "))
		}
	}
	b.WriteString(r.moveMarkdown())
	b.WriteString("\n## Bars\n\n| | | |\n|---|---|---|\n")
	for _, x := range r.bars {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", x.text, x.got, x.verdict())
	}
	b.WriteString("\n## Versions\n\n")
	for _, e := range r.engines {
		if first, _, _ := strings.Cut(e.version, "\n"); first != "" {
			fmt.Fprintf(&b, "- %s\n", first)
		}
	}
	return b.String()
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }
func mib(n int64) string             { return fmt.Sprintf("%.0f", float64(n)/(1<<20)) }
