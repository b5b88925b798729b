package worker_test

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// BenchmarkEmptyLayer is what a layer costs because a process is started for it.
func BenchmarkEmptyLayer(b *testing.B) {
	r := newRig(b)
	defer childrenTime(b)()
	for b.Loop() {
		r.bench(plain(make([]byte, 1024)))
	}
}

// benchArchive names a tar of a real root file system, as in package unpack.
const benchArchive = "BERTH_BENCH_TAR"

// BenchmarkLayer is what the walls cost while a layer is unpacked.
func BenchmarkLayer(b *testing.B) {
	path := os.Getenv(benchArchive)
	if path == "" {
		b.Skipf("SKIPPED: set %s to the tar of a root file system", benchArchive)
	}
	for name, without := range map[string][2]bool{
		"all": {}, "noLandlock": {true, false}, "noSeccomp": {false, true}, "neither": {true, true},
	} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b)
			r.workers.NoLandlock, r.workers.NoSeccomp = without[0], without[1]
			f, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			defer childrenTime(b)()
			for b.Loop() {
				r.bench(f)
			}
		})
	}
}

func (r *rig) bench(src interface{ Read([]byte) (int, error) }) {
	s, _, err := r.workers.Unpack(r.Context(), r.layers, src)
	if err != nil {
		r.Fatal(err)
	}
	s.Discard()
}

// childrenTime reports the processor time of the processes that unpacked, which says more on a busy machine.
func childrenTime(b *testing.B) func() {
	used := func() time.Duration {
		var u syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N)/1e6, "cpu-ms/op") }
}
