package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
)

// Results are what one run of the bench measured: all that the model and the report are made of.
type Results struct {
	Date       string     `json:"date"`
	Host       string     `json:"host"`
	Load       string     `json:"load"` // averages over 1, 5 and 15 minutes, before
	Cores      int        `json:"cores"`
	Measured   []Measured `json:"measured"`
	Slots      []Point    `json:"slots"`  // µs
	Bursts     []Burst    `json:"bursts"` // runs that end
	Starts     []Point    `json:"starts"` // median of `run -d`, ms, of those that brought the number up to N
	Lists      []Point    `json:"lists"`  // `berth ps`, ms
	Memory     []Memory   `json:"memory"`
	MonitorFDs []Point    `json:"monitor_fds"`
	LeftOut    []string   `json:"left_out,omitempty"`
}

func (r *Results) write(path string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func readResults(path string) (r Results, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

// probe finds a measurement.
func (r *Results) probe(name string) (m Measured, err error) {
	for _, m := range r.Measured {
		if m.Name == name {
			return m, nil
		}
	}
	return m, fmt.Errorf("the results have no measurement %q, which the model needs", name)
}

// burst finds runs among n containers; ok is false if there are none.
func (r *Results) burst(n, clients int) (b Burst, ok bool) {
	i := slices.IndexFunc(r.Bursts, func(b Burst) bool { return b.N == n && b.Clients == clients })
	if i < 0 {
		return b, false
	}
	return r.Bursts[i], true
}

// section makes a section of a measurement, done so many times in a start.
func section(m Measured, times float64) Section {
	var cpu []Point
	for _, s := range m.Samples {
		cpu = append(cpu, Point{float64(s.N), s.CPU})
	}
	s := Section{Time: m.Line.times(times), CPU: fit(cpu).times(times), Serial: 1}
	if speedup := m.speedup(); speedup > 0 {
		s.Serial = serialShare(speedup)
	}
	return s
}

// serialShare is what part of an operation excludes others, from how much more two threads do than one: Amdahl's law
// solved for two processors. Two threads that together do less than one alone pay for handing the lock over, which makes
// the share more than 1.
func serialShare(speedup float64) float64 {
	if speedup < 1 {
		return 1 / speedup
	}
	return max(2/min(speedup, 2)-1, 0)
}

// plus adds what happens one after the other under one lock.
func (s Section) plus(o Section) Section {
	a, b := s.Time.At(0), o.Time.At(0)
	return Section{Time: s.Time.plus(o.Time), CPU: s.CPU.plus(o.CPU), Serial: (s.Serial*a + o.Serial*b) / (a + b)}
}

// costs makes the model of the results: of the probes, and of what a run of crowdClients takes of processors beside each
// number of containers, which is more than the sections that grow. How long runs take, and how many there are in a second,
// it sees beside the smallest number of containers only: the runs beside more are left to hold the predictions against.
func (r *Results) costs() (c Costs, err error) {
	get := func(name string) (m Measured) {
		if err == nil {
			m, err = r.probe(name)
		}
		return m
	}
	c.Veth, c.Unveth, c.Address = section(get("veth"), 1), section(get("unveth"), 1), section(get("address"), 0.5)
	c.Nft = section(get("nft"), 1)
	// Some namespaces together and many: a line through both is what each adds, and what they wait for together.
	little, much := get(fmt.Sprintf("teardown%d", few)).Line, get(fmt.Sprintf("teardown%d", reaped)).Line
	c.Teardown = much.plus(little.times(-1)).times(1 / float64(reaped-few))
	c.Grace = little.plus(c.Teardown.times(-few))
	c.Cgroup = section(get("cgroup"), 1).plus(section(get("attach"), 1))
	c.Namespace = section(get("mntns"), 1).plus(section(get("mount"), mountsMade))
	c.Slot = Section{Time: fit(r.Slots), CPU: fit(r.Slots), Serial: 1}
	if err != nil {
		return c, err
	}
	first := r.Bursts[0].N
	one, ok1 := r.burst(first, 1)
	two, ok2 := r.burst(first, 2)
	many, ok8 := r.burst(first, crowdClients)
	if !ok1 || !ok2 || !ok8 {
		return c, fmt.Errorf("the results have no runs of 1, 2 and %d clients among %d containers, which the model needs", crowdClients, first)
	}
	var cpu []Point
	for _, b := range r.Bursts {
		if b.Clients == crowdClients {
			cpu = append(cpu, Point{float64(b.N), b.CPU * 1e3})
		}
	}
	c.CPU = fit(cpu)
	c.Lone.Base = one.P50 * 1e3
	return c.calibrate(one, two, many, r.Cores), nil
}

// Check is a run that was measured and predicted.
type Check struct {
	Burst
	Predicted Prediction
	Fitted    bool // the model has seen it, or what it took of processors
}

// Errors are predicted over measured, less one.
func (c Check) Errors() (rate, p50, p99 float64) {
	return c.Predicted.Rate/c.Rate - 1, c.Predicted.P50/c.P50 - 1, c.Predicted.P99/c.P99 - 1
}

// Bounds are how far predictions may be off, as a share of what was measured, in runs that the model has not seen.
type Bounds struct{ Rate, P50, P99 float64 }

var bounds = Bounds{Rate: 0.25, P50: 0.35, P99: 1}

func (r *Results) checks(c Costs, starts int) (all []Check) {
	for _, b := range r.Bursts {
		p := c.Predict(Scenario{Cores: r.Cores, N: float64(b.N), Clients: b.Clients, Free: c.Free, Design: asItIs}, starts)
		all = append(all, Check{Burst: b, Predicted: p, Fitted: b.Clients == crowdClients || b.N == r.Bursts[0].N && b.Clients <= 2})
	}
	return all
}

// judge is an error when the predictions for runs that the model has not seen miss by more than they may: half of them
// must be within the bounds, and none beyond twice of them.
func judge(all []Check) error {
	var rates, p50s, p99s []float64
	for _, c := range all {
		if !c.Fitted {
			rate, p50, p99 := c.Errors()
			rates, p50s, p99s = append(rates, math.Abs(rate)), append(p50s, math.Abs(p50)), append(p99s, math.Abs(p99))
		}
	}
	for _, j := range []struct {
		what   string
		errors []float64
		bound  float64
	}{{"rates", rates, bounds.Rate}, {"medians", p50s, bounds.P50}, {"99th percentiles", p99s, bounds.P99}} {
		if len(j.errors) == 0 {
			return fmt.Errorf("there is no run to hold the model against")
		}
		if m, most := quantile(j.errors, 0.5), quantile(j.errors, 1); m > j.bound || most > 2*j.bound {
			return fmt.Errorf("the model misses: %s are off by %.0f %% in the middle and %.0f %% at most, and may be by %.0f and %.0f %%",
				j.what, 100*m, 100*most, 100*j.bound, 200*j.bound)
		}
	}
	return nil
}
