package main

import (
	"math"

	"berth/bench/queue"
)

// Costs are what the model is made of. Times are in µs, as lines over the number of containers.
//
// A start goes through sections that only one can be in (Section), and through work that any core can do. What the client
// waits for is in front of its answer; the rest is made ahead or cleared away behind it, on the same cores.
type Costs struct {
	CPU  Line `json:"cpu"`  // of one run in all, by all processes and threads, when the machine is busy
	Lone Line `json:"lone"` // median wall time of a run when nobody else wants anything

	Veth      Section `json:"veth"`      // RTNL, by netd
	Unveth    Section `json:"unveth"`    // RTNL, by the kernel's thread
	Address   Section `json:"address"`   // RTNL, by netd
	Teardown  Line    `json:"teardown"`  // of the kernel's one thread that takes namespaces apart, for each
	Grace     Line    `json:"grace"`     // of the same, for all that it takes apart together
	Slot      Section `json:"slot"`      // netd's one loop that makes slots; Veth, Address and Nft are within it
	Nft       Section `json:"nft"`       // nftables' commits
	Cgroup    Section `json:"cgroup"`    // cgroup_mutex: made, entered, removed
	Namespace Section `json:"namespace"` // namespace_sem: the copy of the mount table, and each mount

	// Fitted to runs beside no other containers, and to nothing else.
	Before    float64 `json:"before"`    // share of the work outside sections that is done before the answer
	Variation float64 `json:"variation"` // coefficient of variation of each piece of work
	Free      float64 `json:"free"`      // share of this machine that other work left
}

// Section is a serial section.
type Section struct {
	Time   Line    `json:"time"`   // by the clock, for one start
	CPU    Line    `json:"cpu"`    // of it, on a core
	Serial float64 `json:"serial"` // what of Time excludes others: more than 1 when handing over costs
}

// whole is the same with all of it under the lock, which is the most that it can be.
func (s Section) whole() Section {
	s.Serial = max(s.Serial, 1)
	return s
}

// Whole supposes every section serial from end to end, and RTNL taken for all of what the kernel takes apart.
func (c Costs) Whole() Costs {
	for _, s := range []*Section{&c.Veth, &c.Unveth, &c.Address, &c.Slot, &c.Nft, &c.Cgroup, &c.Namespace} {
		*s = s.whole()
	}
	// The kernel's thread may have RTNL for as long as it works.
	full := float64(asItIs.PortsMax)
	unveth, teardown := c.Unveth.Time, c.Teardown
	c.Unveth.Time.Base = max(unveth.At(0), teardown.At(0))
	c.Unveth.Time.Slope = (max(unveth.At(full), teardown.At(full)) - c.Unveth.Time.Base) / full
	return c
}

// Design is what is different from the engine as it is.
type Design struct {
	PortsMax  int     // containers in one bridge
	Makers    int     // loops that make slots
	RTNL      float64 // factor of the time under RTNL: 0 for containers without a bridge
	SlopesOff bool    // no cost grows with the number of containers
}

// asItIs is the engine of this tree. A network has 1,023 ports, of which some are needed for what comes and goes; beyond
// are several networks.
var asItIs = Design{PortsMax: 900, Makers: 1, RTNL: 1}

const (
	pool       = 16   // netd's slots that are ready
	inits      = 4    // the monitor's
	atOnce     = 8    // slots made together
	reaped     = 64   // namespaces taken apart together
	wakeups    = 8    // times that a start goes from one process to another
	ports      = 1023 // of a bridge
	mountsMade = 20   // mounts of a container, each attached and let go of once
)

// Scenario is what to predict for. Either clients run one container after the other, or containers are asked for at a
// rate by chance (Poisson).
type Scenario struct {
	Cores   int
	N       float64
	Clients int
	Rate    float64
	Free    float64 // share of the cores' time that other work leaves; 0: all
	Design  Design
}

// Prediction is what came of it.
type Prediction struct {
	Rate     float64 // a second
	P50, P99 float64 // ms
	Busy     map[string]float64
}

// Busiest is the lock, or the cores, that is taken for the largest part of the time.
func (p Prediction) Busiest() (name string, share float64) {
	for _, n := range busyNames {
		if p.Busy[n] > share {
			name, share = n, p.Busy[n]
		}
	}
	return name, share
}

