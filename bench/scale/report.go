package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth/bench/chart"
)

// What is predicted for.
var (
	machines = []int{2, 16, 64, 256}
	crowds   = []float64{0, 100, 1000, 10_000}
)

const starts = 1500 // simulated for each figure

// capacity is what a machine does when so many clients ask that nothing waits for them.
func (c Costs) capacity(cores int, n float64, d Design) Prediction {
	return c.Predict(Scenario{Cores: cores, N: n, Clients: max(4*cores, 16), Design: d}, max(starts, 8*cores))
}

// report is the tables of a run, by the name that the page has for each.
type report struct {
	r      *Results
	costs  Costs
	checks []Check
	tables map[string]string
	images map[string]string
}

func newReport(r *Results) (*report, error) {
	c, err := r.costs()
	if err != nil {
		return nil, err
	}
	rep := &report{r: r, costs: c, checks: r.checks(c, starts), tables: map[string]string{}, images: map[string]string{}}
	rep.tables["run"] = fmt.Sprintf("`make bench-scale`, %s: %s. Load average before it: %s.\n", r.Date, r.Host, r.Load)
	rep.tables["sections"] = rep.sections()
	rep.tables["engine"] = rep.engine()
	rep.tables["check"] = rep.check()
	rep.predict()
	rep.tables["designs"] = rep.designs()
	rep.tables["memory"] = rep.memory()
	return rep, nil
}

// table writes a table of Markdown; the first column is words, the others are numbers.
func table(head []string, lines [][]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s |\n|---|%s\n", strings.Join(head, " | "), strings.Repeat("---:|", len(head)-1))
	for _, l := range lines {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(l, " | "))
	}
	return b.String()
}

