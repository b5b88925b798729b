// Package progress shows a job's progress: bars with bytes, rate and time left on a terminal, plain lines elsewhere.
//
// One writer draws at most ten times a second, whatever the rate of updates.
package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"berth/cli/apiv1"
	"berth/cli/format"
	"berth/cli/term"
)

const (
	interval   = 100 * time.Millisecond
	rateWindow = 5 * time.Second // the rate shown is the mean over this span
)

// Display shows the progress of one job.
type Display interface {
	// Update takes the job's newest progress message.
	Update(p *apiv1.JobProgress)
	// Close draws the last state and releases the terminal.
	Close()
}

// New makes a display on f: nothing when quiet, bars on a terminal, otherwise lines.
func New(f *os.File, quiet bool) Display {
	switch {
	case quiet:
		return silent{}
	case term.IsTerminal(f):
		_, columns := term.Size(f)
		return &bars{w: f, width: int(columns), items: map[string]*apiv1.JobProgress{}, began: time.Now()}
	}
	return &lines{w: f, said: map[string]string{}}
}

type silent struct{}

func (silent) Update(*apiv1.JobProgress) {}
func (silent) Close()                    {}

// lines says each change of an item's status once.
type lines struct {
	w    io.Writer
	said map[string]string
}

func (l *lines) Update(p *apiv1.JobProgress) {
	text := p.GetStatus()
	if text == "" {
		text = p.GetMessage()
	}
	if text == "" || l.said[p.GetItem()] == text {
		return
	}
	l.said[p.GetItem()] = text
	switch {
	case p.GetItem() == "":
		fmt.Fprintln(l.w, text)
	case p.GetTotalBytes() > 0 && (text == "done" || text == "downloading"):
		fmt.Fprintf(l.w, "%s: %s (%s)\n", p.GetItem(), text, format.Bytes(p.GetTotalBytes()))
	default:
		fmt.Fprintf(l.w, "%s: %s\n", p.GetItem(), text)
	}
}

func (l *lines) Close() {}

type sample struct {
	at    time.Time
	bytes int64
}

// bars keeps one line an item and a sum line below, redrawn in place.
type bars struct {
	w       io.Writer
	width   int
	order   []string
	items   map[string]*apiv1.JobProgress
	last    *apiv1.JobProgress
	samples []sample
	began   time.Time
	drawn   int
	drawnAt time.Time
}

func (b *bars) Update(p *apiv1.JobProgress) {
	if _, ok := b.items[p.GetItem()]; !ok && p.GetItem() != "" {
		b.order = append(b.order, p.GetItem())
	}
	if p.GetItem() != "" {
		b.items[p.GetItem()] = p
	}
	b.last = p
	now := time.Now()
	b.samples = append(b.samples, sample{now, p.GetJobCurrentBytes()})
	for len(b.samples) > 2 && now.Sub(b.samples[0].at) > rateWindow {
		b.samples = b.samples[1:]
	}
	if now.Sub(b.drawnAt) >= interval {
		b.draw(now)
	}
}

func (b *bars) Close() {
	if b.last != nil {
		b.draw(time.Now())
	}
}

func (b *bars) draw(now time.Time) {
	b.drawnAt = now
	var out strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", b.drawn)
	}
	b.drawn = 0
	line := func(s string) {
		if r := []rune(s); b.width > 0 && len(r) > b.width-1 {
			s = string(r[:b.width-1])
		}
		out.WriteString("\r\x1b[2K" + s + "\n")
		b.drawn++
	}
	for _, name := range b.order {
		line(b.item(b.items[name]))
	}
	if b.last.GetJobTotalBytes() > 0 {
		line(b.sum(now))
	} else if b.last.GetMessage() != "" {
		line(b.last.GetMessage())
	}
	_, _ = io.WriteString(b.w, out.String())
}

func (b *bars) item(p *apiv1.JobProgress) string {
	s := fmt.Sprintf("%-14s %-12s", p.GetItem(), p.GetStatus())
	if p.GetTotalBytes() > 0 && p.GetStatus() != "done" && p.GetStatus() != "exists" {
		s += fmt.Sprintf(" %s %9s / %s", bar(p.GetCurrentBytes(), p.GetTotalBytes(), 24),
			format.Bytes(p.GetCurrentBytes()), format.Bytes(p.GetTotalBytes()))
	} else if p.GetTotalBytes() > 0 {
		s += " " + format.Bytes(p.GetTotalBytes())
	}
	return s
}

func (b *bars) sum(now time.Time) string {
	done, total := b.last.GetJobCurrentBytes(), b.last.GetJobTotalBytes()
	s := fmt.Sprintf("%-14s %-12s %s %9s / %s", "total", percent(done, total), bar(done, total, 24), format.Bytes(done), format.Bytes(total))
	first := b.samples[0]
	if d := now.Sub(first.at); d > 200*time.Millisecond && done > first.bytes {
		rate := float64(done-first.bytes) / d.Seconds()
		s += fmt.Sprintf("  %s/s", format.Bytes(int64(rate)))
		if done < total {
			s += fmt.Sprintf("  %s left", (time.Duration(float64(total-done)/rate) * time.Second).Round(time.Second))
		}
	}
	return s
}

func percent(n, of int64) string {
	return fmt.Sprintf("%d%%", min(100, n*100/of))
}

func bar(n, of int64, width int) string {
	full := int(min(int64(width), n*int64(width)/of))
	head := ""
	if full < width {
		head = ">"
	}
	return "[" + strings.Repeat("=", full) + head + strings.Repeat(" ", max(0, width-full-len(head))) + "]"
}