var busyNames = []string{"cores", "RTNL", "cleanup_net", "netd's slots", "nftables commit", "cgroup_mutex", "namespace_sem"}

// simulation is one simulation under way.
type simulation struct {
	*queue.Sim
	c      Costs
	s      Scenario
	at     func(Line) float64 // seconds
	locks  map[string]*queue.Server
	cores  *queue.Server
	slots  *queue.Tokens
	inits  int
	making int // slots being made, or inits
	brews  bool
	dead   int // namespaces that nobody takes apart yet
	used   int // ports of containers that run, and of those that are over and not taken apart
	reaper bool
	// pieces, in seconds
	before, after, wake float64
	stretch             float64 // of work, by that of others
	latencies           []float64
	ended               int
}

// Predict simulates so many starts, after a tenth as many that do not count.
func (c Costs) Predict(s Scenario, starts int) Prediction {
	m := newMachine(c, s)
	warm := starts/10 + 20*s.Clients/10
	var began float64
	finish := func(came float64) {
		m.ended++
		if m.ended == warm {
			began, m.latencies = m.Now, nil
			for _, l := range m.locks {
				l.Forget()
			}
		}
		m.latencies = append(m.latencies, (m.Now-came)*1e3)
	}
	done := func() bool { return m.ended >= warm+starts }
	if s.Rate > 0 {
		var arrive func()
		arrive = func() {
			came := m.Now
			m.run(func() { finish(came) })
			if !done() {
				m.After(m.Exponential(1/s.Rate), arrive)
			}
		}
		m.After(0, arrive)
	}
	for range s.Clients {
		var again func()
		again = func() {
			came := m.Now
			m.run(func() {
				finish(came)
				if !done() {
					m.After(0, again)
				}
			})
		}
		m.After(m.Chance.Float64()*1e-3, again)
	}
	for step := 0.05; !done() && m.Now < 3600; {
		m.Run(m.Now + step)
	}
	p := Prediction{Rate: float64(m.ended-warm) / (m.Now - began), Busy: map[string]float64{}}
	p.P50, p.P99 = quantile(m.latencies, 0.5), quantile(m.latencies, 0.99)
	for name, l := range m.locks {
		p.Busy[name] = l.Demand()
	}
	return p
}

func newMachine(c Costs, s Scenario) *simulation {
	m := &simulation{Sim: queue.New(1), c: c, s: s, locks: map[string]*queue.Server{}}
	for _, name := range busyNames {
		places := 1
		switch name {
		case "cores":
			places = s.Cores
		case "netd's slots":
			places = max(s.Design.Makers, 1)
		}
		m.locks[name] = m.Server(places)
	}
	m.cores, m.slots, m.inits = m.locks["cores"], m.Tokens(pool), inits
	m.stretch = 1
	if s.Free > 0 {
		m.stretch = 1 / s.Free
	}
	m.at = func(l Line) float64 {
		if s.Design.SlopesOff {
			return l.At(0) / 1e6
		}
		return l.At(s.N) / 1e6
	}
	// The work outside sections is what is left of all the work.
	rest := m.at(c.CPU)
	for _, section := range []*Section{&c.Veth, &c.Unveth, &c.Address, &c.Nft, &c.Cgroup, &c.Namespace} {
		rest -= m.at(section.CPU)
	}
	rest = max(rest, 0.2*m.at(c.CPU))
	m.before, m.after = rest*c.Before, rest*(1-c.Before)
	// What a lone start takes and no work explains is the time that waking each other takes.
	m.wake = max(m.at(c.Lone)-m.before*m.stretch-m.at(c.Namespace.Time)/4, 0) / wakeups
	if s.Design.RTNL != 1 {
		for _, section := range []*Section{&m.c.Veth, &m.c.Unveth, &m.c.Address} {
			section.Time.Base, section.Time.Slope = section.Time.Base*s.Design.RTNL, section.Time.Slope*s.Design.RTNL
			section.CPU.Base, section.CPU.Slope = section.CPU.Base*s.Design.RTNL, section.CPU.Slope*s.Design.RTNL
		}
	}
	return m
}

