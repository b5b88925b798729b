package main

import "math"

// group is a set of things that are measured and compared with one another. Ratios are to the reference.
type group struct {
	name, title, reference string
	note                   string // below the table
}

// finding is the outcome of one group, as a table.
type finding struct {
	group
	rows []row
}

// row is what was measured of one thing.
type row struct {
	name, unit string
	samples    []float64 // of a contender: its wall times by round, NaN for runs that failed
	cpu        float64   // ms per run, NaN where it was not measured
	failed     int
}

func (f *finding) add(name, unit string, samples ...float64) {
	f.rows = append(f.rows, row{name: name, unit: unit, samples: samples, cpu: math.NaN()})
}

func (f finding) find(name string) []float64 {
	for _, r := range f.rows {
		if r.name == name {
			return r.samples
		}
	}
	return nil
}

// find gives the samples of a row; nil where it was not measured.
func find(all []finding, group, name string) []float64 {
	for _, f := range all {
		if f.group.name == group {
			return f.find(name)
		}
	}
	return nil
}

// fromTurns is the finding of contenders that took turns.
func fromTurns(g group, cs []*contender) finding {
	f := finding{group: g}
	for _, c := range cs {
		r := row{name: c.name, unit: "ms", samples: c.walls, cpu: inMs(c.cpu), failed: c.failed}
		if c.cpu == 0 {
			r.cpu = math.NaN()
		}
		f.rows = append(f.rows, r)
	}
	return f
}
