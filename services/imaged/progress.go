package main

import (
	"strings"
	"sync"
	"time"

	apiv1 "berth/proto/berth/api/v1"
)

// progress collects what the parts of a job report, from many goroutines, and
// sends it at a pace that people can see. What was not sent yet is replaced by
// newer news of the same item, so a slow reader delays nobody and sees the last
// state of everything.
type progress struct {
	step string
	send func(*apiv1.JobProgress) error

	mu      sync.Mutex
	items   map[string]*item
	changed []string // items with news, in the order of reporting
	stop    chan struct{}
	done    chan struct{}
}

type item struct {
	status         string
	current, total int64
	waiting        bool // in changed
}

const progressEvery = 100 * time.Millisecond

func newProgress(step string, send func(*apiv1.JobProgress) error) *progress {
	p := &progress{step: step, send: send, items: map[string]*item{}, stop: make(chan struct{}), done: make(chan struct{})}
	go p.run()
	return p
}

// set is the new state of an item, by its digest.
func (p *progress) set(name, status string, current, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.items[name]
	if i == nil {
		i = &item{}
		p.items[name] = i
	}
	i.status, i.current, i.total = status, current, total
	if !i.waiting {
		i.waiting = true
		p.changed = append(p.changed, name)
	}
}

func (p *progress) run() {
	defer close(p.done)
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			p.flush()
			return
		case <-tick.C:
			if !p.flush() {
				<-p.stop // the reader is gone; the call will end
				return
			}
		}
	}
}

// flush sends all news and reports whether that worked.
func (p *progress) flush() bool {
	for _, m := range p.news() {
		if p.send(m) != nil {
			return false
		}
	}
	return true
}

func (p *progress) news() []*apiv1.JobProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	var sum, total int64
	known := true
	for _, i := range p.items {
		sum, total = sum+i.current, total+i.total
		known = known && i.total > 0
	}
	if !known {
		total = 0
	}
	var all []*apiv1.JobProgress
	for _, name := range p.changed {
		i := p.items[name]
		i.waiting = false
		all = append(all, &apiv1.JobProgress{
			Step: p.step, Item: shortDigest(name), Status: i.status, CurrentBytes: i.current, TotalBytes: i.total,
			JobCurrentBytes: sum, JobTotalBytes: total,
		})
	}
	p.changed = p.changed[:0]
	return all
}

// close sends what is left and returns when nothing is being sent any more.
func (p *progress) close() {
	close(p.stop)
	<-p.done
}

func shortDigest(d string) string {
	_, hex, _ := strings.Cut(d, ":")
	return hex[:min(12, len(hex))]
}