// port is what a line says of a bridge that is as full as it gets.
func (m *simulation) port(l Line) float64 {
	if m.s.Design.SlopesOff {
		return l.At(0) / 1e6
	}
	return l.At(min(m.s.N, float64(m.s.Design.PortsMax))) / 1e6
}

// section is the steps of a serial section, count at once: what excludes others, and what does not.
func (m *simulation) section(lock string, s Section, at func(Line) float64, count float64) []queue.Step {
	whole, work := at(s.Time)*count, at(s.CPU)*count
	share, handing := min(s.Serial, 1), max(s.Serial, 1)
	work = min(work, whole)
	held := queue.Step{Lock: m.locks[lock], Work: work * share * handing * m.stretch, Also: (whole - work) * share * handing}
	steps := []queue.Step{held}
	if share < 1 {
		steps = append(steps, queue.Step{Work: work * (1 - share) * m.stretch, Also: (whole - work) * (1 - share)})
	}
	return steps
}

// piece is a part of the work that any core does, with the time until its process has woken.
func (m *simulation) piece(mean float64) queue.Step {
	return queue.Step{Work: m.Lognormal(mean*m.stretch, m.c.Variation)}
}

// run is one start, and the end of the container.
func (m *simulation) run(answered func()) {
	piece := func() []queue.Step {
		return []queue.Step{{Also: m.Exponential(m.wake)}, m.piece(m.before / wakeups)}
	}
	var front []queue.Step
	for range wakeups / 4 {
		front = append(front, piece()...)
	}
	m.Do(m.cores, front, func() {
		take := m.slots.Take
		if m.s.Design.RTNL == 0 {
			take = func(then func()) { then() } // no network, no slot
		}
		take(func() {
			m.used++
			m.makeSlots()
			var middle []queue.Step
			if m.inits > 0 {
				m.inits--
				m.brew()
			} else {
				middle = append(middle, m.birth()...)
			}
			half := m.c.Namespace
			half.Time, half.CPU = half.Time.times(0.25), half.CPU.times(0.25)
			middle = append(middle, m.section("namespace_sem", half, m.at, 1)...)
			for range wakeups - wakeups/4 {
				middle = append(middle, piece()...)
			}
			m.Do(m.cores, middle, func() {
				answered()
				m.clear()
			})
		})
	})
	m.makeSlots()
}

// birth is an init: control groups, and a copy of the mount table.
func (m *simulation) birth() []queue.Step {
	part := m.c.Cgroup
	part.Time, part.CPU = part.Time.times(0.6), part.CPU.times(0.6)
	steps := m.section("cgroup_mutex", part, m.at, 1)
	half := m.c.Namespace
	half.Time, half.CPU = half.Time.times(0.5), half.CPU.times(0.5)
	steps = append(steps, m.section("namespace_sem", half, m.at, 1)...)
	return append(steps, m.piece(m.after*0.3))
}

// brew makes an init ahead, one after the other.
func (m *simulation) brew() {
	if m.brews || m.inits >= inits {
		return
	}
	m.brews = true
	m.Do(m.cores, m.birth(), func() {
		m.inits++
		m.brews = false
		m.brew()
	})
}

// makeSlots has netd make what is missing, eight at a time, when half are gone or somebody waits.
func (m *simulation) makeSlots() {
	if m.s.Design.RTNL == 0 {
		return
	}
	have := m.slots.Ready - m.slots.Waiting() + m.making
	if m.making >= atOnce*max(m.s.Design.Makers, 1) || have > pool/2 {
		return
	}
	n := min(pool-have, atOnce, m.room())
	if n <= 0 {
		return // until something has been taken apart
	}
	m.making += n
	count := float64(n)
	maker := m.locks["netd's slots"]
	maker.Acquire(func() {
		steps := m.section("RTNL", m.c.Veth, m.port, count)
		steps = append(steps, m.section("RTNL", m.c.Address, m.at, count)...)
		steps = append(steps, m.section("nftables commit", m.c.Nft, m.at, count/2)...)
		inside := m.port(m.c.Veth.Time) + m.at(m.c.Address.Time) + m.at(m.c.Nft.Time)/2
		own := max(m.port(m.c.Slot.Time)-inside, 0)
		steps = append(steps, queue.Step{Work: own * count * m.stretch})
		maker.Needed((inside + own) * count * m.stretch)
		m.Do(m.cores, steps, func() {
			maker.Release()
			m.making -= n
			for range n {
				m.slots.Put()
			}
			m.makeSlots()
		})
	})
}

