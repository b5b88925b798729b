package main

import "testing"

// BenchmarkRunTrue is `run --rm IMAGE true` over gRPC: record, launch, output,
// exit, removal.
func BenchmarkRunTrue(b *testing.B) {
	e := start(b)
	network := e.held()
	for b.Loop() {
		s := script("")
		s.Args, s.AutoRemove = []string{"true"}, true
		if r, err := e.runIn(network, s, nil); err != nil || r.exit.GetCode() != 0 {
			b.Fatal(r, err)
		}
	}
}
