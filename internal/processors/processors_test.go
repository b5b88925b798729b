package processors

import (
	"runtime"
	"testing"
)

func TestShare(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	for _, c := range []struct {
		env        string
		have, want int
	}{{"", 8, 4}, {"", 3, 1}, {"", 1, 1}, {"8", 8, 8}} {
		t.Setenv("GOMAXPROCS", c.env)
		runtime.GOMAXPROCS(c.have)
		if Share(); runtime.GOMAXPROCS(0) != c.want {
			t.Errorf("with GOMAXPROCS=%q and %d processors: %d, want %d", c.env, c.have, runtime.GOMAXPROCS(0), c.want)
		}
	}
}
