package execd

import (
	"testing"

	apiv1 "berth/proto/berth/api/v1"
)

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

// BenchmarkExecTrue is `exec CONTAINER true` over gRPC, to the exit status.
func BenchmarkExecTrue(b *testing.B) {
	e := start(b)
	id := e.up1(script("sleep 1000"))
	for b.Loop() {
		r, err := e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"true"}}, nil)
		if err != nil || r.exit.GetCode() != 0 {
			b.Fatal(r, err)
		}
	}
}
