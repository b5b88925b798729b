package main

import (
	"context"
	"errors"
	"math"
	"regexp"

	"berth/bench/orders"
)

// ofOne is what in a step's name is of one container: a path up to its id.
var ofOne = regexp.MustCompile(`"[^"]*/[0-9a-f]{64}/`)

// stages asks the engine what its launches are made of.
func stages(ctx context.Context, s *subjects, g group) ([]finding, error) {
	r, err := s.berth.client.ask(ctx, orders.Order{Op: "run", Spec: specOf(limited(spec())), Steps: true, Count: s.rounds})
	if err == nil && r.Failed > 0 {
		err = errors.New(r.Complaint)
	}
	f := finding{group: g}
	at := map[string]int{}
	for _, step := range r.Steps {
		name := ofOne.ReplaceAllString(step.Name, `"…/`)
		i, seen := at[name]
		if !seen {
			i = len(f.rows)
			at[name] = i
			f.rows = append(f.rows, row{name: name, unit: "ms", cpu: math.NaN()})
		}
		f.rows[i].samples = append(f.rows[i].samples, inMs(step.Took))
	}
	f.add("the whole, until the exit is known", "ms", allInMs(r.Walls)...)
	return []finding{f}, err
}
