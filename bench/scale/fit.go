package main

import (
	"cmp"
	"math"
	"slices"
)

// Line is a cost as a function of how many containers there are: Base + Slope·n.
type Line struct {
	Base  float64 `json:"base"`
	Slope float64 `json:"slope"` // for each container
	// Residual is the root mean square of what the line misses of the points, Largest the most it misses, both as
	// shares of the mean of the points.
	Residual float64 `json:"residual"`
	Largest  float64 `json:"largest"`
}

// At is the cost among n containers; never below nothing.
func (l Line) At(n float64) float64 { return max(l.Base+l.Slope*n, 0) }

// times and plus are what becomes of a line that is multiplied, and of one added to another.
func (l Line) times(f float64) Line {
	l.Base, l.Slope = l.Base*f, l.Slope*f
	return l
}

func (l Line) plus(o Line) Line {
	return Line{Base: l.Base + o.Base, Slope: l.Slope + o.Slope, Residual: max(l.Residual, o.Residual), Largest: max(l.Largest, o.Largest)}
}

// Point is something measured among N containers.
type Point struct {
	N     float64 `json:"n"`
	Value float64 `json:"value"`
}

// fit draws a line through points by least squares. Where the points do not lie on a line, or where there are too few of
// them to tell, the residuals say so and the caller reports them.
func fit(points []Point) (l Line) {
	n := float64(len(points))
	if n == 0 {
		return l
	}
	var sx, sy, sxx, sxy float64
	for _, p := range points {
		sx, sy, sxx, sxy = sx+p.N, sy+p.Value, sxx+p.N*p.N, sxy+p.N*p.Value
	}
	if d := n*sxx - sx*sx; d > 0 {
		l.Slope = (n*sxy - sx*sy) / d
	}
	l.Base = (sy - l.Slope*sx) / n
	mean := sy / n
	for _, p := range points {
		miss := math.Abs(p.Value-(l.Base+l.Slope*p.N)) / math.Abs(mean)
		l.Residual += miss * miss
		l.Largest = max(l.Largest, miss)
	}
	l.Residual = math.Sqrt(l.Residual / n)
	return l
}

// quantile is by the nearest rank.
func quantile[T cmp.Ordered](samples []T, q float64) (v T) {
	s := slices.Sorted(slices.Values(samples))
	if len(s) == 0 {
		return v
	}
	return s[max(int(math.Ceil(q*float64(len(s)))), 1)-1]
}
