// Package queue simulates queueing networks event by event: work that takes cores, locks that one holder has at a time,
// delays that take neither. Time is in seconds and only ever moves to the next event, so that a run depends on nothing
// but its seed.
//
// Its tests hold it against what queueing theory knows exactly: M/M/1, M/D/1, M/M/c, the machine repairman, Amdahl.
package queue

import (
	"container/heap"
	"math"
	"math/rand/v2"
)

// Sim is one simulation. It is used by one goroutine.
type Sim struct {
	Now    float64
	Chance *rand.Rand
	events events
	serial uint64
}

// New begins a simulation at time 0.
func New(seed uint64) *Sim {
	return &Sim{Chance: rand.New(rand.NewPCG(seed, seed))}
}

// After has f called when so much time has passed. What is due at the same moment happens in the order it was asked for.
func (s *Sim) After(delay float64, f func()) {
	s.serial++
	heap.Push(&s.events, event{s.Now + delay, s.serial, f})
}

// Run lets time pass until the end, or until nothing is left to happen.
func (s *Sim) Run(end float64) {
	for len(s.events) > 0 && s.events[0].at <= end {
		e := heap.Pop(&s.events).(event)
		s.Now = e.at
		e.f()
	}
	s.Now = max(s.Now, end)
}

// Exponential draws a time with the given mean.
func (s *Sim) Exponential(mean float64) float64 { return s.Chance.ExpFloat64() * mean }

// Lognormal draws a time with a mean and a coefficient of variation (standard deviation over mean; 0: the mean itself).
func (s *Sim) Lognormal(mean, variation float64) float64 {
	if mean <= 0 || variation <= 0 {
		return max(mean, 0)
	}
	sigma2 := math.Log1p(variation * variation)
	return mean * math.Exp(s.Chance.NormFloat64()*math.Sqrt(sigma2)-sigma2/2)
}

type event struct {
	at     float64
	serial uint64
	f      func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].serial < e[j].serial
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// Server is a number of equal places, such as the cores of a machine or the one place of a lock, with a queue in front of
// them: who came first is served first.
type Server struct {
	sim     *Sim
	places  int
	busy    int
	waiting []func()
	since   float64 // when busy changed last, or counting began
	area    float64 // of busy over time
	begun   float64
	own     float64 // of area, what holders had to do themselves
}

// Server makes one with so many places.
func (s *Sim) Server(places int) *Server { return &Server{sim: s, places: places} }

// Acquire calls then with a place, at once if there is one. Release gives it back.
func (r *Server) Acquire(then func()) {
	if r.busy < r.places {
		r.count(1)
		then()
		return
	}
	r.waiting = append(r.waiting, then)
}

// Release gives a place back, to the one who waits longest if anybody does.
func (r *Server) Release() {
	if len(r.waiting) == 0 {
		r.count(-1)
		return
	}
	next := r.waiting[0]
	r.waiting = r.waiting[1:]
	r.sim.After(0, next) // not from within the one who leaves: that would nest without end
}

func (r *Server) count(change int) {
	r.area += float64(r.busy) * (r.sim.Now - r.since)
	r.since = r.sim.Now
	r.busy += change
}

// Utilisation is the share of the places that were taken since counting began (Forget, or the beginning).
func (r *Server) Utilisation() float64 {
	r.count(0)
	if r.sim.Now == r.begun {
		return 0
	}
	return r.area / (r.sim.Now - r.begun) / float64(r.places)
}

// Demand is the share of the places' time that holders needed for what they did there, without what they waited for cores
// or for other servers meanwhile. It comes to 1 at the server that is the bound for all, where Utilisation comes to 1 at
// those too that are held by who waits for that one.
func (r *Server) Demand() float64 {
	if r.sim.Now == r.begun {
		return 0
	}
	return r.own / (r.sim.Now - r.begun) / float64(r.places)
}

// Needed adds to the demand of a server that is held by hand.
func (r *Server) Needed(time float64) { r.own += time }

// Forget begins counting anew.
func (r *Server) Forget() {
	r.count(0)
	r.area, r.own, r.begun = 0, 0, r.sim.Now
}

// Step is a part of a job: Work on one of the cores, with Lock held while it waits for the core and works unless Lock is
// nil, and with Also for so much longer, without a core. A step without any work holds no core.
type Step struct {
	Lock *Server
	Work float64
	Also float64
}

// Do takes the steps one after the other, and calls done after the last.
func (s *Sim) Do(cores *Server, steps []Step, done func()) {
	if len(steps) == 0 {
		done()
		return
	}
	step, rest := steps[0], steps[1:]
	cores.Needed(step.Work)
	if step.Lock != nil {
		step.Lock.Needed(step.Work + step.Also)
	}
	next := func() {
		if step.Lock != nil {
			step.Lock.Release()
		}
		s.Do(cores, rest, done)
	}
	idle := func() {
		if step.Also > 0 {
			s.After(step.Also, next)
		} else {
			next()
		}
	}
	work := func() {
		if step.Work <= 0 {
			idle()
			return
		}
		cores.Acquire(func() {
			s.After(step.Work, func() {
				cores.Release()
				idle()
			})
		})
	}
	if step.Lock != nil {
		step.Lock.Acquire(work)
	} else {
		work()
	}
}

// Tokens are things made ahead: who takes one waits until there is one.
type Tokens struct {
	sim     *Sim
	Ready   int
	waiting []func()
}

// Tokens makes a store that holds so many at first.
func (s *Sim) Tokens(ready int) *Tokens { return &Tokens{sim: s, Ready: ready} }

// Waiting is how many wait for one.
func (t *Tokens) Waiting() int { return len(t.waiting) }

// Take calls then with one.
func (t *Tokens) Take(then func()) {
	if t.Ready > 0 {
		t.Ready--
		then()
		return
	}
	t.waiting = append(t.waiting, then)
}

// Put adds one.
func (t *Tokens) Put() {
	if len(t.waiting) == 0 {
		t.Ready++
		return
	}
	next := t.waiting[0]
	t.waiting = t.waiting[1:]
	t.sim.After(0, next)
}
