package main

import (
	"fmt"
	"html"
	"strings"
)

// Measures of the picture, in pixels.
const (
	labelWidth = 190
	plotWidth  = 560
	rowHeight  = 20
	headHeight = 32
)

// plot draws the medians as bars, each image on a scale of its own.
func plot(tables []table) string {
	height := 16
	for _, t := range tables {
		height += headHeight + rowHeight*len(t.rows)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", labelWidth+plotWidth+70, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	y := 4
	for _, t := range tables {
		longest := t.rows[len(t.rows)-1].wall().Seconds()
		fmt.Fprintf(&b, `<text x="8" y="%d" font-weight="bold">%s</text>`+"\n", y+20, html.EscapeString(t.image.title))
		y += headHeight
		for _, r := range t.rows {
			color := "#999"
			switch {
			case r.engine.required:
				color = "#0a6ebd"
			case r.floor():
				color = "#ddd"
			}
			width := plotWidth * r.wall().Seconds() / longest
			label := seconds(r.wall()) + " s"
			if r.wall() == 0 {
				label = "cannot"
			}
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, labelWidth-8, y+11, html.EscapeString(r.engine.name))
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="14" fill="%s"/>`, labelWidth, y, width, color)
			fmt.Fprintf(&b, `<text x="%.1f" y="%d">%s</text>`+"\n", labelWidth+width+6, y+11, label)
			y += rowHeight
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}
