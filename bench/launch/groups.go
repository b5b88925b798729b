package main

import "context"

// task is a group and how it is measured.
type task struct {
	group
	measure func(context.Context, *subjects, group) ([]finding, error)
}

// tasks are in the order of measuring: what an engine is like that has done nothing yet comes first.
var tasks = []task{
	{group{name: "memory", title: "Memory of the engine",
		note: "Proportional set size of all processes, one idle container among them from the beginning; MB of 2^20 bytes."}, memory},
	{group{name: "run", title: "Run true in a new container and remove it", reference: crunBare}, turns},
	{group{name: "stages", title: "What a launch is made of", note: "Bridge and limits, over gRPC, one after another without a pause. Stages overlap."}, stages},
	{group{name: "tail", title: "The slowest of many runs"}, slowest},
	{group{name: "detach", title: "Start a container with a published port, and get the answer", reference: "docker run -d -p",
		note: "CPU time is with the removal, which the wall time is without."}, turns},
	{group{name: "exec", title: "Run true in a running container", reference: "crun exec"}, turns},
	{group{name: "client", title: "Ask", reference: "an empty Go program"}, turns},
	{group{name: "sustained", title: "Containers run to their end per second, by 8 clients at once", reference: "docker run, bridge"}, sustained},
	{group{name: "layers", title: "Images with one layer and with many"}, layers},
	{group{name: "cold", title: "Nothing prepared", reference: "warm: bridge"}, cold},
	{group{name: "density", title: "With many containers"}, density},
}

func groupNames() (names []string) {
	for _, t := range tasks {
		names = append(names, t.name)
	}
	return names
}

// turns has the contenders of the group take turns.
func turns(ctx context.Context, s *subjects, g group) ([]finding, error) {
	cs := s.contenders(g.name)
	err := takeTurns(ctx, cs, s.warm, s.rounds)
	return []finding{fromTurns(g, cs).sorted()}, err
}
