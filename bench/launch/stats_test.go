package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestIntervalsHold: of experiments whose truth is known, about 95 in 100 intervals hold it. With fewer, bars would be
// called missed for noise.
func TestIntervalsHold(t *testing.T) {
	const experiments = 300
	rounds := 40
	chance := rand.New(rand.NewPCG(3, 3))
	times := func(truth float64) (out []float64) { // skewed, as times are
		for range rounds {
			out = append(out, truth*math.Exp(0.3*chance.NormFloat64()))
		}
		return out
	}
	var medians, ratios int
	for range experiments {
		a, b := times(8), times(10)
		if e := estimateMedian(a); e.low <= 8 && 8 <= e.high {
			medians++
		}
		if e := estimateRatio(a, b, true); e.low <= 0.8 && 0.8 <= e.high {
			ratios++
		}
	}
	for name, held := range map[string]int{"median": medians, "ratio": ratios} {
		if share := float64(held) / experiments; share < 0.90 || share > 0.995 {
			t.Errorf("%s: %.3f of the intervals hold the truth, want about 0.95", name, share)
		}
	}
}

// TestFewSamples: with six, the median's interval holds the truth as often as with many; with five there is none.
func TestFewSamples(t *testing.T) {
	chance := rand.New(rand.NewPCG(5, 5))
	held := 0
	for range 1000 {
		var s []float64
		for range 6 {
			s = append(s, math.Exp(chance.NormFloat64()))
		}
		if e := estimateMedian(s); e.low <= 1 && 1 <= e.high {
			held++
		}
		if e := estimateMedian(s[:5]); e.atMost(1e9, "%.1f").verdict != open {
			t.Fatalf("five samples give %v", e)
		}
	}
	if held < 950 {
		t.Errorf("%d of 1000 intervals hold the truth", held)
	}
}

// TestPairedNoise: what slows both of a round's runs alike does not widen the interval of their ratio.
func TestPairedNoise(t *testing.T) {
	chance := rand.New(rand.NewPCG(4, 4))
	var a, b []float64
	for range 40 {
		busy := math.Exp(chance.NormFloat64())
		a, b = append(a, 8*busy), append(b, 10*busy)
	}
	paired, apart := estimateRatio(a, b, true), estimateRatio(a, b, false)
	if paired.high-paired.low > 0.2*(apart.high-apart.low) {
		t.Errorf("paired interval %v, want it much narrower than %v", paired, apart)
	}
}

// TestFailedRuns: a round in which one of two failed counts for neither.
func TestFailedRuns(t *testing.T) {
	e := estimateRatio([]float64{1, math.NaN(), 1, 1}, []float64{2, 1000, 2, 2}, true)
	if e.value != 0.5 || e.high != 0.5 {
		t.Errorf("ratio %v, want 0.5", e)
	}
}

// TestShare compares with Clopper's and Pearson's published intervals.
func TestShare(t *testing.T) {
	runs := func(n, slow int) (out []float64) {
		for i := range n {
			out = append(out, map[bool]float64{true: 20, false: 5}[i < slow])
		}
		return out
	}
	for _, c := range []struct {
		n, slow   int
		low, high float64
	}{
		{10, 0, 0, 0.3085},
		{10, 1, 0.0025, 0.4450},
		{10, 10, 0.6915, 1},
		{400, 0, 0, 0.0092},
	} {
		e := share(runs(c.n, c.slow), 10)
		if math.Abs(e.low-c.low) > 5e-5 || math.Abs(e.high-c.high) > 5e-5 {
			t.Errorf("%d of %d: %.4f to %.4f, want %.4f to %.4f", c.slow, c.n, e.low, e.high, c.low, c.high)
		}
	}
}

// TestVerdicts: a bar within the interval is neither met nor missed, and nothing measured is never a pass.
func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		e     estimate
		most  verdict // against at most 4
		least verdict // against at least 4
	}{
		{estimate{3, 2, 3.9}, met, missed},
		{estimate{5, 4.1, 6}, missed, met},
		{estimate{4, 3, 5}, open, open},
		{estimateMedian(nil), notMeasured, notMeasured},
	} {
		if got := c.e.atMost(4, "%.1f").verdict; got != c.most {
			t.Errorf("%v at most 4: %s, want %s", c.e, got, c.most)
		}
		if got := c.e.atLeast(4, "%.1f").verdict; got != c.least {
			t.Errorf("%v at least 4: %s, want %s", c.e, got, c.least)
		}
	}
}