// room is how many more ports the bridge has.
func (m *simulation) room() int {
	crowd := min(m.s.N, float64(m.s.Design.PortsMax))
	if m.s.Design.SlopesOff {
		crowd = 0
	}
	return ports - int(crowd) - m.used - m.making - m.slots.Ready
}

// clear is what follows the answer.
func (m *simulation) clear() {
	part := m.c.Cgroup
	part.Time, part.CPU = part.Time.times(0.4), part.CPU.times(0.4)
	steps := m.section("cgroup_mutex", part, m.at, 1)
	rest := m.c.Namespace
	rest.Time, rest.CPU = rest.Time.times(0.25), rest.CPU.times(0.25)
	steps = append(steps, m.section("namespace_sem", rest, m.at, 1)...)
	own := 0.7*m.after - m.ownSlot()
	steps = append(steps, m.piece(max(own, 0)))
	m.Do(m.cores, steps, func() {
		if m.s.Design.RTNL > 0 {
			m.dead++
			m.reap()
		} else {
			m.used--
		}
	})
}

// ownSlot is the work of netd's loop outside of locks, which is part of all the work.
func (m *simulation) ownSlot() float64 {
	if m.s.Design.RTNL == 0 {
		return 0
	}
	return max(m.port(m.c.Slot.Time)-m.port(m.c.Veth.Time)-m.at(m.c.Address.Time)-m.at(m.c.Nft.Time)/2, 0)
}

// reap is the kernel's one thread that takes network namespaces apart, with RTNL for their interfaces.
func (m *simulation) reap() {
	if m.reaper || m.dead == 0 {
		return
	}
	m.reaper = true
	n := min(m.dead, reaped)
	m.dead -= n
	count := float64(n)
	thread := m.locks["cleanup_net"]
	thread.Acquire(func() {
		steps := m.section("RTNL", m.c.Unveth, m.port, count)
		steps = append(steps, m.section("nftables commit", m.c.Nft, m.at, count/2)...)
		steps = append(steps, queue.Step{Also: m.port(m.c.Grace) + count*max(m.port(m.c.Teardown)-m.port(m.c.Unveth.Time), 0)})
		var whole float64
		for _, step := range steps {
			whole += step.Work + step.Also
		}
		thread.Needed(whole)
		m.Do(m.cores, steps, func() {
			thread.Release()
			m.reaper = false
			m.used -= n
			m.makeSlots()
			m.reap()
		})
	})
}

// calibrate fits what cannot be measured by itself to runs beside no others: how much of the machine other work left, by
// what many clients get done with the time that a run takes; how much of the work is done before the answer, by what two
// get done; and how much each piece varies, by one client's slowest runs.
func (c Costs) calibrate(one, two, many Burst, cores int) Costs {
	c.Before, c.Variation = 0.5, 0.5
	rate := func(c Costs, b Burst) float64 {
		return c.Predict(Scenario{Cores: cores, N: float64(b.N), Clients: b.Clients, Free: c.Free, Design: asItIs}, 1500).Rate
	}
	for range 2 { // each depends a little on the other
		c.Free = best(0.3, 1, 0.05, func(v float64) float64 { c.Free = v; return math.Abs(math.Log(rate(c, many) / many.Rate)) })
		c.Before = best(0.1, 0.95, 0.05, func(v float64) float64 { c.Before = v; return math.Abs(math.Log(rate(c, two) / two.Rate)) })
	}
	c.Variation = best(0.1, 2.5, 0.1, func(v float64) float64 {
		c.Variation = v
		p := c.Predict(Scenario{Cores: cores, N: float64(one.N), Clients: 1, Free: c.Free, Design: asItIs}, 1500)
		return math.Abs(math.Log(p.P99 / p.P50 / (one.P99 / one.P50)))
	})
	return c
}

// best is the value from a range that misses least.
func best(from, to, step float64, miss func(float64) float64) (value float64) {
	least := math.Inf(1)
	for v := from; v < to+step/2; v += step {
		if m := miss(v); m < least {
			least, value = m, v
		}
	}
	return value
}
