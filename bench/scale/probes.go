package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// A probe takes the time of one serial section of the kernel or of the engine, by doing over and over what a start does
// there and nothing else. What it measures is the whole operation, a little more than the time the lock is held; how much
// of it is serial is seen from what two threads do together.
type probe struct {
	name  string
	title string
	lock  string // what it is serial by; empty: nothing
	// wall says that the holder sleeps (for a grace period): time passes that no processor counts.
	wall bool
	each int // operations in one call of an op
	// alone leaves two threads out: it is one of the kernel's that works.
	alone bool
	most  int // others that there can be; 0: no bound
	// crowd makes the surroundings n, from those that are there.
	crowd func(n int) error
	// worker prepares for one of two threads; it runs on the thread that will call op.
	worker func(number int) (op func() error, done func(), err error)
	// before readies something for one op of a worker, in time that does not count.
	before func(number int) error
	close  func()
}

// Sample is what a probe found among N others.
type Sample struct {
	N       int     `json:"n"`
	Micros  float64 `json:"us"`      // for one operation by one thread
	CPU     float64 `json:"cpu_us"`  // of it, on a processor
	Wall    float64 `json:"wall_us"` // by the clock, the best of several rounds
	Speedup float64 `json:"speedup"` // of two threads over one; 0: not measured
}

const (
	roundTime = 80 * time.Millisecond
	rounds    = 3
)

// measure takes a probe's time among n others. Rounds of one thread and of two take turns, and the best of each counts:
// whatever else the machine does makes a round slower and never faster.
func (p *probe) measure(ctx context.Context, n int) (s Sample, err error) {
	if p.most > 0 {
		n = min(n, p.most)
	}
	s.N = n
	if p.crowd != nil {
		if err := p.crowd(n); err != nil {
			return s, fmt.Errorf("%s among %d: %w", p.name, n, err)
		}
	}
	var cpus, walls []float64
	best := map[int]float64{}
	for range rounds {
		for threads := 1; threads <= min(2, runtime.NumCPU()) && !(p.alone && threads > 1); threads++ {
			if err := ctx.Err(); err != nil {
				return s, err
			}
			rate, cpu, err := p.round(threads)
			if err != nil {
				return s, fmt.Errorf("%s among %d: %w", p.name, n, err)
			}
			best[threads] = max(best[threads], rate)
			if threads == 1 {
				cpus, walls = append(cpus, cpu), append(walls, 1e6/rate)
			}
		}
	}
	s.CPU, s.Wall = quantile(cpus, 0.5), quantile(walls, 0)
	s.Micros = s.CPU
	if p.wall {
		s.Micros = s.Wall
	}
	if best[2] > 0 {
		s.Speedup = best[2] / best[1]
	}
	return s, nil
}

// round has threads work for a while, each on its own. The rate is operations a second of all; cpu is µs of the first
// thread for one operation.
func (p *probe) round(threads int) (rate, cpu float64, err error) {
	var mu sync.Mutex
	var ready, finished sync.WaitGroup
	ready.Add(threads)
	begin := make(chan struct{})
	for number := range threads {
		finished.Go(func() {
			runtime.LockOSThread() // for good: the thread may have changed namespaces, and ends
			op, done, workerErr := p.worker(number)
			ready.Done()
			<-begin
			fail := func(e error) {
				mu.Lock()
				err = errors.Join(err, e)
				mu.Unlock()
			}
			if workerErr != nil {
				fail(workerErr)
				return
			}
			if done != nil {
				defer done()
			}
			var took, used time.Duration
			count := 0
			for took < roundTime {
				if p.before != nil {
					if e := p.before(number); e != nil {
						fail(e)
						return
					}
				}
				usedBefore, began := threadCPU(), time.Now()
				for first := true; first || p.before == nil && time.Since(began) < roundTime; first = false {
					if e := op(); e != nil {
						fail(e)
						return
					}
					count += max(p.each, 1)
				}
				took, used = took+time.Since(began), used+threadCPU()-usedBefore
			}
			mu.Lock()
			rate += float64(count) / took.Seconds()
			if number == 0 {
				cpu = used.Seconds() * 1e6 / float64(count)
			}
			mu.Unlock()
		})
	}
	ready.Wait()
	close(begin)
	finished.Wait()
	return rate, cpu, err
}

// threadCPU is the processor time of the calling thread.
func threadCPU() time.Duration {
	var u syscall.Rusage
	const rusageThread = 1 // RUSAGE_THREAD, getrusage(2)
	if syscall.Getrusage(rusageThread, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// runProbes measures each probe among 0 and all the given numbers of others. A probe that this machine does not allow is
// left out, and the error says which.
func runProbes(ctx context.Context, probes []*probe, counts []int, say func(string)) (all []Measured, leftOut []string) {
	for _, p := range probes {
		m := Measured{Name: p.name, Title: p.title, Lock: p.lock, Wall: p.wall}
		for _, n := range counts {
			if p.crowd == nil && n != counts[0] {
				break
			}
			s, err := p.measure(ctx, n)
			if err != nil {
				leftOut = append(leftOut, err.Error())
				break
			}
			m.Samples = append(m.Samples, s)
		}
		if p.close != nil {
			p.close()
		}
		if ctx.Err() != nil {
			return all, leftOut
		}
		if len(m.Samples) > 0 {
			m.fit()
			all = append(all, m)
			say(m.String())
		}
	}
	return all, leftOut
}

// Measured is a probe with what it found.
type Measured struct {
	Name    string   `json:"name"`
	Title   string   `json:"title"`
	Lock    string   `json:"lock,omitempty"`
	Wall    bool     `json:"wall,omitempty"`
	Samples []Sample `json:"samples"`
	Line    Line     `json:"line"` // µs
}

func (m *Measured) fit() {
	var points []Point
	for _, s := range m.Samples {
		points = append(points, Point{float64(s.N), s.Micros})
	}
	m.Line = fit(points)
}

// speedup is the median of what two threads did more than one.
func (m *Measured) speedup() float64 {
	var all []float64
	for _, s := range m.Samples {
		all = append(all, s.Speedup)
	}
	return quantile(all, 0.5)
}

func (m *Measured) String() string {
	text := fmt.Sprintf("%-10s", m.Name)
	for _, s := range m.Samples {
		text += fmt.Sprintf("  n=%d %.0f µs", s.N, s.Micros)
	}
	return text + fmt.Sprintf("  two threads × %.2f", m.speedup())
}

// sleepers are processes that do nothing in namespaces of their own.
type sleepers struct {
	flags uintptr
	procs []*os.Process
}

func (s *sleepers) grow(n int) error {
	for len(s.procs) < n {
		p, err := os.StartProcess("/bin/sleep", []string{"sleep", "86400"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: s.flags, Pdeathsig: syscall.SIGKILL}})
		if err != nil {
			return err
		}
		s.procs = append(s.procs, p)
	}
	return nil
}

func (s *sleepers) end() {
	for _, p := range s.procs {
		_ = p.Kill()
	}
	for _, p := range s.procs {
		_, _ = p.Wait()
	}
	s.procs = nil
}