// digits writes two or three of a number.
func digits(x float64) string {
	switch {
	case math.IsNaN(x) || math.IsInf(x, 0):
		return ""
	case math.Abs(x) >= 10 || x == 0:
		return fmt.Sprintf("%.0f", x)
	case math.Abs(x) >= 1:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

func percent(x float64) string { return fmt.Sprintf("%.0f %%", 100*x) }

func signed(x float64) string { return fmt.Sprintf("%+.0f %%", 100*x) }

// sections are the probes, what line was drawn through each, and what it misses.
func (rep *report) sections() string {
	head := []string{"section", "serial by"}
	var counts []int
	for _, m := range rep.r.Measured {
		for _, s := range m.Samples {
			if !slices.Contains(counts, s.N) {
				counts = append(counts, s.N)
			}
		}
	}
	slices.Sort(counts)
	for _, n := range counts {
		head = append(head, fmt.Sprintf("N = %d", n))
	}
	head = append(head, "line, µs", "misses", "two threads", "serial part")
	var lines [][]string
	var series []chart.Series
	for _, m := range rep.r.Measured {
		line := []string{m.Title, m.Lock}
		s := chart.Series{Name: m.Name}
		for _, n := range counts {
			cell := ""
			i := slices.IndexFunc(m.Samples, func(s Sample) bool { return s.N == n })
			if i >= 0 {
				cell = digits(m.Samples[i].Micros)
				s.X, s.Y = append(s.X, float64(n)), append(s.Y, m.Samples[i].Micros)
			}
			line = append(line, cell)
		}
		law, misses := digits(m.Line.Base), ""
		if len(m.Samples) > 1 {
			law = fmt.Sprintf("%s + %s N/1000", digits(m.Line.Base), digits(m.Line.Slope*1000))
			misses = percent(m.Line.Largest)
			series = append(series, s)
		}
		two, serial := "", ""
		if m.speedup() > 0 {
			two, serial = fmt.Sprintf("× %.2f", m.speedup()), percent(serialShare(m.speedup()))
		}
		if m.Lock == "" {
			serial = ""
		}
		lines = append(lines, append(line, law, misses, two, serial))
	}
	rep.images["scale-sections"] = chart.Lines("Time of a section, by what there is beside it", "containers, ports, groups … beside it", "µs", series)
	return table(head, lines)
}

// engine is what runs of the engine took, beside so many containers.
func (rep *report) engine() string {
	head := []string{"containers", "run -d, ms", "netd's loop, µs a slot", "ps, ms", "descriptors of the monitor", "CPU of a run, ms"}
	programs := []string{"apid", "imaged", "netd", "execd", "berth-monitor", "containers, inits", kernelThreads, "bench-worker"}
	head = append(head, programs...)
	var lines [][]string
	for i, p := range rep.r.Starts {
		line := []string{digits(p.N), digits(p.Value), digits(rep.r.Slots[i].Value), digits(rep.r.Lists[i].Value), digits(rep.r.MonitorFDs[i].Value)}
		if b, ok := rep.r.burst(int(p.N), crowdClients); ok {
			line = append(line, digits(b.CPU))
			for _, name := range programs {
				line = append(line, digits(b.By[name]))
			}
		}
		lines = append(lines, line)
	}
	return table(head, lines)
}

// check holds predictions against runs.
func (rep *report) check() string {
	var lines [][]string
	var rates, p50s, p99s []float64
	for _, c := range rep.checks {
		rate, p50, p99 := c.Errors()
		mark := ""
		if c.Fitted {
			mark = " (fitted)"
		} else {
			rates, p50s, p99s = append(rates, math.Abs(rate)), append(p50s, math.Abs(p50)), append(p99s, math.Abs(p99))
		}
		lines = append(lines, []string{fmt.Sprintf("%d, %d clients%s", c.N, c.Clients, mark),
			digits(c.Rate), digits(c.Predicted.Rate), signed(rate), digits(c.P50), digits(c.Predicted.P50), signed(p50), digits(c.P99), digits(c.Predicted.P99), signed(p99)})
	}
	text := table([]string{"containers", "runs/s", "model", "", "p50, ms", "model", "", "p99, ms", "model", ""}, lines)
	text += fmt.Sprintf("\nFitted: other work left %s of this machine; %s of the work outside sections is in front of the answer; its pieces vary by %.1f of their mean.\n",
		percent(rep.costs.Free), percent(rep.costs.Before), rep.costs.Variation)
	verdict := "The model is within its bounds."
	if err := judge(rep.checks); err != nil {
		verdict = "**" + err.Error() + ".**"
	}
	text += fmt.Sprintf("\nIn the %d rows that the model has not seen it is off by %s (median) and %s (most) in rates, %s and %s in medians, %s and %s in 99th percentiles.\n%s\n",
		len(rates), percent(quantile(rates, 0.5)), percent(quantile(rates, 1)), percent(quantile(p50s, 0.5)), percent(quantile(p50s, 1)),
		percent(quantile(p99s, 0.5)), percent(quantile(p99s, 1)), verdict)
	return text
}

// predict is capacity and latency of machines.
func (rep *report) predict() {
	whole := rep.costs.Whole()
	var capacity, latency [][]string
	var series []chart.Series
	for _, cores := range machines {
		s := chart.Series{Name: fmt.Sprintf("%d cores", cores)}
		for _, n := range crowds {
			p := rep.costs.capacity(cores, n, asItIs)
			low := whole.capacity(cores, n, asItIs)
			name, share := p.Busiest()
			capacity = append(capacity, []string{fmt.Sprintf("%d cores, %s containers", cores, digits(n)), digits(p.Rate), digits(low.Rate), fmt.Sprintf("%s, %s", name, percent(share)), next(p, name)})
			s.X, s.Y = append(s.X, max(n, 1)), append(s.Y, p.Rate)
			line := []string{fmt.Sprintf("%d cores, %s containers", cores, digits(n))}
			alone := rep.costs.Predict(Scenario{Cores: cores, N: n, Clients: 1, Design: asItIs}, starts)
			line = append(line, digits(alone.P50), digits(alone.P99))
			for _, load := range []float64{0.5, 0.8} {
				at := rep.costs.Predict(Scenario{Cores: cores, N: n, Rate: load * p.Rate, Design: asItIs}, starts)
				line = append(line, digits(at.P50), digits(at.P99))
			}
			latency = append(latency, line)
		}
		series = append(series, s)
	}
	measured := chart.Series{Name: "2 cores, measured", Dots: true}
	for _, b := range rep.r.Bursts {
		if b.Clients == crowdClients {
			measured.X, measured.Y = append(measured.X, float64(b.N)), append(measured.Y, b.Rate)
		}
	}
	rep.images["scale-rate"] = chart.Lines("Starts a second, predicted", "containers beside it", "runs/s", append(series, measured))
	rep.tables["capacity"] = table([]string{"machine", "runs/s", "if sections are serial from end to end", "wanted most", "then"}, capacity)
	rep.tables["latency"] = table([]string{"machine", "alone: p50, ms", "p99", "at half of what it can: p50", "p99", "at 80 %: p50", "p99"}, latency)
}

// next is the second busiest.
func next(p Prediction, busiest string) string {
	other := Prediction{Busy: map[string]float64{}}
	for name, share := range p.Busy {
		if name != busiest {
			other.Busy[name] = share
		}
	}
	name, share := other.Busiest()
	return fmt.Sprintf("%s, %s", name, percent(share))
}

// designs are what else could be done, on large machines beside 1,000 containers.
func (rep *report) designs() string {
	few := func(d Design) Design { d.PortsMax = 100; return d }
	list := []struct {
		name string
		d    Design
	}{
		{"as it is", asItIs},
		{"networks of at most 100 containers", few(asItIs)},
		{"four loops that make slots", Design{PortsMax: 900, Makers: 4, RTNL: 1}},
		{"both", few(Design{Makers: 4, RTNL: 1})},
		{"both, and half the time under RTNL", few(Design{Makers: 4, RTNL: 0.5})},
		{"no cost that grows with the number of containers", Design{PortsMax: 900, Makers: 1, RTNL: 1, SlopesOff: true}},
		{"containers without a network (`--network none`)", Design{PortsMax: 900, Makers: 1}},
	}
	head := []string{"design, beside 1,000 containers, runs/s"}
	for _, cores := range machines {
		head = append(head, fmt.Sprintf("%d cores", cores))
	}
	head = append(head, fmt.Sprintf("wanted most with %d", machines[len(machines)-1]))
	var lines [][]string
	for _, l := range list {
		line := []string{l.name}
		var last Prediction
		for _, cores := range machines {
			last = rep.costs.capacity(cores, 1000, l.d)
			line = append(line, digits(last.Rate))
		}
		name, share := last.Busiest()
		lines = append(lines, append(line, fmt.Sprintf("%s, %s", name, percent(share))))
	}
	return table(head, lines)
}

// memory is what was measured, and what the lines through it say of more.
func (rep *report) memory() string {
	var engine, kernel []Point
	var lines [][]string
	for _, m := range rep.r.Memory {
		engine, kernel = append(engine, Point{float64(m.N), m.Engine}), append(kernel, Point{float64(m.N), m.Kernel})
		lines = append(lines, []string{digits(float64(m.N)), digits(m.Engine), digits(m.Kernel)})
	}
	a, b := fit(engine), fit(kernel)
	lines = append(lines, []string{"each container, MB", fmt.Sprintf("%.3f", a.Slope), fmt.Sprintf("%.3f", b.Slope)},
		[]string{"the line misses, at most", percent(a.Largest), percent(b.Largest)})
	for _, n := range []float64{5000, 10_000} {
		lines = append(lines, []string{fmt.Sprintf("%s (line)", digits(n)), digits(a.At(n)), digits(b.At(n))})
	}
	return table([]string{"containers", "engine, MB PSS", "kernel, MB"}, lines)
}

// order is that of the page.
var order = []string{"run", "sections", "engine", "check", "capacity", "latency", "designs", "memory"}

func (rep *report) text() string {
	var b strings.Builder
	for _, name := range order {
		fmt.Fprintf(&b, "%s\n", rep.tables[name])
	}
	return b.String()
}

// write puts the tables between their marks in a page, and the pictures beside it.
func (rep *report) write(page string) error {
	b, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	text, err := rep.merge(string(b))
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
		return err
	}
	for name, svg := range rep.images {
		if err := os.WriteFile(filepath.Join(filepath.Dir(page), "img", name+".svg"), []byte(svg), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// merge replaces what is between the marks of each table.
func (rep *report) merge(text string) (string, error) {
	for _, name := range order {
		begin, end := fmt.Sprintf("<!-- begin generated: scale %s -->\n", name), "<!-- end generated -->"
		head, rest, found := strings.Cut(text, begin)
		if !found {
			return "", fmt.Errorf("there is no line %q", strings.TrimSpace(begin))
		}
		_, tail, found := strings.Cut(rest, end)
		if !found {
			return "", fmt.Errorf("there is no line %q after that of table %s", end, name)
		}
		text = head + begin + rep.tables[name] + end + tail
	}
	return text, nil
}
