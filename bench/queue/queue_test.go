package queue

import (
	"math"
	"testing"
)

// near fails when a simulated value is further from the exact one than a share of it.
func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if math.Abs(got-want) > within*want {
		t.Errorf("%s: simulated %.4f, theory %.4f: apart by more than %.0f %%", what, got, want, 100*within)
	}
}

// open sends arrivals at a rate through a server and returns the mean time from arrival to end, and the utilisation.
func open(places int, rate float64, service func(*Sim) float64) (response, busy float64) {
	s := New(1)
	r := s.Server(places)
	var sum float64
	var n int
	var arrive func()
	arrive = func() {
		came := s.Now
		s.Do(r, []Step{{Work: service(s)}}, func() { sum += s.Now - came; n++ })
		s.After(s.Exponential(1/rate), arrive)
	}
	s.After(0, arrive)
	s.Run(300_000)
	return sum / float64(n), r.Utilisation()
}

// TestMM1: the time in the system is 1/(μ-λ).
func TestMM1(t *testing.T) {
	for _, load := range []float64{0.3, 0.7, 0.9} {
		response, busy := open(1, load, func(s *Sim) float64 { return s.Exponential(1) })
		near(t, "M/M/1 response", response, 1/(1-load), 0.05)
		near(t, "M/M/1 utilisation", busy, load, 0.02)
	}
}

// TestMD1: Pollaczek and Khinchine, with service that does not vary: 1 + ρ/2(1-ρ).
func TestMD1(t *testing.T) {
	for _, load := range []float64{0.3, 0.7, 0.9} {
		response, _ := open(1, load, func(*Sim) float64 { return 1 })
		near(t, "M/D/1 response", response, 1+load/(2*(1-load)), 0.05)
	}
}

// TestMG1: the same with service that varies by half of its mean: waiting is (1+1/4)/2 of M/M/1's.
func TestMG1(t *testing.T) {
	response, _ := open(1, 0.6, func(s *Sim) float64 { return s.Lognormal(1, 0.5) })
	near(t, "M/G/1 response", response, 1+0.6/0.4*(1+0.25)/2, 0.05)
}

// TestMMC: Erlang's C formula gives the chance to wait.
func TestMMC(t *testing.T) {
	const c, load = 4, 0.8
	a := c * load
	term, sum := 1.0, 0.0
	for k := range c {
		sum += term
		term *= a / float64(k+1)
	}
	wait := term / (1 - load) / (sum + term/(1-load))
	response, _ := open(c, a, func(s *Sim) float64 { return s.Exponential(1) })
	near(t, "M/M/4 response", response, 1+wait/(c-a), 0.05)
}

// closed has clients that begin again when they are done, and returns how many jobs end a second.
func closed(cores, clients int, steps func(s *Sim, lock *Server) []Step) float64 {
	s := New(2)
	cpu, lock := s.Server(cores), s.Server(1)
	n := 0
	var again func()
	again = func() {
		s.Do(cpu, steps(s, lock), func() { n++; s.After(0, again) })
	}
	for range clients {
		s.After(0, again)
	}
	const end = 20_000
	s.Run(end)
	return float64(n) / end
}

// TestMachineRepairman: machines that run for 4 and are repaired in 1 by one repairman. The exact rate is by mean value
// analysis.
func TestMachineRepairman(t *testing.T) {
	const machines, think, repair = 6, 4.0, 1.0
	queue, rate := 0.0, 0.0
	for n := 1; n <= machines; n++ {
		response := repair * (1 + queue)
		rate = float64(n) / (think + response)
		queue = rate * response
	}
	got := closed(machines, machines, func(s *Sim, lock *Server) []Step {
		return []Step{{Also: s.Exponential(think)}, {Lock: lock, Work: s.Exponential(repair)}}
	})
	near(t, "repairs a second", got, rate, 0.02)
}

// TestAmdahl: with a serial part s of each job, n cores do no more than n/(sn + 1-s) times the work of one as long as
// they wait for each other in lockstep, and 1/s in the limit; a queue comes up to min(n, 1/s).
func TestAmdahl(t *testing.T) {
	const serial = 0.1
	for _, cores := range []int{1, 2, 4, 8, 16, 64} {
		got := closed(cores, 4*cores, func(s *Sim, lock *Server) []Step {
			return []Step{{Work: 1 - serial}, {Lock: lock, Work: serial}}
		})
		bound := min(float64(cores), 1/serial)
		amdahl := float64(cores) / (serial*float64(cores) + 1 - serial)
		if got > bound*1.001 || got < amdahl*0.999 {
			t.Errorf("%d cores: speedup %.3f, want from %.3f (Amdahl) to %.3f", cores, got, amdahl, bound)
		}
	}
	near(t, "speedup of 64 cores", closed(64, 256, func(s *Sim, lock *Server) []Step {
		return []Step{{Work: 1 - serial}, {Lock: lock, Work: serial}}
	}), 1/serial, 0.01)
}

// TestLockIsHeldWithoutCore: a holder that sleeps keeps the others out and leaves the core.
func TestLockIsHeldWithoutCore(t *testing.T) {
	got := closed(1, 8, func(s *Sim, lock *Server) []Step {
		return []Step{{Lock: lock, Work: 0.1, Also: 0.4}}
	})
	near(t, "jobs a second", got, 2, 0.01)
}

// TestDemand: on one core that is the bound, a lock that is held for a third of each job is wanted for a third of the
// time, however long its holders wait for the core.
func TestDemand(t *testing.T) {
	s := New(4)
	cpu, lock := s.Server(1), s.Server(1)
	var again func()
	again = func() { s.Do(cpu, []Step{{Work: 0.2}, {Lock: lock, Work: 0.1}}, func() { s.After(0, again) }) }
	for range 8 {
		again()
	}
	s.Run(1000)
	near(t, "demand for the lock", lock.Demand(), 1.0/3, 0.02)
	near(t, "demand for the core", cpu.Demand(), 1, 0.02)
	if lock.Utilisation() < 0.5 {
		t.Errorf("the lock was held for %.2f of the time: its holders did not wait for the core", lock.Utilisation())
	}
}

// TestTokens: whoever takes waits for the maker.
func TestTokens(t *testing.T) {
	s := New(3)
	cpu, tokens := s.Server(4), s.Tokens(2)
	var make func()
	make = func() { s.After(0.5, func() { tokens.Put(); make() }) }
	make()
	n := 0
	var again func()
	again = func() { tokens.Take(func() { s.Do(cpu, []Step{{Work: 0.01}}, func() { n++; again() }) }) }
	again()
	again()
	s.Run(1000)
	near(t, "jobs", float64(n), 2002, 0.01)
}

// TestSeed: the same seed gives the same run.
func TestSeed(t *testing.T) {
	run := func() float64 { r, _ := open(2, 1.5, func(s *Sim) float64 { return s.Lognormal(1, 1) }); return r }
	if a, b := run(), run(); a != b {
		t.Errorf("two runs with one seed: %v and %v", a, b)
	}
}
