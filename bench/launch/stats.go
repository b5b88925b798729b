package main

import (
	"math"
	"math/rand/v2"
	"slices"
)

// estimate is a number that was measured, with the interval that holds the true one in 95 of 100 runs of the bench.
type estimate struct{ value, low, high float64 }

const resamples = 2000

// good are the samples that are not NaN, which stands for a run that failed.
func good(samples []float64) []float64 {
	return slices.DeleteFunc(slices.Clone(samples), math.IsNaN)
}

// median is NaN of nothing.
func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	if len(s) == 0 {
		return math.NaN()
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// quantile is by the nearest rank.
func quantile(samples []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	if len(s) == 0 {
		return math.NaN()
	}
	return s[max(int(math.Ceil(q*float64(len(s)))), 1)-1]
}

// estimateMedian gives the interval between two of the samples: as many are left out at each end as fall on one side of
// the median with a chance of 2.5 %. That holds whatever the distribution is, but takes six samples.
func estimateMedian(samples []float64) estimate {
	s := slices.Sorted(slices.Values(good(samples)))
	e := estimate{median(s), math.Inf(-1), math.Inf(1)}
	for k := 0; k < len(s)/2 && binomial(k, len(s), 0.5) <= 0.025; k++ {
		e.low, e.high = s[k], s[len(s)-1-k]
	}
	return e
}

// estimateRatio is of the medians of a and b, with an interval by bootstrap: how the ratio of as many samples, drawn from
// these with putting back, spreads. Where both took turns in the same rounds, whole rounds are drawn, so that
// what disturbed both does not count as noise of their ratio.
func estimateRatio(a, b []float64, sameRounds bool) estimate {
	if !sameRounds {
		a, b = good(a), good(b)
		return bootstrap(median(a)/median(b), func(chance *rand.Rand) float64 {
			return median(draw(chance, a)) / median(draw(chance, b))
		})
	}
	var x, y []float64
	for i := range min(len(a), len(b)) {
		if !math.IsNaN(a[i]) && !math.IsNaN(b[i]) {
			x, y = append(x, a[i]), append(y, b[i])
		}
	}
	u, v := make([]float64, len(x)), make([]float64, len(x))
	return bootstrap(median(x)/median(y), func(chance *rand.Rand) float64 {
		for i := range u {
			k := chance.IntN(len(x))
			u[i], v[i] = x[k], y[k]
		}
		return median(u) / median(v)
	})
}

func bootstrap(value float64, again func(*rand.Rand) float64) estimate {
	if math.IsNaN(value) {
		return estimate{value, math.Inf(-1), math.Inf(1)}
	}
	chance := rand.New(rand.NewPCG(7, 7)) // the same samples get the same interval
	values := make([]float64, resamples)
	for i := range values {
		values[i] = again(chance)
	}
	return estimate{value, quantile(values, 0.025), quantile(values, 0.975)}
}

func draw(chance *rand.Rand, s []float64) []float64 {
	out := make([]float64, len(s))
	for i := range out {
		out[i] = s[chance.IntN(len(s))]
	}
	return out
}

// share estimates how large a part of all runs is above limit. The interval is Clopper's and Pearson's, which holds for
// as few as there are in the tail, where a bootstrap does not.
func share(samples []float64, limit float64) estimate {
	s := good(samples)
	n, k := len(s), 0
	for _, x := range s {
		if x > limit {
			k++
		}
	}
	e := estimate{float64(k) / float64(n), 0, 1}
	if k > 0 { // the share at which k or more would come in 2.5 % of runs
		e.low = solve(func(p float64) float64 { return 1 - binomial(k-1, n, p) }, 0.025)
	}
	if k < n { // the share at which k or fewer would
		e.high = solve(func(p float64) float64 { return -binomial(k, n, p) }, -0.025)
	}
	return e
}

// binomial is the probability of at most k of n where each has probability p.
func binomial(k, n int, p float64) (sum float64) {
	for i := 0; i <= k; i++ {
		c, _ := math.Lgamma(float64(n + 1))
		a, _ := math.Lgamma(float64(i + 1))
		b, _ := math.Lgamma(float64(n - i + 1))
		sum += math.Exp(c - a - b + float64(i)*math.Log(p) + float64(n-i)*math.Log1p(-p))
	}
	return sum
}

// solve finds where f, which grows on (0, 1), has a value.
func solve(f func(float64) float64, value float64) float64 {
	low, high := 0.0, 1.0
	for range 60 {
		if mid := (low + high) / 2; f(mid) < value {
			low = mid
		} else {
			high = mid
		}
	}
	return low
}
