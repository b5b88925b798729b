package main

import "context"

// tailRounds is how many runs it takes to say with confidence that no more than one in a hundred is slow: three of
// these may be. (With fewer than 368, none at all being slow would not say it.)
const tailRounds = 1000

// slowest times again what there are bars about the slowest runs of, often enough to judge these.
func slowest(ctx context.Context, s *subjects, g group) ([]finding, error) {
	var cs []*contender
	for _, c := range s.contenders("run") {
		if c.name == cliLimits || c.name == grpcLimits {
			cs = append(cs, &contender{group: g.name, name: c.name, charge: c.charge, once: c.once})
		}
	}
	err := takeTurns(ctx, cs, pause, s.warm, tailRounds)
	return []finding{fromTurns(g, cs)}, err
}
