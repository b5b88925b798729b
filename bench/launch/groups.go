package main

import "context"

// The groups, in the order of measuring.
var groups = []struct {
	group
	measure func(context.Context, *subjects, group) (finding, error)
}{
	{group{"run", "Run true in a new container and remove it", crunBare, ""}, turns},
	{group{"exec", "Run true in a running container", "crun exec", ""}, turns},
	{group{"client", "Ask", "berth version", ""}, turns},
}

func groupNames() (names []string) {
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

// turns has the contenders of the group take turns.
func turns(ctx context.Context, s *subjects, g group) (finding, error) {
	cs := s.contenders(g.name)
	err := takeTurns(ctx, cs, s.warm, s.rounds)
	return fromTurns(g, cs).sorted(), err
}
