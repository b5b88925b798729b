package main

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
)

// Measures of the picture, in pixels.
const (
	labelWidth = 230
	plotWidth  = 560
	rowHeight  = 22
	headHeight = 34
)

// plot draws medians as dots with lines up to the 99th percentile, on a logarithmic axis from 0.5 ms to 1 s.
func plot(tables []table) string {
	x := func(d time.Duration) float64 {
		const low, high = 0.5, 1000.0
		v := min(max(float64(d)/float64(time.Millisecond), low), high)
		return labelWidth + plotWidth*math.Log(v/low)/math.Log(high/low)
	}
	height := 30
	for _, t := range tables {
		height += headHeight + rowHeight*len(t.rows)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", labelWidth+plotWidth+70, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	for _, tick := range []int{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000} {
		at := x(time.Duration(tick) * time.Millisecond)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="10" x2="%.1f" y2="%d" stroke="#ddd"/><text x="%.1f" y="%d" fill="#666" text-anchor="middle">%d</text>`+"\n", at, at, height-22, at, height-8, tick)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" fill="#666">ms</text>`+"\n", labelWidth+plotWidth+24, height-8)
	y := 10
	for _, t := range tables {
		fmt.Fprintf(&b, `<text x="8" y="%d" font-weight="bold">%s</text>`+"\n", y+18, html.EscapeString(t.title))
		y += headHeight
		for _, r := range t.rows {
			if r.median == 0 {
				continue
			}
			color := "#888"
			if strings.HasPrefix(r.name, "berth") {
				color = "#0a6ebd"
			}
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, labelWidth-12, y+4, html.EscapeString(r.name))
			fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s" stroke-width="2"/>`, x(r.median), y, x(r.p99), y, color)
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%d" r="5" fill="%s"/>`, x(r.median), y, color)
			fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="%s">%s</text>`+"\n", x(r.p99)+8, y+4, color, ms(r.median))
			y += rowHeight
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}
