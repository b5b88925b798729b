package main

import (
	"context"
	"time"
)

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
	{group{name: "exec", title: "Run true in a running container", reference: "crun exec", note: "Each follows the one before it at once."}, atOnce},
	{group{name: "rested", title: "The same after a rest", reference: "crun exec",
		note: "40 ms after the last: caches have gone cold, and the processors sleep."}, rested},
	{group{name: "client", title: "Ask", reference: emptyGo, note: "Each follows the one before it at once."}, atOnce},
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

// turns has the contenders of the group take turns, with a pause for what each leaves to be done.
func turns(ctx context.Context, s *subjects, g group) ([]finding, error) {
	return turnsOf(ctx, s, g, s.contenders(g.name), pause)
}

// atOnce is turns of contenders that leave next to nothing: each follows the one before it.
func atOnce(ctx context.Context, s *subjects, g group) ([]finding, error) {
	return turnsOf(ctx, s, g, s.contenders(g.name), 0)
}

// rested are the contenders of group exec after the pause of the others: then all that answers has been idle.
func rested(ctx context.Context, s *subjects, g group) ([]finding, error) {
	var cs []*contender
	for _, c := range s.contenders("exec") {
		cs = append(cs, &contender{group: g.name, name: c.name, charge: c.charge, once: c.once})
	}
	return turnsOf(ctx, s, g, cs, pause)
}

func turnsOf(ctx context.Context, s *subjects, g group, cs []*contender, pause time.Duration) ([]finding, error) {
	err := takeTurns(ctx, cs, pause, s.warm, s.rounds)
	return []finding{fromTurns(g, cs).sorted()}, err
}
