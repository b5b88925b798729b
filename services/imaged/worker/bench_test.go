package worker_test

import "testing"

// BenchmarkEmptyLayer is what a layer costs because a process is started for it.
func BenchmarkEmptyLayer(b *testing.B) {
	r := newRig(b)
	archive := make([]byte, 1024)
	for b.Loop() {
		s, _, err := r.workers.Unpack(b.Context(), r.layers, plain(archive))
		if err != nil {
			b.Fatal(err)
		}
		s.Discard()
	}
}
