// Package chart draws what the benchmarks measured, as SVG.
package chart

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Series is a line through points, or only the points.
type Series struct {
	Name string
	X, Y []float64
	Dots bool
}

// Measures of the picture, in pixels.
const (
	left   = 70
	top    = 40
	width  = 560
	height = 300
	right  = 190
	bottom = 50
)

var colors = []string{"#0a6ebd", "#c4451c", "#2f8f46", "#7b4fb0", "#8a6d00", "#555555", "#d0449a", "#1b9aaa"}

// Lines draws series with logarithmic axes. What is not above zero has no place there and is left out.
func Lines(title, xTitle, yTitle string, series []Series) string {
	lowX, highX, lowY, highY := math.Inf(1), 0.0, math.Inf(1), 0.0
	for _, s := range series {
		for i := range s.X {
			if s.X[i] > 0 && s.Y[i] > 0 {
				lowX, highX, lowY, highY = min(lowX, s.X[i]), max(highX, s.X[i]), min(lowY, s.Y[i]), max(highY, s.Y[i])
			}
		}
	}
	if highX == 0 {
		return ""
	}
	lowX, highX, lowY, highY = lowX/1.1, highX*1.1, lowY/1.3, highY*1.3
	x := func(v float64) float64 { return left + width*math.Log(v/lowX)/math.Log(highX/lowX) }
	y := func(v float64) float64 { return top + height - height*math.Log(v/lowY)/math.Log(highY/lowY) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", left+width+right, top+height+bottom)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	fmt.Fprintf(&b, `<text x="8" y="20" font-weight="bold">%s</text>`+"\n", html.EscapeString(title))
	for _, at := range Ticks(lowX, highX) {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/>`, x(at), top, x(at), top+height)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="#666" text-anchor="middle">%g</text>`+"\n", x(at), top+height+16, at)
	}
	for _, at := range Ticks(lowY, highY) {
		fmt.Fprintf(&b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/>`, left, y(at), left+width, y(at))
		fmt.Fprintf(&b, `<text x="%d" y="%.1f" fill="#666" text-anchor="end">%g</text>`+"\n", left-6, y(at)+4, at)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", left+width/2, top+height+38, html.EscapeString(xTitle))
	fmt.Fprintf(&b, `<text transform="translate(16,%d) rotate(-90)" text-anchor="middle">%s</text>`+"\n", top+height/2, html.EscapeString(yTitle))
	for i, s := range series {
		color := colors[i%len(colors)]
		var path []string
		for k := range s.X {
			if s.X[k] <= 0 || s.Y[k] <= 0 {
				continue
			}
			path = append(path, fmt.Sprintf("%.1f,%.1f", x(s.X[k]), y(s.Y[k])))
			if s.Dots {
				fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`+"\n", x(s.X[k]), y(s.Y[k]), color)
			}
		}
		if !s.Dots {
			fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(path, " "), color)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", left+width+12, top+14+18*i, color, html.EscapeString(s.Name))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// Ticks are 1, 2 and 5 times the powers of ten between two numbers.
func Ticks(low, high float64) (out []float64) {
	for power := math.Pow(10, math.Floor(math.Log10(low))); power <= high; power *= 10 {
		for _, step := range []float64{1, 2, 5} {
			if v := step * power; v >= low && v <= high {
				out = append(out, v)
			}
		}
	}
	return out
}
