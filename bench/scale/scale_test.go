package main

import (
	"math"
	"os"
	"strings"
	"testing"
)

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if math.Abs(got-want) > within*math.Abs(want) {
		t.Errorf("%s: %.4g, want %.4g within %.0f %%", what, got, want, 100*within)
	}
}

// TestFit: a line is found again, and a point that is off it is told.
func TestFit(t *testing.T) {
	l := fit([]Point{{1, 12}, {100, 210}, {500, 1010}, {1000, 2010}})
	near(t, "base", l.Base, 10, 1e-9)
	near(t, "slope", l.Slope, 2, 1e-9)
	if l.Largest > 1e-9 {
		t.Errorf("a line misses its own points by %v", l.Largest)
	}
	if l := fit([]Point{{0, 1}, {1, 2}, {2, 1}}); l.Largest < 0.4 {
		t.Errorf("a line through a triangle claims to miss %v only", l.Largest)
	}
	if l := fit([]Point{{5, 7}}); l.At(1000) != 7 {
		t.Errorf("one point gives %v among 1,000", l.At(1000))
	}
}

// TestSerialShare is Amdahl's law for two processors, both ways.
func TestSerialShare(t *testing.T) {
	for _, serial := range []float64{0, 0.25, 0.5, 1} {
		near(t, "serial share", serialShare(1/(serial+(1-serial)/2)), serial, 1e-9)
	}
	near(t, "when two do less than one", serialShare(0.8), 1.25, 1e-9)
	if serialShare(2.3) != 0 {
		t.Error("more than twice as much is not less than nothing serial")
	}
}

// bare is a start that is work and nothing else, ms.
func bare(ms float64) Costs {
	return Costs{CPU: Line{Base: ms * 1e3}, Before: 0.5, Variation: 0.3}
}

// TestPredictWork: without serial sections a machine does as many starts as its cores have time for.
func TestPredictWork(t *testing.T) {
	for _, cores := range []int{1, 2, 16, 64} {
		p := bare(10).capacity(cores, 0, asItIs)
		near(t, "rate", p.Rate, float64(cores)*100, 0.05)
		if name, share := p.Busiest(); name != "cores" || share < 0.9 {
			t.Errorf("%d cores: busiest is %s, %.2f", cores, name, share)
		}
	}
}

// TestPredictSerial: a section that one can be in at a time is the bound, however many cores there are, and whichever
// section it is.
func TestPredictSerial(t *testing.T) {
	const µs = 2000
	s := Section{Time: Line{Base: µs}, CPU: Line{Base: µs}, Serial: 1}
	for name, set := range map[string]func(*Costs){
		"RTNL":          func(c *Costs) { c.Veth = s; c.Slot.Time = s.Time },
		"cgroup_mutex":  func(c *Costs) { c.Cgroup = s },
		"namespace_sem": func(c *Costs) { c.Namespace = s },
		"netd's slots":  func(c *Costs) { c.Slot = s },
	} {
		c := bare(10)
		set(&c)
		p := c.capacity(64, 0, asItIs)
		near(t, name+" rate", p.Rate, 1e6/µs, 0.06)
		if busiest, share := p.Busiest(); busiest != name && !(name == "RTNL" && busiest == "netd's slots") || share < 0.9 {
			t.Errorf("%s is the bound, and %s is said to be busy, %.2f", name, busiest, share)
		}
	}
}

// TestPredictGrowth: what grows with the number of containers does, up to a bridge's ports where it is the bridge.
func TestPredictGrowth(t *testing.T) {
	c := bare(1)
	c.Veth = Section{Time: Line{Base: 100, Slope: 1}, CPU: Line{Base: 100, Slope: 1}, Serial: 1}
	c.Slot.Time = c.Veth.Time
	rate := func(n float64, d Design) float64 { return c.capacity(64, n, d).Rate }
	near(t, "among 400", rate(400, asItIs), 2000, 0.06)
	if a, b := rate(1000, asItIs), rate(10_000, asItIs); math.Abs(a-b) > 0.02*a {
		t.Errorf("1,000 containers fill a bridge: %.0f/s there, and %.0f/s among 10,000", a, b)
	}
	few := asItIs
	few.PortsMax = 100
	near(t, "among 10,000 in small networks", rate(10_000, few), 5000, 0.06)
	if none := rate(1000, Design{Makers: 1, PortsMax: 900}); none < 20_000 {
		t.Errorf("without networks %.0f/s", none)
	}
}

// TestJudge: a model that misses is told.
func TestJudge(t *testing.T) {
	check := func(predicted float64) []Check {
		return []Check{{Burst: Burst{Rate: 100, P50: 10, P99: 20}, Predicted: Prediction{Rate: predicted, P50: 10, P99: 20}}}
	}
	if err := judge(check(100 * (1 + bounds.Rate/2))); err != nil {
		t.Errorf("within the bound: %v", err)
	}
	if err := judge(check(100 * (1 + 1.5*bounds.Rate))); err == nil || !strings.Contains(err.Error(), "rates") {
		t.Errorf("beyond the bound: %v", err)
	}
	if err := judge(nil); err == nil {
		t.Error("a model that nothing was held against passes")
	}
}

// TestPage: what docs/scale.md says is what the results give.
func TestPage(t *testing.T) {
	r, err := readResults("../results/scale.json")
	if err != nil {
		t.Fatal(err)
	}
	rep, err := newReport(&r)
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/scale.md")
	if err != nil {
		t.Fatal(err)
	}
	want, err := rep.merge(string(page))
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != want {
		t.Error("docs/scale.md is not what bench/results/scale.json gives: bench/scale.sh -from bench/results/scale.json -docs docs/scale.md")
	}
}
