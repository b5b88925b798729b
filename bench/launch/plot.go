package main

import (
	"fmt"
	"html"
	"math"
	"strings"

	"berth/bench/chart"
)

// Measures of the picture, in pixels.
const (
	labelWidth = 230
	plotWidth  = 560
	rowHeight  = 22
	headHeight = 40
	footHeight = 34
)

// plot draws medians as dots with lines up to the 99th percentile, on a logarithmic axis.
func plot(f finding) string {
	low, high := math.Inf(1), 0.0
	var rows []row
	for _, r := range f.rows {
		r.samples = good(r.samples)
		if m := median(r.samples); m > 0 {
			rows = append(rows, r)
			low, high = min(low, m), max(high, quantile(r.samples, 0.99))
		}
	}
	low, high = low/1.5, high*1.5
	x := func(v float64) float64 { return labelWidth + plotWidth*math.Log(v/low)/math.Log(high/low) }
	height := headHeight + rowHeight*len(rows) + footHeight

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", labelWidth+plotWidth+70, height)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	fmt.Fprintf(&b, `<text x="8" y="20" font-weight="bold">%s</text>`+"\n", html.EscapeString(f.title))
	for _, at := range chart.Ticks(low, high) {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/>`, x(at), headHeight-12, x(at), height-footHeight)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="#666" text-anchor="middle">%g</text>`+"\n", x(at), height-footHeight+14, at)
	}
	for i, r := range rows {
		y, color := headHeight+rowHeight*i, "#888"
		if strings.HasPrefix(r.name, "berth") || strings.HasPrefix(r.name, "libcontainer") {
			color = "#0a6ebd"
		}
		m, p99 := x(median(r.samples)), x(quantile(r.samples, 0.99))
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, labelWidth-12, y+4, html.EscapeString(r.name))
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s" stroke-width="2"/>`, m, y, p99, y, color)
		fmt.Fprintf(&b, `<circle cx="%.1f" cy="%d" r="5" fill="%s"/>`, m, y, color)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="%s">%s %s</text>`+"\n", max(m, p99)+8, y+4, color, digits(median(r.samples)), r.unit)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
